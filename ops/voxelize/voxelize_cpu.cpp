// Hard voxelisation on the CPU. Cells and the copying of points are shared between threads; which voxel a point opens or
// joins depends on the points before it, and is one pass through a hash table.
#include "point_cells.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

// Open addressing from cells to voxel numbers.
template <typename Cell>
class CellTable {
   public:
    explicit CellTable(int64_t entries) {
        int bits = 8;
        while ((int64_t(1) << bits) < 3 * entries) ++bits;
        shift_ = 64 - bits;
        slots_.assign(size_t(1) << bits, Slot{0, -1});
    }

    void prefetch(int64_t cell) const { __builtin_prefetch(&slots_[home(cell)], 1); }

    // Where the number of a cell stands; -1 there means that the cell is new.
    int32_t& find(int64_t cell) {
        const size_t mask = slots_.size() - 1;
        size_t place = home(cell);
        while (slots_[place].number >= 0 && slots_[place].cell != static_cast<Cell>(cell)) place = (place + 1) & mask;
        slots_[place].cell = static_cast<Cell>(cell);
        return slots_[place].number;
    }

   private:
    struct Slot {
        Cell cell;
        int32_t number;
    };
    size_t home(int64_t cell) const { return (static_cast<uint64_t>(cell) * 0x9E3779B97F4A7C15ull) >> shift_; }

    std::vector<Slot> slots_;
    int shift_;
};

// Turns the cell of each point into its place, voxel * max_points + slot, or -1. Points that follow each other are often
// in one cell, which is then looked up once.
template <typename Cell>
int64_t assign(int64_t* places, int64_t n, int64_t max_points, int64_t max_voxels, int64_t* cells, int32_t* counts) {
    constexpr int64_t kAhead = 12;
    CellTable<Cell> table(max_voxels);
    int64_t opened = 0, previous = -1;
    int32_t voxel = -1;
    for (int64_t i = 0; i < n; ++i) {
        if (i + kAhead < n) table.prefetch(places[i + kAhead]);
        const int64_t cell = places[i];
        if (cell != previous) {
            previous = cell;
            voxel = -1;
            if (cell >= 0) {
                int32_t& number = table.find(cell);
                if (number < 0 && opened < max_voxels) {
                    cells[opened] = cell;
                    counts[opened] = 0;
                    number = static_cast<int32_t>(opened++);
                }
                voxel = number;
            }
        }
        places[i] = voxel < 0 || counts[voxel] == max_points ? -1 : voxel * max_points + counts[voxel]++;
    }
    return opened;
}

}  // namespace

// First half: the place [n] of each point, voxel * max_points + slot or -1 where it is dropped, the cell [max_voxels] and
// number of points [max_voxels] of each voxel in order of first appearance; *voxels is how many there are.
PCDET_API int pcdet_voxelize_assign_cpu(const float* points, int64_t n, int64_t stride, const VoxelGrid* grid,
                                        int64_t max_points, int64_t max_voxels, int64_t* places, int64_t* cells,
                                        int32_t* counts, int64_t* voxels, int threads) {
    const int team = useful_threads(n, threads);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int t = 0; t < team; ++t) {
        compute_cells(points, n * t / team, n * (t + 1) / team, stride, nullptr, *grid, places);
    }
    const bool narrow = volume(*grid) <= int64_t(1) << 32;
    *voxels = (narrow ? assign<uint32_t> : assign<uint64_t>)(places, n, max_points, max_voxels, cells, counts);
    return 0;
}

// Second half: voxels [m, max_points, c] padded with zeros, coords [m, 3] as (z, y, x).
PCDET_API int pcdet_voxelize_fill_cpu(const float* points, int64_t n, int64_t c, const VoxelGrid* grid,
                                      int64_t max_points, const int64_t* places, const int64_t* cells, int64_t m,
                                      float* voxels, int32_t* coords, int threads) {
    const CellDecoder decode(*grid);
    const int team = useful_threads(n, threads);
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(static)
        for (int t = 0; t < team; ++t) {
            const int64_t first = m * t / team, last = m * (t + 1) / team, width = max_points * c;
            std::fill_n(voxels + first * width, (last - first) * width, 0.0f);
            for (int64_t v = first; v < last; ++v) decode.inside(cells[v], coords + 3 * v);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; ++i) {
            if (places[i] < 0) continue;
            const float* from = points + i * c;
            float* to = voxels + places[i] * c;
            for (int64_t j = 0; j < c; ++j) to[j] = from[j];
        }
    }
    return 0;
}
