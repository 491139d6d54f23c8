// Voxelisation on the CPU. Cells are computed side by side; what depends on the order of points is one pass.
#include "radix_sort.h"
#include "voxelize.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

using namespace pcdet;

void compute_cells(const float* points, int64_t n, int64_t stride, const int64_t* frame, const VoxelGrid& grid,
                   int64_t* cells, int threads) {
    const int64_t volume = static_cast<int64_t>(grid.cells[0]) * grid.cells[1] * grid.cells[2];
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        const float* p = points + i * stride;
        const int64_t cell = cell_of(grid, p[0], p[1], p[2]);
        cells[i] = cell < 0 || !frame ? cell : frame[i] * volume + cell;
    }
}

// Open addressing from cells to voxel numbers; a slot is free while its number is -1.
class CellTable {
   public:
    explicit CellTable(int64_t entries) {
        int bits = 4;
        while ((int64_t(1) << bits) < 2 * entries) ++bits;
        shift_ = 64 - bits;
        mask_ = (uint64_t(1) << bits) - 1;
        slots_.assign(mask_ + 1, Slot{0, -1});
    }

    // The place of a cell's number; -1 there means that the cell is new.
    int32_t& find(int64_t cell) {
        uint64_t place = (static_cast<uint64_t>(cell) * 0x9E3779B97F4A7C15ull) >> shift_;
        while (slots_[place].number >= 0 && slots_[place].cell != cell) place = (place + 1) & mask_;
        slots_[place].cell = cell;
        return slots_[place].number;
    }

   private:
    struct Slot {
        int64_t cell;
        int32_t number;
    };
    std::vector<Slot> slots_;
    uint64_t mask_;
    int shift_;
};

struct FreeDeleter {
    void operator()(void* p) const { std::free(p); }
};

// One bit a cell, and how many bits are set before each run of 512: the rank of a cell among the occupied ones.
class OccupancyBits {
   public:
    explicit OccupancyBits(int64_t cells)
        : words_(static_cast<uint64_t*>(std::calloc((cells + 511) / 512 * 8, 8))), before_((cells + 511) / 512) {}

    bool ok() const { return words_ != nullptr; }
    void mark(int64_t cell) { words_.get()[cell >> 6] |= uint64_t(1) << (cell & 63); }

    int64_t count() {
        int64_t total = 0;
        for (size_t run = 0; run < before_.size(); ++run) {
            before_[run] = static_cast<uint32_t>(total);
            for (int i = 0; i < 8; ++i) total += __builtin_popcountll(words_.get()[8 * run + i]);
        }
        return total;
    }

    int64_t runs() const { return static_cast<int64_t>(before_.size()); }

    // Calls visit(rank, cell) for the occupied cells of a run, ascending.
    template <typename Visit>
    void each(int64_t run, const Visit& visit) const {
        int64_t rank = before_[run];
        for (int64_t word = 8 * run; word < 8 * run + 8; ++word) {
            for (uint64_t bits = words_.get()[word]; bits; bits &= bits - 1) {
                visit(rank++, 64 * word + __builtin_ctzll(bits));
            }
        }
    }

    int64_t rank(int64_t cell) const {
        const int64_t run = cell >> 9, word = cell >> 6;
        int64_t result = before_[run];
        for (int64_t i = 8 * run; i < word; ++i) result += __builtin_popcountll(words_.get()[i]);
        return result + __builtin_popcountll(words_.get()[word] & ((uint64_t(1) << (cell & 63)) - 1));
    }

   private:
    std::unique_ptr<uint64_t, FreeDeleter> words_;
    std::vector<uint32_t> before_;
};

// Replace the cell of each point by its rank among the occupied cells, and tell `write` the cell of each rank.
template <typename Write>
int rank_by_bits(int64_t* cells, int64_t n, int64_t limit, const Write& write, int64_t* ranks, int threads) {
    OccupancyBits occupied(limit);
    if (!occupied.ok()) return -1;
    for (int64_t i = 0; i < n; ++i) {
        if (cells[i] >= 0) occupied.mark(cells[i]);
    }
    *ranks = occupied.count();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t run = 0; run < occupied.runs(); ++run) occupied.each(run, write);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; ++i) {
            if (cells[i] >= 0) cells[i] = occupied.rank(cells[i]);
        }
    }
    return 0;
}

