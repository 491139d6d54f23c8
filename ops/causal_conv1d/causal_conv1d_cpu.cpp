// Causal depth-wise convolution on the CPU: a task is one block of channels of one sequence, copied kSteps steps at a time
// so that kLanes channels run side by side as one vector.
#pragma GCC optimize("fp-contract=fast", "no-thread-jumps")
#include "causal_conv1d.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int kSteps = 64;

template <typename T>
struct Filter {
    const T *weight, *bias;  // [dim, width]; [dim] or null
    int64_t batch, dim, length;
    int width;
    bool silu;
    int64_t blocks() const { return (dim + kLanes - 1) / kLanes; }
    int64_t chunks() const { return (length + kSteps - 1) / kSteps; }
    int rows(int64_t d) const { return static_cast<int>(std::min<int64_t>(kLanes, dim - d)); }
};

// The weights of a block of channels as [width][kLanes].
template <typename T>
void load_weights(const Filter<T>& filter, int64_t d, int rows, Lanes<T>* to) {
    for (int k = 0; k < filter.width; ++k)
        for (int w = 0; w < kLanes; ++w) to[k][w] = w < rows ? filter.weight[(d + w) * filter.width + k] : T(0);
}

template <typename T>
inline __attribute__((always_inline)) void convolve_by(const Lanes<T>* x, const Lanes<T>* weight, const Lanes<T>& bias,
                                                       int width, int steps, Lanes<T>* y) {
    for (int w = 0; w < kLanes; w += VectorOf<T>::width)
        for (int t = 0; t < steps; ++t) {
            Vector<T> total = vector_at(bias + w);
            for (int k = 0; k < width; ++k) total += vector_at(weight[k] + w) * vector_at(x[t + k] + w);
            put_vector(y[t] + w, total);
        }
}

// y before activation: x begins width - 1 steps before the first.
template <typename T>
inline __attribute__((always_inline)) void convolve(const Lanes<T>* x, const Lanes<T>* weight, const Lanes<T>& bias,
                                                    int width, int steps, Lanes<T>* y) {
    if (width == 4) return convolve_by(x, weight, bias, 4, steps, y);  // that of Mamba, its weights in registers
    convolve_by(x, weight, bias, width, steps, y);
}

template <typename T>
PCDET_FUSED_CLONES void forward_block(const Filter<T>& filter, SeriesView<const T> x, SeriesView<T> y, int64_t b,
                                      int64_t d, Lanes<T>* scratch) {
    const int rows = filter.rows(d), before = filter.width - 1;
    Lanes<T> *weight = scratch, *past = weight + filter.width, out[kSteps], bias;
    load_weights(filter, d, rows, weight);
    load_lanes(filter.bias == nullptr ? nullptr : filter.bias + d, rows, bias);
    std::fill(past[0], past[0] + before * kLanes, T(0));
    for (int64_t t0 = 0; t0 < filter.length; t0 += kSteps) {
        const int steps = static_cast<int>(std::min<int64_t>(kSteps, filter.length - t0));
        load(x.at(b, d, t0), rows, steps, past + before);
        convolve(past, weight, bias, filter.width, steps, out);
        if (filter.silu)
            for (int t = 0; t < steps; ++t)
#pragma omp simd
                for (int w = 0; w < kLanes; ++w) out[t][w] = activate(out[t][w], true);
        store(out, rows, steps, y.at(b, d, t0));
        std::memmove(past, past + steps, before * sizeof(Lanes<T>));
    }
}

