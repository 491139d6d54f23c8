// Octrees on the CPU: the occupied leaves of points by a radix sort, the nodes of a depth from those above, and tables of
// neighbours depth by depth. Every step takes a time in proportion to what it writes.
#include "octree.h"
#include "radix_sort.h"

#include <algorithm>
#include <vector>

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

// Points of clouds that follow each other, in [-1, 1], as cells at a depth.
struct CellsOfPoints {
    const float* points;
    int32_t depth, wrap;

    int64_t key(int64_t i) const { return key_of_point(points + 3 * i, depth, wrap); }
    bool outside(int64_t i) const { return is_outside(points + 3 * i); }
};

// Leaves in ascending order, and the leaf of each point; returns how many there are.
template <typename Key>
int64_t rank_points(const CellsOfPoints& cells, int64_t n, const int64_t* starts, int64_t clouds, int bits,
                    int64_t* leaves, int64_t* point_leaf) {
    const int shift = 3 * cells.depth;
    const Key low = static_cast<Key>((uint64_t(1) << shift) - 1);
    int64_t cloud = 0, count = 0;
    const auto make = [&](int64_t i) {
        while (cloud + 1 < clouds && i >= starts[cloud + 1]) ++cloud;
        return static_cast<Key>(static_cast<uint64_t>(cloud) << shift | static_cast<uint64_t>(cells.key(i)));
    };
    std::vector<KeyedRow<Key>> sorted(n);
    radix_sort_rows<Key>(n, bits, make, [&](int64_t place, int32_t row, Key key) { sorted[place] = {key, row}; });
    for (int64_t i = 0; i < n; ++i) {
        if (i == 0 || sorted[i].key != sorted[i - 1].key) {
            const int64_t frame = static_cast<int64_t>(static_cast<uint64_t>(sorted[i].key) >> shift);
            leaves[count++] = frame << kBatchShift | static_cast<int64_t>(sorted[i].key & low);
        }
        point_leaf[sorted[i].row] = count - 1;
    }
    return count;
}

// Nodes that are the children of parents first to last - 1.
void grow(const int64_t* above, const int64_t* here, int64_t n, int64_t first, int64_t last, int64_t* keys, int32_t* children) {
    int64_t next = std::lower_bound(here, here + n, eldest_child(above[first])) - here;
    for (int64_t parent = first; parent < last; ++parent) {
        const int64_t key = eldest_child(above[parent]);
        for (int octant = 0; octant < kOctants; ++octant) {
            const int64_t node = kOctants * parent + octant;
            const bool occupied = next < n && here[next] == key + octant;
            keys[node] = key + octant;
            children[node] = occupied ? static_cast<int32_t>(next) : -1;
            next += occupied;
        }
    }
}

// The 8 rows of the table that belong to the children of one parent.
void write_children(const int64_t* above, const int32_t* children, int64_t n, int64_t* rows, bool& wrong) {
    int64_t cube[4][4][4];
    for (int x = 0; x < 4; ++x)
        for (int y = 0; y < 4; ++y)
            for (int z = 0; z < 4; ++z) cube[x][y][z] = node_of_cell(above, children, n, x, y, z, wrong);
    for (int octant = 0; octant < kOctants; ++octant) {
        for (int x = 0; x < 3; ++x)
            for (int y = 0; y < 3; ++y) {
                const int64_t* line = &cube[(octant >> 2) + x][(octant >> 1 & 1) + y][octant & 1];
                for (int z = 0; z < 3; ++z) *rows++ = line[z];
            }
    }
}

// A copy past the caches, into which tables do not fit: the memory is not read before it is written.
void stream(const int64_t* from, int64_t count, int64_t* to) {
#if defined(__SSE2__)
    if (reinterpret_cast<uintptr_t>(to) % sizeof(__m128i) == 0 && count % 2 == 0) {
        for (int64_t i = 0; i < count; i += 2)
            _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
        return;
    }
#endif
    std::copy(from, from + count, to);
}

}  // namespace

// points: [n, 3], those of each cloud side by side from starts [clouds] on; wrap: +1 falls into the first cell.
// leaves, point_leaf: [n], of which the first counts[0] leaves are written; counts: [2], leaves and points outside of
// [-1, 1]. Where there are points outside, nothing else is written.
PCDET_API int pcdet_octree_leaves_cpu(const float* points, int64_t n, const int64_t* starts, int64_t clouds, int32_t depth,
                                      int32_t wrap, int64_t* leaves, int64_t* point_leaf, int64_t* counts, int threads) {
    const CellsOfPoints cells{points, depth, wrap};
    int64_t outside = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : outside)
    for (int64_t i = 0; i < n; ++i) outside += cells.outside(i);
    counts[1] = outside;
    if (outside) return 0;
    const int bits = 3 * depth + bits_below(clouds);
    counts[0] = bits <= 32 ? rank_points<uint32_t>(cells, n, starts, clouds, bits, leaves, point_leaf)
                           : rank_points<uint64_t>(cells, n, starts, clouds, bits, leaves, point_leaf);
    return 0;
}

// above: [m], here: [n], ascending keys of the occupied nodes of two depths; keys, children: [8 m].
PCDET_API int pcdet_octree_grow_cpu(const int64_t* above, int64_t m, const int64_t* here, int64_t n, int64_t* keys,
                                    int32_t* children, int threads) {
    const int team = useful_threads(m, threads);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t first = 0; first < m; first += kChunk)
        grow(above, here, n, first, std::min(first + kChunk, m), keys, children);
    return 0;
}

// above: [n, 27], neighbours of the n nodes of a depth, and children: [n]; parents: [m], rows of its occupied nodes;
// table: [8 m, 27]; wrong: [1], counts the parents that are no nodes or have neighbours that are none.
PCDET_API int pcdet_octree_neighbours_cpu(const int64_t* above, const int32_t* children, int64_t n, const int64_t* parents,
                                          int64_t m, int64_t* table, int64_t* wrong, int threads) {
    int64_t faults = 0;
    const int team = useful_threads(m, threads);
#pragma omp parallel for num_threads(team) schedule(static) reduction(+ : faults)
    for (int64_t i = 0; i < m; ++i) {
        bool fault = parents[i] < 0 || parents[i] >= n;
        if (!fault) {
            const int64_t* row = above + kNeighbours * parents[i];
            alignas(64) int64_t rows[kOctants * kNeighbours];
            write_children(row, children, n, rows, fault);
            stream(rows, kOctants * kNeighbours, table + kOctants * kNeighbours * i);
        }
        faults += fault;
    }
    *wrong = faults;
    return 0;
}
