// CPU side of the serialization keys: plain loops over rows (batch, z, y, x), split between threads.
#include "serialize.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int64_t kCellMask = (int64_t(1) << kBatchShift) - 1;

// The upper bits of a key. Frames that no key holds are found only afterwards: they give some number.
inline int64_t frame_bits(int32_t frame) {
    return static_cast<int64_t>(static_cast<uint64_t>(static_cast<int64_t>(frame)) << kBatchShift);
}

constexpr int64_t kBlock = 512;  // rows handled together, so that the transform runs on vectors from the first cache

bool inside(const int32_t* row, const int32_t* grid) {  // negative numbers are large ones here
    const auto below = [](int32_t a, int32_t b) { return static_cast<uint32_t>(a) < static_cast<uint32_t>(b); };
    return below(row[0], 1 << 15) & below(row[1], grid[0]) & below(row[2], grid[1]) & below(row[3], grid[2]);
}

// Calls take(cell, window along the axis, place inside) for every cell of an axis: counted, not divided.
template <typename Take>
void walk(const WindowOrder& o, int axis, const Take& take) {
    int32_t window = o.shift[axis] / o.window[axis], place = o.shift[axis] % o.window[axis];
    for (int32_t cell = 0; cell < o.grid[axis]; ++cell) {
        take(cell, window, place);
        if (++place == o.window[axis]) {
            place = 0;
            ++window;
        }
    }
}

// What one window, and one place inside of it, along an axis adds to a key, which is linear in both.
struct Weights {
    int64_t window, place;

    template <typename Key>
    Weights(const WindowOrder& o, int axis, const Key& key) {
        int32_t zero[3] = {0, 0, 0}, one[3] = {0, 0, 0};
        one[axis] = 1;
        window = key(o, one, zero);
        place = key(o, zero, one);
    }
};

// The key of one row is a sum over axes of what each coordinate adds, so it is looked up instead of divided.
struct RowsTable {
    std::vector<int64_t> part[3];

    explicit RowsTable(const WindowOrder& o) {
        for (int axis = 0; axis < 3; ++axis) {
            const Weights weights(o, axis, window_key_rows);
            part[axis].resize(o.grid[axis]);
            walk(o, axis, [&](int32_t cell, int32_t window, int32_t place) {
                part[axis][cell] = window * weights.window + place * weights.place;
            });
        }
    }

    int64_t key(const int32_t* row) const { return part[0][row[1]] + part[1][row[2]] + part[2][row[3]]; }
};

// On the snake path the line's coordinate decides the direction, and the other's parity that of the cells.
struct SnakeTable {
    struct Line {
        int64_t start, rest;
        int32_t turn;
    };
    struct Step {
        int64_t forward;
        int32_t flip;
    };
    int line_column, along_column;
    std::vector<Line> lines;
    std::vector<Step> steps;

    explicit SnakeTable(const WindowOrder& o) : line_column(o.along_y ? 3 : 2), along_column(o.along_y ? 2 : 3) {
        const int line = line_column - 1, along = along_column - 1;
        const Weights across(o, line, window_key_snake), forward(o, along, window_key_snake);
        lines.resize(o.grid[line]);
        steps.resize(o.grid[along]);
        walk(o, line, [&](int32_t cell, int32_t window, int32_t place) {
            lines[cell] = {window * across.window, place * across.place, alternate(window)};
        });
        walk(o, along, [&](int32_t cell, int32_t window, int32_t place) {
            steps[cell] = {window * forward.window + place * forward.place, alternate(place)};
        });
    }

    int64_t key(const int32_t* row) const {
        const Line& line = lines[row[line_column]];
        const Step& step = steps[row[along_column]];
        return line.start + line.turn * (step.forward + step.flip * line.rest) + row[1];
    }
};

template <typename Table>
int64_t window_keys(const int32_t* coords, int64_t n, const WindowOrder& o, int64_t* keys, int threads) {
    const Table table(o);
    int64_t outside = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : outside) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        const int32_t* row = coords + 4 * i;
        if (inside(row, o.grid)) {
            keys[i] = frame_bits(row[0]) | table.key(row);
        } else {
            ++outside;
        }
    }
    return outside;
}