// From the last chunk to the first: the gradient of a step needs those of the outputs of width - 1 later ones.
template <typename T>
PCDET_FUSED_CLONES void backward_block(const Filter<T>& filter, SeriesView<const T> x, SeriesView<const T> dy,
                                       SeriesView<T> dx, T* dweight, T* dbias, int64_t b, int64_t d,
                                       Lanes<T>* scratch) {
    const int rows = filter.rows(d), width = filter.width, before = width - 1;
    Lanes<T> *weight = scratch, *to_weight = weight + width, *past = to_weight + width;
    Lanes<T> *grad = past + before + kSteps, out[kSteps], bias, to_bias = {};
    load_weights(filter, d, rows, weight);
    load_lanes(filter.bias == nullptr ? nullptr : filter.bias + d, rows, bias);
    std::fill(to_weight[0], to_weight[0] + width * kLanes, T(0));
    std::fill(grad[0], grad[0] + before * kLanes, T(0));
    for (int64_t chunk = filter.chunks() - 1; chunk >= 0; --chunk) {
        const int64_t t0 = chunk * kSteps;
        const int steps = static_cast<int>(std::min<int64_t>(kSteps, filter.length - t0));
        const int known = static_cast<int>(std::min<int64_t>(before, t0));  // steps there are before the chunk
        std::memmove(grad + steps, grad, before * sizeof(Lanes<T>));
        std::fill(past[0], past[0] + (before - known) * kLanes, T(0));
        load(x.at(b, d, t0 - known), rows, steps + known, past + before - known);
        load(dy.at(b, d, t0), rows, steps, grad);
        if (filter.silu) {
            convolve(past, weight, bias, width, steps, out);
            for (int t = 0; t < steps; ++t)
#pragma omp simd
                for (int w = 0; w < kLanes; ++w) grad[t][w] *= activation_slope(out[t][w], true);
        }
        for (int t = 0; t < steps; ++t) {
            Lanes<T> total = {};
            for (int k = 0; k < width; ++k)
#pragma omp simd
                for (int w = 0; w < kLanes; ++w) {
                    to_weight[k][w] += grad[t][w] * past[t + k][w];
                    total[w] += weight[k][w] * grad[t + before - k][w];
                }
#pragma omp simd
            for (int w = 0; w < kLanes; ++w) {
                to_bias[w] += grad[t][w];
                out[t][w] = total[w];
            }
        }
        store(out, rows, steps, dx.at(b, d, t0));
    }
    for (int w = 0; w < rows; ++w) {
        for (int k = 0; k < width; ++k) dweight[(b * filter.dim + d + w) * width + k] = to_weight[k][w];
        dbias[b * filter.dim + d + w] = to_bias[w];
    }
}

template <typename T>
int forward(const Filter<T>& filter, SeriesView<const T> x, SeriesView<T> y, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> scratch((2 * filter.width + kSteps) * kLanes);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < filter.batch * filter.blocks(); ++task)
            forward_block(filter, x, y, task / filter.blocks(), task % filter.blocks() * kLanes,
                          reinterpret_cast<Lanes<T>*>(scratch.data()));
    }
    return 0;
}

template <typename T>
int backward(const Filter<T>& filter, SeriesView<const T> x, SeriesView<const T> dy, SeriesView<T> dx, T* dweight,
             T* dbias, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> scratch((4 * filter.width + 2 * kSteps) * kLanes);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < filter.batch * filter.blocks(); ++task)
            backward_block(filter, x, dy, dx, dweight, dbias, task / filter.blocks(), task % filter.blocks() * kLanes,
                           reinterpret_cast<Lanes<T>*>(scratch.data()));
    }
    return 0;
}

}  // namespace

// x, y, dy, dx: [batch, dim, length]; weight [dim, width]; bias [dim] or null; strides: three (batch, row, time) for each
// of x and y, or x, dy and dx. dweight [batch, dim, width], dbias [batch, dim]: the sum over the first axis is to be taken.
#define PCDET_CAUSAL_CONV1D(T, name)                                                                                  \
    PCDET_API int pcdet_causal_conv1d_forward_##name##_cpu(                                                           \
        const T* x, const T* weight, const T* bias, const int64_t* strides, int64_t batch, int64_t dim,               \
        int64_t length, int64_t width, int silu, int reverse, T* y, int threads) {                                    \
        const Filter<T> filter{weight, bias, batch, dim, length, static_cast<int>(width), silu != 0};                 \
        return forward<T>(filter, series_view(x, strides, length, reverse),                                           \
                          series_view(y, strides + 3, length, reverse), threads);                                     \
    }                                                                                                                 \
    PCDET_API int pcdet_causal_conv1d_backward_##name##_cpu(                                                          \
        const T* x, const T* weight, const T* bias, const int64_t* strides, int64_t batch, int64_t dim,               \
        int64_t length, int64_t width, int silu, int reverse, const T* dy, T* dx, T* dweight, T* dbias,               \
        int threads) {                                                                                                \
        const Filter<T> filter{weight, bias, batch, dim, length, static_cast<int>(width), silu != 0};                 \
        return backward<T>(filter, series_view(x, strides, length, reverse),                                          \
                           series_view(dy, strides + 3, length, reverse),                                             \
                           series_view(dx, strides + 6, length, reverse), dweight, dbias, threads);                   \
    }

PCDET_CAUSAL_CONV1D(float, float32)
PCDET_CAUSAL_CONV1D(double, float64)
