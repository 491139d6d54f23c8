// RWKV-6 on the CPU: a task is one head of one sequence, whose state stays in the first cache. The forward pass holds it
// as [key][value], the backward pass as [value][key], so that most sums run along vectors and not across them.
#pragma GCC optimize("fp-contract=fast")
#include "wkv.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

template <typename T>
struct Inputs {
    const T *r, *k, *v, *w, *u;  // u [heads, d] or null
    int64_t batch, length, heads, d;
    bool reverse;

    // Where the row of the step that comes s-th in the scan begins.
    int64_t at(int64_t b, int64_t s, int64_t head) const {
        return ((b * length + (reverse ? length - 1 - s : s)) * heads + head) * d;
    }
    int64_t chunks() const { return (length + kWkvChunk - 1) / kWkvChunk; }
    int64_t checkpoint(int64_t task, int64_t chunk) const { return (task * chunks() + chunk) * d * d; }
};

template <typename T>
struct Gradients {
    T *dr, *dk, *dv, *dw, *du;  // du [batch, heads, d] or null
};

// D: the width of a head where it is known to the compiler, or 0.
template <typename T, int D>
PCDET_FUSED_CLONES void forward_task(const Inputs<T>& in, int64_t task, T* y, T* checkpoints, T* scratch) {
    const int d = D ? D : static_cast<int>(in.d);
    const int64_t b = task / in.heads, head = task % in.heads;
    T *state = scratch, *decay = state + d * d, *rest = decay + d;
    T near_out[D ? D : 1], near_value[D ? D : 1];  // in registers, as far as they go
    T *out = D ? near_out : rest, *value = D ? near_value : rest + d;
    std::fill(state, state + d * d, T(0));
    for (int64_t s = 0; s < in.length; ++s) {
        if (checkpoints != nullptr && s % kWkvChunk == 0)
            std::copy(state, state + d * d, checkpoints + in.checkpoint(task, s / kWkvChunk));
        const int64_t row = in.at(b, s, head);
        const T *r = in.r + row, *k = in.k + row, *v = in.v + row, *w = in.w + row;
        const T *u = in.u == nullptr ? nullptr : in.u + head * d;
        T seen = 0;  // how much the step sees of itself
        if (u != nullptr)
#pragma omp simd reduction(+ : seen)
            for (int i = 0; i < d; ++i) seen += r[i] * u[i] * k[i];
#pragma omp simd
        for (int i = 0; i < d; ++i) decay[i] = wkv_decay(w[i]);
        for (int j = 0; j < d; ++j) {
            value[j] = v[j];
            out[j] = seen * v[j];
        }
        for (int i = 0; i < d; ++i) {
            T* line = state + i * d;
#pragma omp simd
            for (int j = 0; j < d; ++j) wkv_step(line[j], out[j], r[i], k[i], value[j], decay[i]);
        }
        std::copy(out, out + d, y + row);
    }
}

// The states [value][key] before each step of a chunk, and its decays.
template <typename T>
inline __attribute__((always_inline)) void replay(const Inputs<T>& in, int64_t b, int64_t head, int64_t first,
                                                  int steps, int d, const T* start, T* states, T* decays) {
    for (int i = 0; i < d; ++i)
        for (int j = 0; j < d; ++j) states[j * d + i] = start[i * d + j];
    for (int t = 0; t < steps; ++t) {
        const int64_t row = in.at(b, first + t, head);
        const T *k = in.k + row, *v = in.v + row, *w = in.w + row;
        T* decay = decays + t * d;
#pragma omp simd
        for (int i = 0; i < d; ++i) decay[i] = wkv_decay(w[i]);
        if (t + 1 == steps) break;
        const T* old = states + t * d * d;
        T* now = states + (t + 1) * d * d;
        for (int j = 0; j < d; ++j)
#pragma omp simd
            for (int i = 0; i < d; ++i) now[j * d + i] = decay[i] * old[j * d + i] + k[i] * v[j];
    }
}

