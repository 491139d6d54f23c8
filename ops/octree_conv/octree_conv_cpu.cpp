// Depth-wise convolution over neighbour tables on the CPU. Rows are walked channel by channel on vectors; the additions
// of each channel are those of the shared header, in the same order.
#include "octree_conv.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int64_t kChunk = 2048;  // rows of one partial sum of the weights' gradient: fixed, so that results repeat

template <typename T>
PCDET_HD void convolve_row(const T* features, const T* weights, const int64_t* row, const DepthwiseSizes& s, T* __restrict out) {
    std::fill(out, out + s.c, T(0));
    for (int64_t k = 0; k < s.k; ++k) {
        if (row[k] < 0) continue;
        const T *w = weights + k * s.c, *x = features + row[k] * s.c;
        for (int64_t c = 0; c < s.c; ++c) out[c] += w[c] * x[c];
    }
}

template <typename T>
PCDET_HD void add_weight_grads(const T* grad, const T* features, const int64_t* row, const DepthwiseSizes& s, T* sums) {
    for (int64_t k = 0; k < s.k; ++k) {
        if (row[k] < 0) continue;
        const T* x = features + row[k] * s.c;
        T* __restrict sum = sums + k * s.c;
        for (int64_t c = 0; c < s.c; ++c) sum[c] += grad[c] * x[c];
    }
}

// Compiled for several instruction sets, which the templates cannot be.
PCDET_CLONES void convolve(const float* x, const float* w, const int64_t* row, const DepthwiseSizes& s, float* out) {
    convolve_row(x, w, row, s, out);
}
PCDET_CLONES void convolve(const double* x, const double* w, const int64_t* row, const DepthwiseSizes& s, double* out) {
    convolve_row(x, w, row, s, out);
}
PCDET_CLONES void add_grads(const float* g, const float* x, const int64_t* row, const DepthwiseSizes& s, float* sums) {
    add_weight_grads(g, x, row, s, sums);
}
PCDET_CLONES void add_grads(const double* g, const double* x, const int64_t* row, const DepthwiseSizes& s, double* sums) {
    add_weight_grads(g, x, row, s, sums);
}

template <typename T>
int forward(const T* features, const T* weights, const int64_t* table, const DepthwiseSizes& s, T* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 256)
    for (int64_t i = 0; i < s.m; ++i) convolve(features, weights, table + i * s.k, s, out + i * s.c);
    return 0;
}

template <typename T>
int weight_grad(const T* grad, const T* features, const int64_t* table, const DepthwiseSizes& s, T* out, int threads) {
    const int64_t chunks = (s.m + kChunk - 1) / kChunk, size = s.k * s.c, batch = std::max(threads, 1) * 4;
    std::vector<T> sums(std::min(batch, chunks) * size);
    std::fill(out, out + size, T(0));
    for (int64_t start = 0; start < chunks; start += batch) {
        const int64_t end = std::min(start + batch, chunks);
        std::fill(sums.begin(), sums.end(), T(0));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t chunk = start; chunk < end; ++chunk) {
            for (int64_t i = chunk * kChunk; i < std::min((chunk + 1) * kChunk, s.m); ++i) {
                add_grads(grad + i * s.c, features, table + i * s.k, s, sums.data() + (chunk - start) * size);
            }
        }
        for (int64_t chunk = start; chunk < end; ++chunk) {
            for (int64_t j = 0; j < size; ++j) out[j] += sums[(chunk - start) * size + j];
        }
    }
    return 0;
}

}  // namespace

#define PCDET_OCTREE_CONV(T, name)                                                                                      \
    PCDET_API int pcdet_octree_conv_forward_##name##_cpu(const T* features, const T* weights, const int64_t* table,     \
                                                         int64_t m, int64_t k, int64_t c, T* out, int threads) {        \
        return forward<T>(features, weights, table, DepthwiseSizes{m, k, c}, out, threads);                             \
    }                                                                                                                   \
    PCDET_API int pcdet_octree_conv_weight_grad_##name##_cpu(const T* grad, const T* features, const int64_t* table,    \
                                                             int64_t m, int64_t k, int64_t c, T* out, int threads) {    \
        return weight_grad<T>(grad, features, table, DepthwiseSizes{m, k, c}, out, threads);                            \
    }

PCDET_OCTREE_CONV(float, float32)
PCDET_OCTREE_CONV(double, float64)
