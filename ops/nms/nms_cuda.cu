// Greedy non-maximum suppression on CUDA. Candidates are taken in runs: all pairs of a run with what comes after become
// bits, side by side; then one block walks through the run in order. Memory grows with the number of boxes, not its square.
#include "cuda_launch.h"
#include "nms.h"

namespace {

using namespace pcdet;

constexpr int kWord = 64;             // boxes a word of bits
constexpr int64_t kRun = 64 * kWord;  // candidates a run
constexpr int kWalkers = 512;

// Bits of the boxes of word blockIdx.x that a box of the run removes, in masks [kRun, words]; only what comes later.
template <typename T>
__global__ void mark_pairs(const T* boxes, int64_t n, int64_t begin, int64_t words, double threshold, int kind,
                           const uint64_t* removed, uint64_t* masks) {
    __shared__ Footprint later[kWord];
    const int64_t word = begin / kWord + blockIdx.x, row = begin + static_cast<int64_t>(blockIdx.y) * kWord + threadIdx.x;
    if (word < begin / kWord + blockIdx.y) return;  // the whole block: these come earlier
    const int64_t column = word * kWord + threadIdx.x;
    if (column < n) later[threadIdx.x] = footprint(boxes + 7 * column);
    __syncthreads();
    if (row >= n) return;
    uint64_t bits = 0;
    if (!(removed[row / kWord] >> (row % kWord) & 1)) {
        const Footprint box = footprint(boxes + 7 * row);
        for (int j = 0; j < kWord && word * kWord + j < n; ++j) {
            if (word * kWord + j > row && removes(box, later[j], kind, threshold)) bits |= uint64_t(1) << j;
        }
    }
    masks[(row - begin) * words + word] = bits;
}

// One block: keeps the boxes of the run that nothing before removed, in order.
__global__ void walk(int64_t n, int64_t begin, int64_t words, int64_t most, const uint64_t* masks, uint64_t* removed,
                     int64_t* kept, int64_t* count) {
    __shared__ uint64_t inner[kWord], chosen;
    __shared__ int64_t total;
    if (threadIdx.x == 0) total = *count;
    const int64_t end = begin + kRun < n ? begin + kRun : n;
    for (int64_t first = begin; first < end; first += kWord) {
        const int64_t word = first / kWord;
        const int size = static_cast<int>(end - first < kWord ? end - first : kWord);
        if (threadIdx.x < size) inner[threadIdx.x] = masks[(first - begin + threadIdx.x) * words + word];
        __syncthreads();
        if (threadIdx.x == 0) {
            uint64_t gone = removed[word], stay = 0;
            for (int i = 0; i < size && total < most; ++i) {
                if (gone >> i & 1) continue;
                stay |= uint64_t(1) << i;
                gone |= inner[i];
                kept[total++] = first + i;
            }
            chosen = stay;
        }
        __syncthreads();
        if (total >= most) break;
        for (int64_t w = word + 1 + threadIdx.x; w < words; w += blockDim.x) {
            uint64_t bits = 0;
            for (uint64_t left = chosen; left; left &= left - 1) {
                bits |= masks[(first - begin + __ffsll(static_cast<long long>(left)) - 1) * words + w];
            }
            removed[w] |= bits;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) *count = total;
}

template <typename T>
int run_all(const T* boxes, int64_t n, double threshold, int kind, int64_t most, int64_t* kept, int64_t* count,
            uint64_t* removed, cudaStream_t stream) {
    const int64_t words = (n + kWord - 1) / kWord;
    uint64_t* masks = removed + words;
    cudaError_t status = cudaMemsetAsync(removed, 0, words * sizeof(uint64_t), stream);
    for (int64_t begin = 0; begin < n && status == cudaSuccess; begin += kRun) {
        const int64_t rows = (n - begin < kRun ? n - begin : kRun) + kWord - 1;
        const dim3 blocks(static_cast<unsigned>(words - begin / kWord), static_cast<unsigned>(rows / kWord));
        start_kernel(mark_pairs<T>, blocks, kWord, 0, stream, boxes, n, begin, words, threshold, kind, removed, masks);
        start_kernel(walk, 1, kWalkers, 0, stream, n, begin, words, most, masks, removed, kept, count);
        status = cudaGetLastError();
    }
    return status;
}

template <typename T>
int nms(const T* boxes, int64_t n, double threshold, int kind, int64_t most, int64_t* kept, int64_t* count, void* stream) {
    if (n == 0 || most == 0) return 0;
    const cudaStream_t queue = static_cast<cudaStream_t>(stream);
    const int64_t words = (n + kWord - 1) / kWord;
    uint64_t* scratch = nullptr;
    cudaError_t status = cudaMallocAsync(&scratch, words * ((n < kRun ? n : kRun) + 1) * sizeof(uint64_t), queue);
    if (status != cudaSuccess) return status;
    const int result = run_all(boxes, n, threshold, kind, most, kept, count, scratch, queue);
    status = cudaFreeAsync(scratch, queue);
    return result != 0 ? result : status;
}

}  // namespace

// Device pointers; *count must hold 0; otherwise as on the CPU.
PCDET_API int pcdet_nms_float32_cuda(const float* boxes, int64_t n, double threshold, int kind, int64_t most,
                                     int64_t* kept, int64_t* count, void* stream) {
    return nms(boxes, n, threshold, kind, most, kept, count, stream);
}

PCDET_API int pcdet_nms_float64_cuda(const double* boxes, int64_t n, double threshold, int kind, int64_t most,
                                     int64_t* kept, int64_t* count, void* stream) {
    return nms(boxes, n, threshold, kind, most, kept, count, stream);
}
