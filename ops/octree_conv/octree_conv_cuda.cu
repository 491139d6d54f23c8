// Depth-wise convolution over neighbour tables on CUDA. Forward: a thread is one channel of one row. Gradient of the weights:
// a thread is one weight over a chunk of rows, and the chunks are added in order, so that results repeat.
#include "cuda_launch.h"
#include "octree_conv.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;

template <typename T>
__global__ void forward(const T* features, const T* weights, const int64_t* table, DepthwiseSizes s, T* out) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t at = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; at < s.m * s.c; at += stride) {
        out[at] = depthwise_output(features, weights, table + at / s.c * s.k, s, at % s.c);
    }
}

template <typename T>
__global__ void partial_grads(const T* grad, const T* features, const int64_t* table, DepthwiseSizes s, int64_t chunk,
                              int64_t chunks, T* partial) {
    const int64_t at = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x, size = s.k * s.c;
    if (at >= size * chunks) return;
    const int64_t number = at / size, weight = at % size, first = number * chunk;
    const int64_t last = first + chunk < s.m ? first + chunk : s.m;
    partial[at] = depthwise_weight_grad(grad, features, table, s, first, last, weight / s.c, weight % s.c);
}

template <typename T>
__global__ void add_partial(const T* partial, int64_t size, int64_t chunks, T* out) {
    const int64_t at = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (at >= size) return;
    T sum = 0;
    for (int64_t i = 0; i < chunks; ++i) sum += partial[i * size + at];
    out[at] = sum;
}

int64_t blocks_for(int64_t n) { return (n + kThreads - 1) / kThreads; }

template <typename T>
int launch_forward(const T* features, const T* weights, const int64_t* table, DepthwiseSizes s, T* out, cudaStream_t stream) {
    const int64_t blocks = blocks_for(s.m * s.c) < kMostBlocks ? blocks_for(s.m * s.c) : kMostBlocks;
    if (blocks > 0) {
        start_kernel(forward<T>, static_cast<unsigned>(blocks), kThreads, 0, stream, features, weights, table, s, out);
    }
    return cudaGetLastError();
}

// partial: [chunks, k, c]
template <typename T>
int launch_weight_grad(const T* grad, const T* features, const int64_t* table, DepthwiseSizes s, int64_t chunks, T* partial,
                       T* out, cudaStream_t stream) {
    const int64_t size = s.k * s.c, chunk = (s.m + chunks - 1) / chunks;
    if (size == 0) return 0;
    if (blocks_for(size * chunks) > kMostBlocks) return cudaErrorInvalidConfiguration;
    start_kernel(partial_grads<T>, static_cast<unsigned>(blocks_for(size * chunks)), kThreads, 0, stream, grad,
                 features, table, s, chunk, chunks, partial);
    start_kernel(add_partial<T>, static_cast<unsigned>(blocks_for(size)), kThreads, 0, stream, partial, size, chunks,
                 out);
    return cudaGetLastError();
}

}  // namespace

#define PCDET_OCTREE_CONV(T, name)                                                                                      \
    PCDET_API int pcdet_octree_conv_forward_##name##_cuda(const T* features, const T* weights, const int64_t* table,    \
                                                          int64_t m, int64_t k, int64_t c, T* out, void* stream) {      \
        return launch_forward<T>(features, weights, table, DepthwiseSizes{m, k, c}, out,                                \
                                 static_cast<cudaStream_t>(stream));                                                    \
    }                                                                                                                   \
    PCDET_API int pcdet_octree_conv_weight_grad_##name##_cuda(const T* grad, const T* features, const int64_t* table,   \
                                                              int64_t m, int64_t k, int64_t c, int64_t chunks,          \
                                                              T* partial, T* out, void* stream) {                       \
        return launch_weight_grad<T>(grad, features, table, DepthwiseSizes{m, k, c}, chunks, partial, out,              \
                                     static_cast<cudaStream_t>(stream));                                                \
    }

PCDET_OCTREE_CONV(float, float32)
PCDET_OCTREE_CONV(double, float64)