template <typename T, int D>
PCDET_FUSED_CLONES void backward_task(const Inputs<T>& in, int64_t task, const T* dy, const T* checkpoints,
                                const Gradients<T>& out, T* scratch) {
    const int d = D ? D : static_cast<int>(in.d);
    const int64_t b = task / in.heads, head = task % in.heads;
    T *grad = scratch, *states = grad + d * d, *decays = states + kWkvChunk * d * d;
    T *dr = decays + kWkvChunk * d, *dk = dr + d, *ddecay = dk + d, *du = ddecay + d;
    const T* u = in.u == nullptr ? nullptr : in.u + head * d;
    std::fill(grad, grad + d * d, T(0));
    std::fill(du, du + d, T(0));
    for (int64_t chunk = in.chunks() - 1; chunk >= 0; --chunk) {
        const int64_t first = chunk * kWkvChunk;
        const int steps = static_cast<int>(std::min<int64_t>(kWkvChunk, in.length - first));
        replay(in, b, head, first, steps, d, checkpoints + in.checkpoint(task, chunk), states, decays);
        for (int t = steps - 1; t >= 0; --t) {
            const int64_t row = in.at(b, first + t, head);
            const T *r = in.r + row, *k = in.k + row, *v = in.v + row, *w = in.w + row, *dout = dy + row;
            const T *state = states + t * d * d, *decay = decays + t * d;
            T agreement = 0, seen = 0;  // v . dy, and how much the step sees of itself
            if (u != nullptr)
#pragma omp simd reduction(+ : agreement, seen)
                for (int i = 0; i < d; ++i) {
                    agreement += v[i] * dout[i];
                    seen += r[i] * u[i] * k[i];
                }
#pragma omp simd
            for (int i = 0; i < d; ++i) {
                const T bonus = u == nullptr ? T(0) : u[i] * agreement;
                dr[i] = bonus * k[i];
                dk[i] = bonus * r[i];
                du[i] += r[i] * k[i] * agreement;
                ddecay[i] = 0;
            }
            for (int j = 0; j < d; ++j) {
                T dv = 0;
                T* line = grad + j * d;
                const T* before = state + j * d;
#pragma omp simd reduction(+ : dv)
                for (int i = 0; i < d; ++i)
                    wkv_adjoint(line[i], before[i], r[i], k[i], v[j], decay[i], dout[j], dr[i], dk[i], dv, ddecay[i]);
                out.dv[row + j] = dv + seen * dout[j];
            }
#pragma omp simd
            for (int i = 0; i < d; ++i) {
                out.dr[row + i] = dr[i];
                out.dk[row + i] = dk[i];
                out.dw[row + i] = ddecay[i] * wkv_decay_slope(w[i], decay[i]);
            }
        }
    }
    if (out.du != nullptr) std::copy(du, du + d, out.du + task * d);
}

// Calls `with` with the width of a head as a constant where it is a usual one.
template <typename With>
void with_width(int64_t d, const With& with) {
    switch (d) {
        case 16: return with(std::integral_constant<int, 16>());
        case 32: return with(std::integral_constant<int, 32>());
        case 64: return with(std::integral_constant<int, 64>());
        default: return with(std::integral_constant<int, 0>());
    }
}

template <typename T>
int forward(const Inputs<T>& in, T* y, T* checkpoints, int threads) {
    with_width(in.d, [&](auto width) {
#pragma omp parallel num_threads(threads)
        {
            std::vector<T> scratch(in.d * in.d + 3 * in.d);
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < in.batch * in.heads; ++task)
                forward_task<T, decltype(width)::value>(in, task, y, checkpoints, scratch.data());
        }
    });
    return 0;
}

template <typename T>
int backward(const Inputs<T>& in, const T* dy, const T* checkpoints, const Gradients<T>& out, int threads) {
    with_width(in.d, [&](auto width) {
#pragma omp parallel num_threads(threads)
        {
            std::vector<T> scratch((kWkvChunk + 1) * (in.d * in.d + in.d) + 3 * in.d);
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < in.batch * in.heads; ++task)
                backward_task<T, decltype(width)::value>(in, task, dy, checkpoints, out, scratch.data());
        }
    });
    return 0;
}

}  // namespace

// r, k, v, w, y and their gradients: [batch, length, heads, d]; u [heads, d] or null; du [batch, heads, d], of which the
// sum over the first axis is to be taken, or null; checkpoints [batch, heads, ceil(length / 32), d, d], null in a forward
// pass without a backward one.
#define PCDET_WKV(T, name)                                                                                            \
    PCDET_API int pcdet_wkv_forward_##name##_cpu(const T* r, const T* k, const T* v, const T* w, const T* u,          \
                                                 int64_t batch, int64_t length, int64_t heads, int64_t d,             \
                                                 int reverse, T* y, T* checkpoints, int threads) {                    \
        return forward<T>({r, k, v, w, u, batch, length, heads, d, reverse != 0}, y, checkpoints, threads);           \
    }                                                                                                                 \
    PCDET_API int pcdet_wkv_backward_##name##_cpu(const T* r, const T* k, const T* v, const T* w, const T* u,         \
                                                  int64_t batch, int64_t length, int64_t heads, int64_t d,            \
                                                  int reverse, const T* dy, const T* checkpoints, T* dr, T* dk,       \
                                                  T* dv, T* dw, T* du, int threads) {                                 \
        return backward<T>({r, k, v, w, u, batch, length, heads, d, reverse != 0}, dy, checkpoints,                   \
                           {dr, dk, dv, dw, du}, threads);                                                            \
    }

PCDET_WKV(float, float32)
PCDET_WKV(double, float64)
