// CUDA side of octrees: tables of neighbours, one thread an entry.
#include "cuda_launch.h"
#include "octree.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;

__global__ void neighbours(const int64_t* above, const int32_t* children, int64_t n, const int64_t* parents, int64_t size,
                           int64_t* table, int64_t* wrong) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
        const int column = static_cast<int>(i % kNeighbours), octant = static_cast<int>(i / kNeighbours % kOctants);
        const int64_t parent = parents[i / (kNeighbours * kOctants)];
        bool fault = parent < 0 || parent >= n;
        table[i] = fault ? -1
                         : node_of_cell(above + kNeighbours * parent, children, n, (octant >> 2) + column / 9,
                                        (octant >> 1 & 1) + column / 3 % 3, (octant & 1) + column % 3, fault);
        if (fault) *wrong = 1;
    }
}

}  // namespace

// As pcdet_octree_neighbours_cpu; wrong: [1], 1 where there is a fault, and zero before.
PCDET_API int pcdet_octree_neighbours_cuda(const int64_t* above, const int32_t* children, int64_t n, const int64_t* parents,
                                           int64_t m, int64_t* table, int64_t* wrong, void* stream) {
    const int64_t size = m * kOctants * kNeighbours, blocks = (size + kThreads - 1) / kThreads;
    if (size == 0) return 0;
    start_kernel(neighbours, static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks), kThreads, 0,
                 static_cast<cudaStream_t>(stream), above, children, n, parents, size, table, wrong);
    return cudaGetLastError();
}
