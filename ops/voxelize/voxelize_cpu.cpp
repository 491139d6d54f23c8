// Hard voxelisation on the CPU. Cells and the copying of points are shared between threads; which voxel a point opens or
// joins depends on the points before it, and is one pass through a hash table.
#include "point_cells.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int64_t kMostDirectCells = 1 << 19;  // whose numbers stay near the second cache
constexpr int64_t kDirectCellsPerPoint = 16;   // above, clearing the table takes longer than hashing

// The number of each cell of a small grid, -1 for those that are new.
class DirectTable {
   public:
    explicit DirectTable(int64_t cells) : numbers_(cells, -1) {}
    void prefetch(int64_t) const {}
    int32_t& find(int64_t cell) { return numbers_[cell]; }

   private:
    std::vector<int32_t> numbers_;
};

// Open addressing from cells to voxel numbers: a third full while that fits the second cache, else at most half.
template <typename Cell>
class CellTable {
   public:
    explicit CellTable(int64_t entries) {
        int bits = 8;
        while ((int64_t(1) << bits) < 2 * entries || (bits < kCachedBits && (int64_t(1) << bits) < 3 * entries)) ++bits;
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
    static constexpr int kCachedBits = 17;
    size_t home(int64_t cell) const { return (static_cast<uint64_t>(cell) * 0x9E3779B97F4A7C15ull) >> shift_; }

    std::vector<Slot> slots_;
    int shift_;
};

// Turns the cell of each point into its place, voxel * max_points + slot, or -1. Whether a point opens a voxel and
// whether the voxel has room are not branches: no processor foresees them.
template <typename Table>
int64_t assign(Table table, int64_t* places, int64_t n, int64_t max_points, int64_t max_voxels, int64_t* cells,
               int32_t* counts) {
    constexpr int64_t kAhead = 12;
    int64_t opened = 0;
    int64_t i = 0;
    for (; i < n && opened < max_voxels; ++i) {
        const int64_t cell = places[i];
        if (i + kAhead < n) table.prefetch(places[i + kAhead]);
        if (cell < 0) continue;
        int32_t& number = table.find(cell);
        const bool opens = number < 0;
        const int64_t voxel = opens ? opened : number;
        number = static_cast<int32_t>(voxel);
        cells[opened] = cell;
        const int32_t slot = opens ? 0 : counts[voxel];
        const bool kept = slot < max_points;
        counts[voxel] = slot + kept;
        opened += opens;
        places[i] = kept ? voxel * max_points + slot : -1;
    }
    for (; i < n; ++i) {  // no more voxels
        const int64_t cell = places[i];
        if (i + kAhead < n) table.prefetch(places[i + kAhead]);
        const int32_t voxel = cell < 0 ? -1 : table.find(cell);
        places[i] = voxel < 0 || counts[voxel] == max_points ? -1 : voxel * max_points + counts[voxel]++;
    }
    return opened;
}

// Points first to last - 1 to their places.
void copy_rows(const float* points, int64_t first, int64_t last, int64_t c, const int64_t* places, float* voxels) {
    for (int64_t i = first; i < last; ++i) {
        if (places[i] < 0) continue;
        const float* from = points + i * c;
        float* to = voxels + places[i] * c;
        if (c == 4) __builtin_memcpy(to, from, 4 * sizeof(float));
        else for (int64_t j = 0; j < c; ++j) to[j] = from[j];
    }
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
    const int64_t cells_of_grid = volume(*grid);
    if (cells_of_grid <= std::min(kMostDirectCells, kDirectCellsPerPoint * n)) {
        *voxels = assign(DirectTable(cells_of_grid), places, n, max_points, max_voxels, cells, counts);
    } else if (cells_of_grid <= int64_t(1) << 32) {
        *voxels = assign(CellTable<uint32_t>(max_voxels), places, n, max_points, max_voxels, cells, counts);
    } else {
        *voxels = assign(CellTable<uint64_t>(max_voxels), places, n, max_points, max_voxels, cells, counts);
    }
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
#pragma omp for schedule(static) nowait
        for (int t = 0; t < team; ++t) copy_rows(points, n * t / team, n * (t + 1) / team, c, places, voxels);
    }
    return 0;
}
