// Causal depth-wise convolution on CUDA: one thread is one channel of kSteps steps of one sequence, with the last inputs
// (and in the backward pass, gradients) in registers. Sums are float32, in a fixed order.
#include "causal_conv1d.h"
#include "cuda_launch.h"
#include "half.h"

namespace {

using namespace pcdet;

constexpr int kSteps = 32, kThreads = 64;

struct Filter {
    const float *weight, *bias;  // [dim, width]; [dim] or null
    int64_t batch, dim, length, chunks;
    bool silu;
};

struct Place {
    int64_t b, d, first, end;  // channel, and steps from first to end
};

__device__ Place place(const Filter& filter) {
    const int64_t chunk = blockIdx.x % filter.chunks, first = chunk * kSteps;
    const int64_t end = first + kSteps < filter.length ? first + kSteps : filter.length;
    return {blockIdx.x / filter.chunks, blockIdx.y * int64_t(kThreads) + threadIdx.x, first, end};
}

// The weights of a channel and the inputs that they stand on at the moment.
template <typename T, int K>
struct Window {
    float weight[K], bias, x[K];

    __device__ Window(const Filter& filter, const SeriesView<const T>& from, const Place& at) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const int64_t t = at.first - K + k;
            weight[k] = filter.weight[at.d * K + k];
            x[k] = t >= 0 ? to_float(from.at(at.b, at.d, t).data[0]) : 0.0f;
        }
        bias = filter.bias == nullptr ? 0.0f : filter.bias[at.d];
    }
    __device__ void take(float next) { shift(x, next); }
    __device__ static void shift(float* values, float next) {
#pragma unroll
        for (int k = 0; k + 1 < K; ++k) values[k] = values[k + 1];
        values[K - 1] = next;
    }
    __device__ float sum() const {
        float total = bias;
#pragma unroll
        for (int k = 0; k < K; ++k) total += weight[k] * x[k];
        return total;
    }
};

template <typename T, int K>
__global__ void forward(Filter filter, SeriesView<const T> x, SeriesView<T> y) {
    const Place at = place(filter);
    if (at.d >= filter.dim) return;
    Window<T, K> window(filter, x, at);
    for (int64_t t = at.first; t < at.end; ++t) {
        window.take(to_float(x.at(at.b, at.d, t).data[0]));
        set(y.at(at.b, at.d, t).data[0], activate(window.sum(), filter.silu));
    }
}

// dweight, dbias: a share of each chunk of each sequence. The gradient of a step stands K - 1 outputs later.
template <typename T, int K>
__global__ void backward(Filter filter, SeriesView<const T> x, SeriesView<const T> dy, SeriesView<T> dx, float* dweight,
                         float* dbias) {
    const Place at = place(filter);
    if (at.d >= filter.dim) return;
    Window<T, K> window(filter, x, at);
    float grads[K] = {}, to_weight[K] = {}, to_bias = 0;
    for (int64_t t = at.first; t < at.end + K - 1; ++t) {
        const bool exists = t < filter.length;
        window.take(exists ? to_float(x.at(at.b, at.d, t).data[0]) : 0.0f);
        float grad = exists ? to_float(dy.at(at.b, at.d, t).data[0]) : 0.0f;
        grad *= activation_slope(window.sum(), filter.silu);
        Window<T, K>::shift(grads, grad);
        if (t < at.end) {
#pragma unroll
            for (int k = 0; k < K; ++k) to_weight[k] += grad * window.x[k];
            to_bias += grad;
        }
        if (t < at.first + K - 1) continue;
        float total = 0;
#pragma unroll
        for (int k = 0; k < K; ++k) total += window.weight[k] * grads[K - 1 - k];
        set(dx.at(at.b, at.d, t - (K - 1)).data[0], total);
    }
    const int64_t row = blockIdx.x * filter.dim + at.d;
#pragma unroll
    for (int k = 0; k < K; ++k) dweight[row * K + k] = to_weight[k];
    dbias[row] = to_bias;
}

// Untyped arguments, as they come.
struct Call {
    Filter filter;
    const void* x;
    const int64_t* strides;
    int64_t width;
    bool reverse;
    cudaStream_t stream;

    template <typename T>
    SeriesView<T> view(T* data, int i) const {
        return series_view(data, strides + 3 * i, filter.length, reverse);
    }
    template <typename T>
    SeriesView<const T> input(const void* data, int i) const {
        return view(static_cast<const T*>(data), i);
    }
    dim3 grid() const {
        return dim3(static_cast<unsigned>(filter.batch * filter.chunks),
                    static_cast<unsigned>((filter.dim + kThreads - 1) / kThreads));
    }
    bool is_covered() const {
        return filter.batch * filter.chunks < (int64_t(1) << 31) && filter.dim < kThreads * int64_t(65535);
    }
};

struct Forward : Call {
    void* y;

    template <typename T, int K>
    int launch() const {
        start_kernel(forward<T, K>, grid(), kThreads, 0, stream, filter, input<T>(x, 0), view(static_cast<T*>(y), 1));
        return cudaGetLastError();
    }
    template <typename T>
    int run() const {
        if (width == 2) return launch<T, 2>();
        if (width == 3) return launch<T, 3>();
        return width == 4 ? launch<T, 4>() : -1;
    }
};

struct Backward : Call {
    const void* dy;
    void* dx;
    float *dweight, *dbias;

    template <typename T, int K>
    int launch() const {
        start_kernel(backward<T, K>, grid(), kThreads, 0, stream, filter, input<T>(x, 0), input<T>(dy, 1),
                     view(static_cast<T*>(dx), 2), dweight, dbias);
        return cudaGetLastError();
    }
    template <typename T>
    int run() const {
        if (width == 2) return launch<T, 2>();
        if (width == 3) return launch<T, 3>();
        return width == 4 ? launch<T, 4>() : -1;
    }
};

Call call(const void* x, const float* weight, const float* bias, const int64_t* strides, int64_t batch, int64_t dim,
          int64_t length, int64_t width, int silu, int reverse, void* stream) {
    const Filter filter{weight, bias, batch, dim, length, (length + kSteps - 1) / kSteps, silu != 0};
    return {filter, x, strides, width, reverse != 0, static_cast<cudaStream_t>(stream)};
}

}  // namespace

// x, y, dy, dx are of the element type, all else float. Shapes and strides as on the CPU; dweight [batch * chunks, dim,
// width], dbias [batch * chunks, dim], chunks of 32 steps. Returns -1 for a width, or sizes, that it does not cover.
PCDET_API int pcdet_causal_conv1d_forward_cuda(const void* x, const float* weight, const float* bias,
                                               const int64_t* strides, int64_t batch, int64_t dim, int64_t length,
                                               int64_t width, int silu, int reverse, void* y, int type, void* stream) {
    if (batch * dim * length == 0) return 0;
    const Forward launch{call(x, weight, bias, strides, batch, dim, length, width, silu, reverse, stream), y};
    return launch.is_covered() ? with_type(type, launch) : -1;
}

PCDET_API int pcdet_causal_conv1d_backward_cuda(const void* x, const float* weight, const float* bias,
                                                const int64_t* strides, int64_t batch, int64_t dim, int64_t length,
                                                int64_t width, int silu, int reverse, const void* dy, void* dx,
                                                float* dweight, float* dbias, int type, void* stream) {
    if (batch * dim * length == 0) return 0;
    const Backward launch{call(x, weight, bias, strides, batch, dim, length, width, silu, reverse, stream), dy, dx,
                          dweight, dbias};
    return launch.is_covered() ? with_type(type, launch) : -1;
}
