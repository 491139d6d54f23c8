// DSVT's rotated sets on the CPU: voxels are counted and gathered window by window; then each window marks its cells in
// a bit map, once along y and once along x, and deals its voxels out to the slots in the order of the bits, by the pattern
// for as many voxels.
#include "rotated_sets.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

namespace {

using namespace pcdet;

constexpr int64_t kDenseCells = 2048;  // of a window, up to which it is quickest to look at every word of its bit map

// A voxel of a window.
struct Member {
    int32_t row;
    int32_t cell[2];  // in each direction
};

// What a coordinate along one axis adds to the number of the window and to the cells inside, and its place inside.
struct Share {
    int32_t window, cell[2], inside;
};

std::vector<Share> shares(const Windows& w, int axis) {
    std::vector<Share> table(w.grid[axis]);
    for (int32_t c = 0; c < w.grid[axis]; ++c) {
        int32_t place[3] = {0, 0, 0}, inside[3] = {0, 0, 0};
        place[axis] = window_along(w, axis, c);
        inside[axis] = inside_along(w, axis, c);
        table[c] = {static_cast<int32_t>(window_number(w, 0, place)),
                    {cell_inside(w, 0, inside), cell_inside(w, 1, inside)},
                    inside[axis]};
    }
    return table;
}

struct Range {
    int64_t begin, end;
};

Range part(int64_t n, int number, int parts) { return {n * number / parts, n * (number + 1) / parts}; }

// The tables of all axes, and what goes with them.
struct Grid {
    const Windows& w;
    int64_t frames;
    std::vector<Share> z, y, x;

    Grid(const Windows& windows, int64_t frames)
        : w(windows), frames(frames), z(shares(w, 0)), y(shares(w, 1)), x(shares(w, 2)) {}

    int64_t windows_of_frame() const { return int64_t(w.count[0]) * w.count[1] * w.count[2]; }
};

// Window and place inside of the rows of a range, and how many each window has; returns the rows outside the grid.
int64_t locate(const Grid& grid, const int32_t* coords, Range rows, int64_t* number, int32_t* inside,
               uint32_t* counts) {
    const Share *z = grid.z.data(), *y = grid.y.data(), *x = grid.x.data();
    const uint32_t depth = grid.w.grid[0], height = grid.w.grid[1], width = grid.w.grid[2];
    const int64_t frames = grid.frames, windows = grid.windows_of_frame();
    int64_t outside = 0;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
        const uint32_t b = coords[4 * i], cz = coords[4 * i + 1], cy = coords[4 * i + 2], cx = coords[4 * i + 3];
        if ((b >= frames) | (cz >= depth) | (cy >= height) | (cx >= width)) {  // also the negative ones
            ++outside;
            continue;
        }
        const Share sz = z[cz], sy = y[cy], sx = x[cx];
        const int64_t window = b * windows + sz.window + sy.window + sx.window;
        inside[3 * i] = sz.inside;
        inside[3 * i + 1] = sy.inside;
        inside[3 * i + 2] = sx.inside;
        number[i] = window;
        ++counts[window];
    }
    return outside;
}

// Put the rows of a range to their windows, at the places that are free next.
void gather(const Grid& grid, const int32_t* coords, Range rows, const int64_t* number, uint32_t* places,
            Member* members) {
    const Share *z = grid.z.data(), *y = grid.y.data(), *x = grid.x.data();
    for (int64_t i = rows.begin; i < rows.end; ++i) {
        const int32_t* row = coords + 4 * i;
        const Share sz = z[row[1]], sy = y[row[2]], sx = x[row[3]];
        members[places[number[i]]++] = {static_cast<int32_t>(i),
                                        {sz.cell[0] + sy.cell[0] + sx.cell[0], sz.cell[1] + sy.cell[1] + sx.cell[1]}};
    }
}

// A set of cells of a window that gives them back in ascending order. `sparse`: empty stretches of 4096 cells cost next
// to nothing.
template <bool sparse>
class CellMap {
public:
    explicit CellMap(int64_t cells)
        : words_((cells + 63) / 64), some_((words_.size() + 63) / 64), rows_(new int32_t[cells]) {}

