// Gradients of scattered linear attention on the CPU: one task is one head of one segment, whose states stay in the
// first cache.
#include "linear_attention.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int kMaxDim = 256;

// Rows are [n, heads, d]; segment w is rows offsets[w] .. offsets[w + 1].
template <typename T>
struct Rows {
    int64_t heads, d;
    int64_t at(int64_t row, int64_t head) const { return (row * heads + head) * d; }
};

// With n = q^T S and z = q . s + eps: dn = dy / z, dz = -(dy . y) / z; dq = S dn + s dz; dS = sum q dn^T, ds = sum q dz;
// dk = dS v + ds; dv = dS^T k. The state is made again instead of being kept.
template <typename T>
PCDET_CLONES void backward_segment(const T* q, const T* k, const T* v, const T* dy, Rows<T> rows, int64_t head,
                                   int64_t begin, int64_t end, T eps, T* state, T* sum, T* dstate, T* dsum, T* dq,
                                   T* dk, T* dv) {
    const int d = static_cast<int>(rows.d);
    T y[kMaxDim], dn[kMaxDim];
    std::fill(state, state + d * d, T(0));
    std::fill(dstate, dstate + d * d, T(0));
    std::fill(sum, sum + d, T(0));
    std::fill(dsum, dsum + d, T(0));
    for (int64_t r = begin; r < end; ++r) outer_add(state, sum, k + rows.at(r, head), v + rows.at(r, head), T(1), d);
    for (int64_t r = begin; r < end; ++r) {
        const T *query = q + rows.at(r, head), *grad = dy + rows.at(r, head);
        row_times(state, query, y, d);
        const T scale = T(1) / (dot(query, sum, d) + eps);
        const T dz = -dot(grad, y, d) * scale * scale;
        for (int j = 0; j < d; ++j) dn[j] = grad[j] * scale;
        T* out = dq + rows.at(r, head);
        times_column(state, dn, out, d);
        for (int i = 0; i < d; ++i) out[i] += sum[i] * dz;
        outer_add(dstate, dsum, query, dn, dz, d);
    }
    for (int64_t r = begin; r < end; ++r) {
        T* out = dk + rows.at(r, head);
        times_column(dstate, v + rows.at(r, head), out, d);
        for (int i = 0; i < d; ++i) out[i] += dsum[i];
        row_times(dstate, k + rows.at(r, head), dv + rows.at(r, head), d);
    }
}

template <typename T>
int backward(const T* q, const T* k, const T* v, const T* dy, const int64_t* offsets, int64_t segments, int64_t heads,
             int64_t d, T eps, T* dq, T* dk, T* dv, int threads) {
    if (d > kMaxDim) return -1;
    const Rows<T> rows{heads, d};
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> state(d * d), dstate(d * d), sum(d), dsum(d);
#pragma omp for schedule(dynamic, 16)
        for (int64_t task = 0; task < segments * heads; ++task) {
            const int64_t w = task / heads;
            backward_segment(q, k, v, dy, rows, task % heads, offsets[w], offsets[w + 1], eps, state.data(), sum.data(),
                             dstate.data(), dsum.data(), dq, dk, dv);
        }
    }
    return 0;
}

}  // namespace

#define PCDET_LINEAR_ATTENTION(T, name)                                                                               \
    PCDET_API int pcdet_linear_attention_backward_##name##_cpu(                                                       \
        const T* q, const T* k, const T* v, const T* dy, const int64_t* offsets, int64_t segments, int64_t heads,     \
        int64_t d, double eps, T* dq, T* dk, T* dv, int threads) {                                                    \
        return backward<T>(q, k, v, dy, offsets, segments, heads, d, static_cast<T>(eps), dq, dk, dv, threads);       \
    }

PCDET_LINEAR_ATTENTION(float, float32)
PCDET_LINEAR_ATTENTION(double, float64)