template <typename Write>
void rank_by_sorting(int64_t* cells, int64_t n, uint64_t limit, const Write& write, int64_t* ranks) {
    std::unique_ptr<int32_t[]> order(new int32_t[n]);
    const auto key = [=](int64_t i) { return cells[i] < 0 ? limit : static_cast<uint64_t>(cells[i]); };
    radix_sort_rows<uint64_t>(n, bits_below(limit + 1), key,
                              [&](int64_t place, int32_t row, uint64_t) { order[place] = row; });
    int64_t count = 0, last = -1;
    for (int64_t place = 0; place < n; ++place) {
        int64_t& cell = cells[order[place]];
        if (cell < 0) break;  // points outside come last
        if (cell != last) write(count++, last = cell);
        cell = count - 1;
    }
    *ranks = count;
}

}  // namespace

// First half of hard voxelisation: the voxel [n] and the slot [n] of each point (-1: dropped), the cell [max_voxels] and
// number of points [max_voxels] of each voxel in order of first appearance; *voxels is how many there are.
PCDET_API int pcdet_voxelize_assign_cpu(const float* points, int64_t n, int64_t stride, const VoxelGrid* grid,
                                        int64_t max_points, int64_t max_voxels, int32_t* source, int64_t* voxel_cells,
                                        int32_t* counts, int64_t* voxels, int threads) {
    std::unique_ptr<int64_t[]> cells(new int64_t[n]);
    compute_cells(points, n, stride, nullptr, *grid, cells.get(), threads);
    CellTable table(std::min(n, max_voxels));
    int64_t opened = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (cells[i] < 0) continue;
        if (opened == max_voxels) break;
        int32_t& number = table.find(cells[i]);
        if (number < 0) {
            number = static_cast<int32_t>(opened);
            voxel_cells[opened] = cells[i];
            counts[opened++] = 0;
        }
        if (counts[number] < max_points) source[number * max_points + counts[number]++] = static_cast<int32_t>(i);
        cells[i] = -1;
    }
    for (int64_t i = 0; i < n && opened == max_voxels; ++i) {  // the cap is reached: points still fill open voxels
        if (cells[i] < 0) continue;
        const int32_t number = table.find(cells[i]);
        if (number >= 0 && counts[number] < max_points) {
            source[number * max_points + counts[number]++] = static_cast<int32_t>(i);
        }
    }
    *voxels = opened;
    return 0;
}

// Second half: voxels [m, max_points, c] padded with zeros, coords [m, 3] as (z, y, x).
PCDET_API int pcdet_voxelize_fill_cpu(const float* points, int64_t c, const VoxelGrid* grid, int64_t max_points,
                                      const int32_t* source, const int64_t* voxel_cells, const int32_t* counts,
                                      int64_t m, float* voxels, int32_t* coords, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t v = 0; v < m; ++v) {
        cell_coords(*grid, voxel_cells[v], coords + 3 * v);
        float* out = voxels + v * max_points * c;
        for (int64_t slot = 0; slot < counts[v]; ++slot) {
            std::memcpy(out + slot * c, points + source[v * max_points + slot] * c, c * sizeof(float));
        }
        std::memset(out + counts[v] * c, 0, (max_points - counts[v]) * c * sizeof(float));
    }
    return 0;
}

// Dynamic voxelisation: the occupied cells in ascending order of (frame, z, y, x) as coords [<= n, 4], *voxels of them,
// and the voxel of each point [n], -1 outside.
PCDET_API int pcdet_dynamic_voxelize_cpu(const float* points, int64_t n, int64_t stride, const int64_t* frame,
                                         int64_t frames, const VoxelGrid* grid, int32_t* coords, int64_t* point_voxel,
                                         int64_t* voxels, int threads) {
    const int64_t volume = static_cast<int64_t>(grid->cells[0]) * grid->cells[1] * grid->cells[2];
    compute_cells(points, n, stride, frame, *grid, point_voxel, threads);
    const auto write_coords = [=](int64_t voxel, int64_t cell) {
        coords[4 * voxel] = static_cast<int32_t>(cell / volume);
        cell_coords(*grid, cell % volume, coords + 4 * voxel + 1);
    };
    if (frames * volume <= 1024 * n + (1 << 22)) {  // few enough cells a point to look at them all
        return rank_by_bits(point_voxel, n, frames * volume, write_coords, voxels, threads);
    }
    rank_by_sorting(point_voxel, n, static_cast<uint64_t>(frames * volume), write_coords, voxels);
    return 0;
}
