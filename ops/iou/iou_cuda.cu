// CUDA side of the overlaps: a block computes its boxes' footprints once, then a thread each pair.
#include "cuda_launch.h"
#include "iou.h"

namespace {

using namespace pcdet;

constexpr int kTile = 32;  // rows and columns of the matrix that a block fills
constexpr int kRows = 8;   // of its threads
constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 65535;

template <typename T>
__global__ void iou_matrix(const T* a, int64_t n, const T* b, int64_t m, int kind, T* out) {
    __shared__ Footprint first[kTile], second[kTile];
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kTile;
    const int lane = threadIdx.x, line = threadIdx.y;
    const int64_t step = static_cast<int64_t>(gridDim.y) * kTile;
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * kTile; row < n; row += step) {
        __syncthreads();  // the tile before is read to its end
        if (line == 0 && row + lane < n) first[lane] = footprint(a + 7 * (row + lane));
        if (line == 1 && column + lane < m) second[lane] = footprint(b + 7 * (column + lane));
        __syncthreads();
        for (int i = line; i < kTile; i += kRows) {
            if (row + i < n && column + lane < m) {
                out[(row + i) * m + column + lane] = static_cast<T>(overlap(first[i], second[lane], kind));
            }
        }
    }
}

template <typename T>
__global__ void iou_paired(const T* a, const T* b, int64_t n, int kind, T* out) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        out[i] = static_cast<T>(overlap(footprint(a + 7 * i), footprint(b + 7 * i), kind));
    }
}

template <typename T>
int launch_matrix(const T* a, int64_t n, const T* b, int64_t m, int kind, T* out, void* stream) {
    if (n == 0 || m == 0) return 0;
    const int64_t rows = (n + kTile - 1) / kTile, columns = (m + kTile - 1) / kTile;
    const dim3 blocks(static_cast<unsigned>(columns), static_cast<unsigned>(rows < kMaxBlocks ? rows : kMaxBlocks));
    start_kernel(iou_matrix<T>, blocks, dim3(kTile, kRows), 0, static_cast<cudaStream_t>(stream), a, n, b, m, kind,
                 out);
    return cudaGetLastError();
}

template <typename T>
int launch_paired(const T* a, const T* b, int64_t n, int kind, T* out, void* stream) {
    if (n == 0) return 0;
    const int64_t blocks = (n + kThreads - 1) / kThreads;
    start_kernel(iou_paired<T>, static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0,
                 static_cast<cudaStream_t>(stream), a, b, n, kind, out);
    return cudaGetLastError();
}

}  // namespace

// Device pointers; otherwise as on the CPU.
#define PCDET_IOU(T, name)                                                                                           \
    PCDET_API int pcdet_iou_matrix_##name##_cuda(const T* a, int64_t n, const T* b, int64_t m, int kind, T* out,     \
                                                 void* stream) {                                                     \
        return launch_matrix(a, n, b, m, kind, out, stream);                                                         \
    }                                                                                                                \
    PCDET_API int pcdet_iou_paired_##name##_cuda(const T* a, const T* b, int64_t n, int kind, T* out, void* stream) { \
        return launch_paired(a, b, n, kind, out, stream);                                                            \
    }

PCDET_IOU(float, float32)
PCDET_IOU(double, float64)
