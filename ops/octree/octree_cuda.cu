// CUDA side of octrees: keys of points, nodes of a depth, tables of neighbours; one thread per point, node or entry.
#include "cuda_launch.h"
#include "lower_bound.h"
#include "octree.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;

unsigned blocks_for(int64_t size) {
    const int64_t blocks = (size + kThreads - 1) / kThreads;
    return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

// Keys of points with the number of their cloud; counts the points outside, whose keys mean nothing.
__global__ void point_keys(const float* points, int64_t n, const int64_t* starts, int64_t clouds, int32_t depth, int32_t wrap,
                           int64_t* keys, unsigned long long* outside) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        const float p[3] = {points[3 * i], points[3 * i + 1], points[3 * i + 2]};
        if (is_outside(p)) {
            atomicAdd(outside, 1ull);
            keys[i] = 0;
            continue;
        }
        const int64_t cloud = lower_bound(starts, 0, clouds, i + 1) - 1;  // the last one that starts at i or before
        keys[i] = cloud << kBatchShift | key_of_point(p, depth, wrap);
    }
}

__global__ void grow(const int64_t* above, int64_t nodes, const int64_t* here, int64_t n, int64_t* keys, int32_t* children,
                     int64_t* rows) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < nodes; i += step) {
        const int64_t key = eldest_child(above[i / kOctants]) + i % kOctants, place = lower_bound(here, 0, n, key);
        const bool occupied = place < n && here[place] == key;
        keys[i] = key;
        children[i] = occupied ? static_cast<int32_t>(place) : -1;
        if (occupied) rows[place] = i;
    }
}

__global__ void neighbours(const int64_t* above, const int32_t* children, int64_t n, const int64_t* parents, int64_t size,
                           int64_t* table, int64_t* wrong) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
        const int column = static_cast<int>(i % kNeighbours), octant = static_cast<int>(i / kNeighbours % kOctants);
        const int64_t parent = parents[i / (kNeighbours * kOctants)];
        const int x = (octant >> 2) + column / 9, y = (octant >> 1 & 1) + column / 3 % 3, z = (octant & 1) + column % 3;
        bool fault = parent < 0 || parent >= n;
        const int64_t node = fault ? -1 : above[kNeighbours * parent + column_of(x, y, z)];
        table[i] = node_of_cell(eldest_of_neighbour(node, children, n, fault), x, y, z);
        if (fault) *wrong = 1;
    }
}

}  // namespace

// As pcdet_octree_neighbours_cpu; wrong: [1], 1 where there is a fault, and zero before.
PCDET_API int pcdet_octree_neighbours_cuda(const int64_t* above, const int32_t* children, int64_t n, const int64_t* parents,
                                           int64_t m, int64_t* table, int64_t* wrong, void* stream) {
    const int64_t size = m * kOctants * kNeighbours;
    if (size == 0) return 0;
    start_kernel(neighbours, blocks_for(size), kThreads, 0, static_cast<cudaStream_t>(stream), above, children, n, parents,
                 size, table, wrong);
    return cudaGetLastError();
}

// points: [n, 3], those of each cloud side by side from starts [clouds] on; wrap: +1 falls into the first cell. keys: [n];
// outside: [1], zero before, counts the points outside of [-1, 1].
PCDET_API int pcdet_octree_keys_cuda(const float* points, int64_t n, const int64_t* starts, int64_t clouds, int32_t depth,
                                     int32_t wrap, int64_t* keys, int64_t* outside, void* stream) {
    if (n == 0) return 0;
    start_kernel(point_keys, blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream), points, n, starts, clouds, depth,
                 wrap, keys, reinterpret_cast<unsigned long long*>(outside));
    return cudaGetLastError();
}

// As pcdet_octree_grow_cpu.
PCDET_API int pcdet_octree_grow_cuda(const int64_t* above, int64_t m, const int64_t* here, int64_t n, int64_t* keys,
                                     int32_t* children, int64_t* rows, void* stream) {
    if (m == 0) return 0;
    start_kernel(grow, blocks_for(m * kOctants), kThreads, 0, static_cast<cudaStream_t>(stream), above, m * kOctants, here, n,
                 keys, children, rows);
    return cudaGetLastError();
}
