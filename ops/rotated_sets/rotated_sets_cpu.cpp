// DSVT's rotated sets on the CPU: voxels sorted window by window, once along y and once along x, and each window cut
// into sets of equal size that share out its voxels evenly.
#include "common.h"
#include "radix_sort.h"

#include <memory>
#include <vector>

namespace {

using namespace pcdet;

struct Windows {
    int32_t grid[3];    // cells, (z, y, x)
    int32_t window[3];  // cells of a window
    int32_t shift[3];   // added to the coordinates
    int32_t count[3];   // windows
};

struct AxisTable {
    std::vector<int32_t> window, rest;

    AxisTable(const Windows& w, int axis) : window(w.grid[axis]), rest(w.grid[axis]) {
        for (int32_t c = 0; c < w.grid[axis]; ++c) {
            window[c] = (c + w.shift[axis]) / w.window[axis];
            rest[c] = (c + w.shift[axis]) % w.window[axis];
        }
    }
};

// Voxels window by window, inside a window by (y, x, z) for direction 0 and by (x, y, z) for direction 1. A key is the
// window's number above `cell_bits` bits for the cell.
template <typename Key>
void sort_direction(const Windows& w, const int64_t* number, const int32_t* inside, int64_t n, int bits, int cell_bits,
                    int direction, int32_t* order, Key* sorted_windows) {
    const int major = 1 + direction, minor = 2 - direction;
    const int32_t scale_minor = w.window[0], scale_major = scale_minor * w.window[minor];
    const auto key = [&](int64_t i) {
        const int32_t* r = inside + 3 * i;
        const int32_t cell = r[major] * scale_major + r[minor] * scale_minor + r[0];
        return static_cast<Key>(number[i]) << cell_bits | static_cast<Key>(cell);
    };
    radix_sort_rows<Key>(n, bits, key, [=](int64_t place, int32_t row, Key sorted) {
        order[place] = row;
        if (sorted_windows) sorted_windows[place] = sorted >> cell_bits;
    });
}

// Sort both directions side by side; the runs of equal windows, the same for both, begin at starts[0 .. windows).
template <typename Key>
int64_t sort_both(const Windows& w, const int64_t* number, const int32_t* inside, int64_t n, int bits, int cell_bits,
                  int32_t* order, int32_t* starts, int threads) {
    std::unique_ptr<Key[]> sorted_windows(new Key[n]);
#pragma omp parallel for num_threads(threads < 2 ? threads : 2)
    for (int direction = 0; direction < 2; ++direction) {
        sort_direction<Key>(w, number, inside, n, bits, cell_bits, direction, order + direction * n,
                            direction == 0 ? sorted_windows.get() : nullptr);
    }
    int64_t windows = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (i == 0 || sorted_windows[i] != sorted_windows[i - 1]) starts[windows++] = static_cast<int32_t>(i);
    }
    starts[windows] = static_cast<int32_t>(n);
    return windows;
}

}  // namespace

// First half: window number [n], place inside [n, 3] (z, y, x), and for both directions the voxels in sorted order
// [2, n], in runs of one window that begin at starts [windows + 1]. totals: rows outside the grid (which end the work),
// windows, sets.
PCDET_API int pcdet_rotated_order_cpu(const int32_t* coords, int64_t n, int64_t frames, const Windows* windows,
                                      int64_t set_size, int64_t* number, int32_t* inside, int32_t* order,
                                      int32_t* starts, int64_t* totals, int threads) {
    const Windows w = *windows;
    const AxisTable tables[3] = {{w, 0}, {w, 1}, {w, 2}};
    int64_t outside = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : outside) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        const int32_t* row = coords + 4 * i;
        bool ok = row[0] >= 0 && row[0] < frames;
        for (int axis = 0; axis < 3; ++axis) ok = ok && row[axis + 1] >= 0 && row[axis + 1] < w.grid[axis];
        if (!ok) {
            ++outside;
            continue;
        }
        int64_t place[3];
        for (int axis = 0; axis < 3; ++axis) {
            place[axis] = tables[axis].window[row[axis + 1]];
            inside[3 * i + axis] = tables[axis].rest[row[axis + 1]];
        }
        number[i] =
            ((row[0] * static_cast<int64_t>(w.count[2]) + place[2]) * w.count[1] + place[1]) * w.count[0] + place[0];
    }
    totals[0] = outside;
    totals[1] = totals[2] = 0;
    if (outside || n == 0) return 0;
    const int64_t cells = static_cast<int64_t>(w.window[0]) * w.window[1] * w.window[2];
    const int64_t windows_limit = frames * w.count[0] * w.count[1] * w.count[2];
    const int cell_bits = bits_below(static_cast<uint64_t>(cells));
    const int bits = bits_below(static_cast<uint64_t>(windows_limit)) + cell_bits;
    totals[1] = bits <= 32 ? sort_both<uint32_t>(w, number, inside, n, bits, cell_bits, order, starts, threads)
                           : sort_both<uint64_t>(w, number, inside, n, bits, cell_bits, order, starts, threads);
    for (int64_t i = 0; i < totals[1]; ++i) totals[2] += (starts[i + 1] - starts[i] + set_size - 1) / set_size;
    return 0;
}

// Second half: the voxel in each slot [2, sets, set_size], and whether it repeats the slot to its left.
PCDET_API int pcdet_rotated_fill_cpu(const int32_t* order, const int32_t* starts, int64_t n, int64_t windows,
                                     int64_t sets, int64_t set_size, int64_t* index, bool* repeats, int threads) {
#pragma omp parallel for num_threads(threads < 2 ? threads : 2)
    for (int direction = 0; direction < 2; ++direction) {
        const int32_t* sorted = order + direction * n;
        int64_t* slot = index + direction * sets * set_size;
        bool* repeat = repeats + direction * sets * set_size;
        for (int64_t window = 0; window < windows; ++window) {
            const int64_t count = starts[window + 1] - starts[window];
            const int64_t set_count = (count + set_size - 1) / set_size, slots = set_count * set_size;
            // rank = floor(k * count / slots), stepped instead of divided
            for (int64_t set = 0, rank = starts[window], rest = 0; set < set_count; ++set) {
                int64_t previous = -1;
                for (int64_t k = 0; k < set_size; ++k, ++slot, ++repeat) {
                    *slot = sorted[rank];
                    *repeat = rank == previous;
                    previous = rank;
                    rest += count;
                    const bool step = rest >= slots;
                    rest -= step ? slots : 0;
                    rank += step;
                }
            }
        }
    }
    return 0;
}
