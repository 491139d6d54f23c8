// Octrees on the CPU: the occupied leaves of points by a radix sort, the nodes of a depth from those above, and tables of
// neighbours depth by depth. Every step takes a time in proportion to what it writes.
#include "huge_pages.h"
#include "octree.h"
#include "radix_sort.h"

#include <algorithm>
#include <cstring>
#include <memory>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

using namespace pcdet;

constexpr int64_t kChunk = 1024;  // parents of one task

// How many threads are worth their start for the children of so many parents: at most depths there are few.
int useful_threads(int64_t parents, int threads) {
    return static_cast<int>(std::clamp<int64_t>(parents / kChunk, 1, threads));
}

// Points that follow each other and lie in one cell, as most do in a scanner's order: one key for all of them.
template <typename Key>
struct Runs {
    std::unique_ptr<Key[]> keys;
    std::unique_ptr<int32_t[]> starts;  // first point of each; after the last one the number of points
    int64_t count;
};

// cells: keys of the cells of points within their clouds. No run goes on into the next cloud.
template <typename Key>
Runs<Key> runs_of(const int64_t* cells, int64_t n, const int64_t* starts, int64_t clouds, int shift) {
    Runs<Key> runs{std::unique_ptr<Key[]>(new Key[n]), std::unique_ptr<int32_t[]>(new int32_t[n + 1]), 0};
    for (int64_t cloud = 0; cloud < clouds; ++cloud) {
        const int64_t first = starts[cloud], last = cloud + 1 < clouds ? starts[cloud + 1] : n;
        const uint64_t above = static_cast<uint64_t>(cloud) << shift;
        int64_t before = -1;  // no cell's key
        for (int64_t i = first; i < last; ++i) {  // without branches: whether a run ends is hard to foresee
            runs.keys[runs.count] = static_cast<Key>(above | static_cast<uint64_t>(cells[i]));
            runs.starts[runs.count] = static_cast<int32_t>(i);
            runs.count += cells[i] != before;
            before = cells[i];
        }
    }
    runs.starts[runs.count] = static_cast<int32_t>(n);
    return runs;
}

// Leaves in ascending order, and the leaf of each point, which takes the place of the key of its cell; returns how many
// leaves there are.
template <typename Key>
int64_t rank_points(int64_t n, const int64_t* starts, int64_t clouds, int shift, int bits, int64_t* leaves,
                    int64_t* point_leaf) {
    const Runs<Key> runs = runs_of<Key>(point_leaf, n, starts, clouds, shift);
    const Key low = static_cast<Key>((uint64_t(1) << shift) - 1);
    std::unique_ptr<KeyedRow<Key>[]> sorted(new KeyedRow<Key>[runs.count]);
    std::unique_ptr<int32_t[]> leaf_of_run(new int32_t[runs.count]);
    const auto make = [&](int64_t i) { return runs.keys[i]; };
    radix_sort_rows<Key>(runs.count, bits, make, [&](int64_t place, int32_t row, Key key) { sorted[place] = {key, row}; });
    int64_t count = 0;
    for (int64_t i = 0; i < runs.count; ++i) {
        const Key key = sorted[i].key;
        if (i == 0 || key != sorted[i - 1].key) {
            const int64_t frame = static_cast<int64_t>(static_cast<uint64_t>(key) >> shift);
            leaves[count++] = frame << kBatchShift | static_cast<int64_t>(key & low);
        }
        leaf_of_run[sorted[i].row] = static_cast<int32_t>(count - 1);
    }
    for (int64_t i = 0; i < runs.count; ++i)
        std::fill(point_leaf + runs.starts[i], point_leaf + runs.starts[i + 1], int64_t(leaf_of_run[i]));
    return count;
}

// Nodes that are the children of parents first to last - 1.
void grow(const int64_t* above, const int64_t* here, int64_t n, int64_t first, int64_t last, int64_t* keys,
          int32_t* children, int64_t* rows) {
    int64_t next = std::lower_bound(here, here + n, eldest_child(above[first])) - here;
    for (int64_t parent = first; parent < last; ++parent) {
        const int64_t key = eldest_child(above[parent]);
        for (int octant = 0; octant < kOctants; ++octant) {
            const int64_t node = kOctants * parent + octant;
            const bool occupied = next < n && here[next] == key + octant;
            keys[node] = key + octant;
            children[node] = occupied ? static_cast<int32_t>(next) : -1;
            if (occupied) rows[next++] = node;
        }
    }
}

constexpr int kRows = kOctants * kNeighbours;  // what one parent adds to a table

