// Neighbours of voxels on CUDA: a thread searches one entry of the table in the sorted keys. No two keys are the same, so
// that a key which is larger by s lies s places on at most, and few steps find near neighbours.
#include "cuda_launch.h"
#include "lower_bound.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;

__global__ void find_rows(const int64_t* keys, const int64_t* order, int64_t n, const int64_t* shifts, int64_t k,
                          int64_t* table) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; entry < n * k; entry += step) {
        const int64_t i = entry / k, j = entry % k, shift = shifts[j], wanted = keys[i] + shift;
        const int64_t begin = shift >= 0 ? i : shift > -i ? i + shift : 0;
        const int64_t end = shift < 0 ? i : shift < n - 1 - i ? i + shift + 1 : n;
        const int64_t place = lower_bound(keys, begin, end, wanted);
        table[order[i] * k + j] = place < end && keys[place] == wanted ? order[place] : -1;
    }
}

}  // namespace

// As pcdet_neighbours_cpu.
PCDET_API int pcdet_neighbours_cuda(const int64_t* keys, const int64_t* order, int64_t n, const int64_t* shifts, int64_t k,
                                    int64_t* table, void* stream) {
    if (n * k == 0) return 0;
    const int64_t blocks = (n * k + kThreads - 1) / kThreads;
    start_kernel(find_rows, static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks), kThreads, 0,
                 static_cast<cudaStream_t>(stream), keys, order, n, shifts, k, table);
    return cudaGetLastError();
}
