// Scattered linear attention on the CPU: one task is one head of one segment, whose state stays in the first cache. For
// the usual head dimensions the state takes up, and is read by, several rows at a time, from registers. Products are
// rounded before they are added, row after row, as the published definition does it: fused, they differ in the last
// bit, which is enough for another sign before a ReLU and so for another gradient.

#include "linear_attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

using namespace pcdet;

constexpr int kMaxDim = 256;

// Rows are [n, heads, d], `step` numbers apart; segment w is rows offsets[w] .. offsets[w + 1].
struct Rows {
    int64_t d, step;
    int64_t at(int64_t row, int64_t head) const { return row * step + head * d; }
};

template <typename T>
struct Wide {
    typedef T type __attribute__((vector_size(64)));
    static constexpr int lanes = 64 / sizeof(T);
};

template <typename T>
PCDET_HD typename Wide<T>::type wide_at(const T* from) {
    typename Wide<T>::type x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}

// S += sum k v^T, s += sum k of `Count` rows of dimension D.
template <int D, int Count, typename T>
PCDET_HD void take_up(const T* k, const T* v, int64_t step, T* state, T* sum) {
    using V = typename Wide<T>::type;
    constexpr int kWide = D / Wide<T>::lanes;
    V values[Count][kWide];
    for (int r = 0; r < Count; ++r)
        for (int j = 0; j < kWide; ++j) values[r][j] = wide_at(v + r * step + j * Wide<T>::lanes);
    for (int i = 0; i < D; ++i)
        for (int j = 0; j < kWide; ++j) {
            T* place = state + i * D + j * Wide<T>::lanes;
            V row = wide_at(place);
            for (int r = 0; r < Count; ++r) row += k[r * step + i] * values[r][j];
            std::memcpy(place, &row, sizeof(row));
        }
    for (int r = 0; r < Count; ++r)
        for (int i = 0; i < D; ++i) sum[i] += k[r * step + i];
}

// y = q^T S / (q . s + eps) of `Count` rows of dimension D.
template <int D, int Count, typename T>
PCDET_HD void read_out(const T* q, int64_t step, const T* state, const T* sum, T eps, T* y, int64_t y_step) {
    using V = typename Wide<T>::type;
    constexpr int kWide = D / Wide<T>::lanes;
    V out[Count][kWide] = {};
    for (int i = 0; i < D; ++i)
        for (int j = 0; j < kWide; ++j) {
            const V row = wide_at(state + i * D + j * Wide<T>::lanes);
            for (int r = 0; r < Count; ++r) out[r][j] += q[r * step + i] * row;
        }
    for (int r = 0; r < Count; ++r) {
        const T scale = T(1) / (dot(q + r * step, sum, D) + eps);
        for (int j = 0; j < kWide; ++j) {
            const V scaled = out[r][j] * scale;
            std::memcpy(y + r * y_step + j * Wide<T>::lanes, &scaled, sizeof(scaled));
        }
    }
}

template <int D, typename T>
PCDET_HD void forward_rows(const T* q, const T* k, const T* v, int64_t step, int64_t count, T eps, T* state, T* sum,
                           T* y, int64_t y_step) {
    constexpr int kRows = 4;
    int64_t r = 0;
    for (; r + kRows <= count; r += kRows) take_up<D, kRows>(k + r * step, v + r * step, step, state, sum);
    for (; r < count; ++r) take_up<D, 1>(k + r * step, v + r * step, step, state, sum);
    for (r = 0; r + kRows <= count; r += kRows)
        read_out<D, kRows>(q + r * step, step, state, sum, eps, y + r * y_step, y_step);
    for (; r < count; ++r) read_out<D, 1>(q + r * step, step, state, sum, eps, y + r * y_step, y_step);
}

template <typename T>
PCDET_HD void forward_any(const T* q, const T* k, const T* v, int64_t step, int64_t count, int d, T eps, T* state,
                          T* sum, T* y, int64_t y_step) {
    for (int64_t r = 0; r < count; ++r) outer_add(state, sum, k + r * step, v + r * step, T(1), d);
    for (int64_t r = 0; r < count; ++r) {
        T* out = y + r * y_step;
        row_times(state, q + r * step, out, d);
        const T scale = T(1) / (dot(q + r * step, sum, d) + eps);
        for (int j = 0; j < d; ++j) out[j] *= scale;
    }
}

template <typename T>
PCDET_CLONES void forward_segment(const T* q, const T* k, const T* v, Rows rows, int64_t begin, int64_t end, T eps,
                                  T* state, T* sum, T* y, int64_t y_step) {
    const int d = static_cast<int>(rows.d);
    const int64_t first = begin * rows.step, count = end - begin;
    std::fill(state, state + d * d, T(0));
    std::fill(sum, sum + d, T(0));
    q += first, k += first, v += first, y += begin * y_step;
    if (d == 16) return forward_rows<16>(q, k, v, rows.step, count, eps, state, sum, y, y_step);
    if (d == 32) return forward_rows<32>(q, k, v, rows.step, count, eps, state, sum, y, y_step);
    if (d == 64) return forward_rows<64>(q, k, v, rows.step, count, eps, state, sum, y, y_step);
    forward_any(q, k, v, rows.step, count, d, eps, state, sum, y, y_step);
}

template <typename T>
int forward(const T* q, const T* k, const T* v, const int64_t* offsets, int64_t segments, int64_t heads, int64_t d,
            int64_t step, T eps, T* y, int threads) {
    if (d > kMaxDim) return -1;
    const Rows rows{d, step};
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> state(d * d), sum(d);
#pragma omp for schedule(dynamic, 16)
        for (int64_t task = 0; task < segments * heads; ++task) {
            const int64_t w = task / heads, shift = task % heads * d;
            forward_segment(q + shift, k + shift, v + shift, rows, offsets[w], offsets[w + 1], eps, state.data(),
                            sum.data(), y + shift, heads * d);
        }
    }
    return 0;
}

}  // namespace

// Rows of q, k and v [n, heads, d] are `step` numbers apart, those of y heads * d.
#define PCDET_LINEAR_ATTENTION(T, name)                                                                               \
    PCDET_API int pcdet_linear_attention_forward_##name##_cpu(const T* q, const T* k, const T* v,                     \
                                                              const int64_t* offsets, int64_t segments,               \
                                                              int64_t heads, int64_t d, int64_t step, double eps,     \
                                                              T* y, int threads) {                                    \
        return forward<T>(q, k, v, offsets, segments, heads, d, step, static_cast<T>(eps), y, threads);               \
    }

PCDET_LINEAR_ATTENTION(float, float32)
PCDET_LINEAR_ATTENTION(double, float64)