PCDET_CLONES void hilbert_block(uint32_t* x, uint32_t* y, uint32_t* z, int64_t n, int depth) {
    for (uint32_t q = 1u << (depth - 1); q > 1; q >>= 1) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
            hilbert_step_first(x[i], q, q - 1);
            hilbert_step(x[i], y[i], q, q - 1);
            hilbert_step(x[i], z[i], q, q - 1);
        }
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        y[i] ^= x[i];
        z[i] ^= y[i];
        const uint32_t flip = parity_above(z[i]);
        x[i] ^= flip;
        y[i] ^= flip;
        z[i] ^= flip;
    }
}

PCDET_CLONES void morton_block(const uint32_t* high, const uint32_t* middle, const uint32_t* low, const int32_t* coords,
                               int64_t n, int64_t* keys) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        keys[i] = frame_bits(coords[4 * i]) | morton_encode(high[i], middle[i], low[i]);
    }
}

PCDET_CLONES void unmorton_block(const int64_t* keys, int64_t n, uint32_t* high, uint32_t* middle, uint32_t* low) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) morton_decode(keys[i] & kCellMask, high[i], middle[i], low[i]);
}

PCDET_CLONES void unhilbert_block(uint32_t* x, uint32_t* y, uint32_t* z, int64_t n, int depth) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) hilbert_unflip(x[i], y[i], z[i]);
    for (uint32_t q = 2; q != 1u << depth; q <<= 1) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) hilbert_step_back(x[i], y[i], z[i], q);
    }
}

}  // namespace

// Curves: 0 Morton with z lowest, 1 Morton with x lowest, 2 Hilbert. coords [n, 4], keys [n]; the return value is the
// status (0), and *bad the number of rows outside the grid, whose keys are undefined.
PCDET_API int pcdet_curve_encode_cpu(const int32_t* coords, int64_t n, const int32_t* grid, int curve, int depth,
                                     int64_t* keys, int64_t* bad, int threads) {
    int64_t outside = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : outside) schedule(static)
    for (int64_t start = 0; start < n; start += kBlock) {
        const int64_t count = std::min(kBlock, n - start);
        const int32_t* rows = coords + 4 * start;
        uint32_t x[kBlock], y[kBlock], z[kBlock];
        for (int64_t i = 0; i < count; ++i) {
            outside += !inside(rows + 4 * i, grid);
            z[i] = static_cast<uint32_t>(rows[4 * i + 1]);
            y[i] = static_cast<uint32_t>(rows[4 * i + 2]);
            x[i] = static_cast<uint32_t>(rows[4 * i + 3]);
        }
        if (curve == 2) hilbert_block(x, y, z, count, depth);
        const bool x_lowest = curve == 1;
        morton_block(x_lowest ? z : x, y, x_lowest ? x : z, rows, count, keys + start);
    }
    *bad = outside;
    return 0;
}

PCDET_API int pcdet_curve_decode_cpu(const int64_t* keys, int64_t n, int curve, int depth, int32_t* coords, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < n; start += kBlock) {
        const int64_t count = std::min(kBlock, n - start);
        uint32_t high[kBlock], middle[kBlock], low[kBlock];
        unmorton_block(keys + start, count, high, middle, low);
        if (curve == 2) unhilbert_block(high, middle, low, count, depth);
        int32_t* rows = coords + 4 * start;
        for (int64_t i = 0; i < count; ++i) {
            rows[4 * i] = static_cast<int32_t>(keys[start + i] >> kBatchShift);
            rows[4 * i + 1] = static_cast<int32_t>(curve == 1 ? high[i] : low[i]);
            rows[4 * i + 2] = static_cast<int32_t>(middle[i]);
            rows[4 * i + 3] = static_cast<int32_t>(curve == 1 ? low[i] : high[i]);
        }
    }
    return 0;
}

PCDET_API int pcdet_window_keys_cpu(const int32_t* coords, int64_t n, const WindowOrder* order, int64_t* keys,
                                    int64_t* bad, int threads) {
    *bad = order->snake ? window_keys<SnakeTable>(coords, n, *order, keys, threads)
                        : window_keys<RowsTable>(coords, n, *order, keys, threads);
    return 0;
}