    // False where the cell is taken already.
    bool put(int32_t cell, int32_t row) {
        const uint64_t bit = uint64_t(1) << (cell & 63), word = words_[cell >> 6];
        if (sparse) some_[cell >> 12] |= uint64_t(1) << (cell >> 6 & 63);
        words_[cell >> 6] = word | bit;
        rows_[cell] = row;
        return !(word & bit);
    }

    // Rows in ascending order of their cells; empties the map.
    template <typename Take>
    void drain(const Take& take) {
        const auto drain_word = [&](size_t w) {
            for (uint64_t word = std::exchange(words_[w], 0); word; word &= word - 1) {
                take(rows_[w * 64 + __builtin_ctzll(word)]);
            }
        };
        if (!sparse) {
            for (size_t w = 0; w < words_.size(); ++w) drain_word(w);
            return;
        }
        for (size_t s = 0; s < some_.size(); ++s) {
            for (uint64_t some = std::exchange(some_[s], 0); some; some &= some - 1) {
                drain_word(s * 64 + __builtin_ctzll(some));
            }
        }
    }

private:
    std::vector<uint64_t> words_, some_;
    std::unique_ptr<int32_t[]> rows_;  // not initialized: read only where a bit is set
};

// How the slots of a window share out its voxels, which depends on nothing but how many there are.
struct Pattern {
    std::vector<int32_t> rank;   // of the voxel in each slot
    std::vector<int32_t> first;  // slot of each rank
    std::unique_ptr<bool[]> repeats;

    void make(int64_t voxels, int64_t slots) {
        rank.resize(slots);
        first.resize(voxels);
        repeats.reset(new bool[slots]);
        int64_t slot = 0;
        for (int64_t r = 0; r < voxels; ++r) {
            first[r] = static_cast<int32_t>(slot);
            for (const int64_t end = first_slot(r + 1, voxels, slots); slot < end; ++slot) {
                rank[slot] = static_cast<int32_t>(r);
                repeats[slot] = slot > first[r];
            }
        }
    }
};

// Patterns of a thread; those of small windows are kept, since most windows have as many voxels as another one.
class Patterns {
public:
    explicit Patterns(int64_t set_size) : set_size_(set_size), kept_(kKept + 1) {}

    const Pattern& of(int64_t voxels) {
        const int64_t slots = sets_of(voxels, set_size_) * set_size_;
        Pattern& pattern = kept_[voxels < kKept && slots < kKept ? voxels : kKept];
        if (static_cast<int64_t>(pattern.first.size()) != voxels) pattern.make(voxels, slots);
        return pattern;
    }

private:
    static constexpr int64_t kKept = 512;
    int64_t set_size_;
    std::vector<Pattern> kept_;
};

// Deals the voxels of a window, whose rows come in the order of a direction, out to its slots.
struct Dealer {
    const Pattern& pattern;
    int64_t next;  // the window's first slot
    int64_t* index;
    bool* repeats;
    int64_t* slot;

    void operator()(const int32_t* rows) const {
        const int64_t slots = pattern.rank.size(), voxels = pattern.first.size();
        const int32_t* rank = pattern.rank.data();
        int64_t* to = index + next;
        for (int64_t k = 0; k < slots; ++k) to[k] = rows[rank[k]];
        std::copy_n(pattern.repeats.get(), slots, repeats + next);
        for (int64_t r = 0; r < voxels; ++r) slot[rows[r]] = next + pattern.first[r];
    }
};