// The 8 rows of the table that belong to the children of one parent, and one number more that means nothing; above: the
// parent's own row.
inline void write_children(const int64_t* above, const int32_t* children, int64_t n, int64_t* rows, bool& wrong) {
    int64_t eldest[kNeighbours], cube[4 * 4 * 4 + 1];
    for (int i = 0; i < kNeighbours; ++i) eldest[i] = eldest_of_neighbour(above[i], children, n, wrong);
    for (int x = 0; x < 4; ++x)
        for (int y = 0; y < 4; ++y)
            for (int z = 0; z < 4; ++z) cube[16 * x + 4 * y + z] = node_of_cell(eldest[column_of(x, y, z)], x, y, z);
    cube[64] = -1;
    for (int octant = 0; octant < kOctants; ++octant) {
        const int64_t* corner = cube + 16 * (octant >> 2) + 4 * (octant >> 1 & 1) + (octant & 1);
        for (int line = 0; line < 9; ++line, rows += 3)  // 3 numbers by a move of 4: the next line covers the last one
            std::memcpy(rows, corner + 16 * (line / 3) + 4 * (line % 3), 4 * sizeof(int64_t));
    }
}

// A copy past the caches, into which tables do not fit: the memory is not read before it is written.
inline void stream(const int64_t* from, int64_t count, int64_t* to) {
#if defined(__SSE2__)
    if (reinterpret_cast<uintptr_t>(to) % sizeof(__m128i) == 0 && count % 2 == 0) {
        for (int64_t i = 0; i < count; i += 2)
            _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
        return;
    }
#endif
    std::copy(from, from + count, to);
}

// The rows of the children of parents first to last - 1; returns how many of these are wrong or have a wrong neighbour.
PCDET_CLONES int64_t write_tables(const int64_t* above, const int32_t* children, int64_t n, const int64_t* parents,
                                  int64_t first, int64_t last, int64_t* table) {
    int64_t faults = 0;
    for (int64_t i = first; i < last; ++i) {
        bool fault = parents[i] < 0 || parents[i] >= n;
        if (!fault) {
            alignas(64) int64_t rows[kRows + 1];
            write_children(above + kNeighbours * parents[i], children, n, rows, fault);
            stream(rows, kRows, table + kRows * i);
        }
        faults += fault;
    }
    return faults;
}

}  // namespace

// points: [n, 3], those of each cloud side by side from starts [clouds] on; wrap: +1 falls into the first cell.
// leaves, point_leaf: [n], of which the first counts[0] leaves are written; counts: [2], leaves and points outside of
// [-1, 1]. Where there are points outside, the rest means nothing.
PCDET_API int pcdet_octree_leaves_cpu(const float* points, int64_t n, const int64_t* starts, int64_t clouds, int32_t depth,
                                      int32_t wrap, int64_t* leaves, int64_t* point_leaf, int64_t* counts, int threads) {
    int64_t outside = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : outside)
    for (int64_t i = 0; i < n; ++i) {
        const bool here = !is_outside(points + 3 * i);
        point_leaf[i] = here ? key_of_point(points + 3 * i, depth, wrap) : 0;
        outside += !here;
    }
    counts[1] = outside;
    if (outside) return 0;
    const int shift = 3 * depth, bits = shift + bits_below(clouds);
    counts[0] = bits <= 32 ? rank_points<uint32_t>(n, starts, clouds, shift, bits, leaves, point_leaf)
                           : rank_points<uint64_t>(n, starts, clouds, shift, bits, leaves, point_leaf);
    return 0;
}

// keys: [n], ascending; parents: [n], of which the first count[0] are written: those of the keys, each once.
PCDET_API int pcdet_octree_parents_cpu(const int64_t* keys, int64_t n, int64_t* parents, int64_t* count, int) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t parent = parent_of(keys[i]);
        if (found == 0 || parents[found - 1] != parent) parents[found++] = parent;
    }
    *count = found;
    return 0;
}

// above: [m], here: [n], ascending keys of the occupied nodes of two depths; keys, children: [8 m]; rows: [n].
PCDET_API int pcdet_octree_grow_cpu(const int64_t* above, int64_t m, const int64_t* here, int64_t n, int64_t* keys,
                                    int32_t* children, int64_t* rows, int threads) {
    const int team = useful_threads(m, threads);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t first = 0; first < m; first += kChunk)
        grow(above, here, n, first, std::min(first + kChunk, m), keys, children, rows);
    return 0;
}

// above: [n, 27], neighbours of the n nodes of a depth, and children: [n]; parents: [m], rows of its occupied nodes;
// table: [8 m, 27]; wrong: [1], counts the parents that are no nodes or have neighbours that are none.
PCDET_API int pcdet_octree_neighbours_cpu(const int64_t* above, const int32_t* children, int64_t n, const int64_t* parents,
                                          int64_t m, int64_t* table, int64_t* wrong, int threads) {
    prefer_huge_pages(table, kRows * m * static_cast<int64_t>(sizeof(int64_t)));
    int64_t faults = 0;
    const int team = useful_threads(m, threads);
#pragma omp parallel for num_threads(team) schedule(static) reduction(+ : faults)
    for (int64_t first = 0; first < m; first += kChunk)
        faults += write_tables(above, children, n, parents, first, std::min(first + kChunk, m), table);
    *wrong = faults;
    return 0;
}