// The rows of a window in the order of their cells in one direction; those in one cell keep their order.
template <bool sparse>
void order_rows(const Member* members, int64_t count, int direction, CellMap<sparse>& map, int32_t* rows) {
    bool ascending = true;  // as voxels that come line by line are
    for (int64_t i = 1; i < count; ++i) ascending &= members[i - 1].cell[direction] < members[i].cell[direction];
    if (ascending) {
        for (int64_t i = 0; i < count; ++i) rows[i] = members[i].row;
        return;
    }
    bool distinct = true;
    for (int64_t i = 0; i < count; ++i) distinct &= map.put(members[i].cell[direction], members[i].row);
    int64_t next = 0;
    map.drain([&](int32_t row) { rows[next++] = row; });
    if (distinct) return;
    std::vector<std::pair<int32_t, int32_t>> sorted(count);
    for (int64_t i = 0; i < count; ++i) sorted[i] = {members[i].cell[direction], members[i].row};
    std::sort(sorted.begin(), sorted.end());
    for (int64_t i = 0; i < count; ++i) rows[i] = sorted[i].second;
}

// All windows; see pcdet_rotated_fill_cpu.
template <bool sparse>
void fill(const Member* members, const int32_t* starts, const int32_t* first_set, int64_t n, int64_t windows,
          int64_t cells, int64_t set_size, int64_t sets, int64_t* index, bool* repeats, int64_t* slot, int threads) {
#pragma omp parallel num_threads(threads)
    {
        CellMap<sparse> map(cells);
        Patterns patterns(set_size);
        std::vector<int32_t> rows;
#pragma omp for schedule(dynamic, 64)
        for (int64_t i = 0; i < windows; ++i) {
            const int64_t voxels = starts[i + 1] - starts[i];
            if (voxels == 0) continue;
            const Pattern& pattern = patterns.of(voxels);
            if (static_cast<int64_t>(rows.size()) < voxels) rows.resize(voxels);
            for (int direction = 0; direction < 2; ++direction) {
                const int64_t base = direction * sets * set_size;
                order_rows(members + starts[i], voxels, direction, map, rows.data());
                Dealer{pattern, first_set[i] * set_size, index + base, repeats + base, slot + direction * n}(rows.data());
            }
        }
    }
}

}  // namespace

// First half: window number [n] and place inside [n, 3] (z, y, x) of each voxel, and the voxels window by window:
// members [n], which begin at starts [windows + 1], and fill the sets from first_set [windows + 1] on. totals: rows
// outside the grid (which end the work), and sets.
PCDET_API int pcdet_rotated_windows_cpu(const int32_t* coords, int64_t n, int64_t frames, const Windows* windows,
                                        int64_t set_size, int64_t* number, int32_t* inside, Member* members,
                                        int32_t* starts, int32_t* first_set, int64_t* totals, int threads) {
    const Grid grid(*windows, frames);
    const int64_t count = frames * grid.windows_of_frame();
    const int parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, 8 * n / count)));
    std::vector<uint32_t> places(parts * count);  // counts of each part, then where its members go
    int64_t outside = 0;
#pragma omp parallel for num_threads(parts) reduction(+ : outside) schedule(static, 1)
    for (int p = 0; p < parts; ++p) {
        outside += locate(grid, coords, part(n, p, parts), number, inside, places.data() + p * count);
    }
    totals[0] = outside;
    if (outside) return 0;
    int32_t next = 0, set = 0;
    for (int64_t i = 0; i < count; ++i) {
        starts[i] = next;
        first_set[i] = set;
        for (int p = 0; p < parts; ++p) next += std::exchange(places[p * count + i], next);
        set += static_cast<int32_t>(sets_of(next - starts[i], set_size));
    }
    starts[count] = next;
    first_set[count] = set;
    totals[1] = set;
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int p = 0; p < parts; ++p) gather(grid, coords, part(n, p, parts), number, places.data() + p * count, members);
    return 0;
}

// Second half: the voxel in each slot [2, sets, set_size], whether it repeats the slot to its left, and the first slot
// of each voxel [2, n]. cells: of a window.
PCDET_API int pcdet_rotated_fill_cpu(const Member* members, const int32_t* starts, const int32_t* first_set, int64_t n,
                                     int64_t windows, int64_t cells, int64_t set_size, int64_t sets, int64_t* index,
                                     bool* repeats, int64_t* slot, int threads) {
    const auto run = cells > kDenseCells ? fill<true> : fill<false>;
    run(members, starts, first_set, n, windows, cells, set_size, sets, index, repeats, slot, threads);
    return 0;
}
