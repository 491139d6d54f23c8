// RWKV-6 on the CPU: a task is one head of one sequence, whose state stays in the first cache. The forward pass holds it
// as [key][value], the backward pass as [value][key], so that most sums run along vectors and not across them.
#pragma GCC optimize("fp-contract=fast")
#include "wkv.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int64_t kChannels = 64;  // of the heads of one task

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

// One step of N vectors of value channels, which stay in registers while the key channels pass.
template <int N, typename T>
inline __attribute__((always_inline)) void advance(int d, const T* r, const T* k, const T* v, const T* decay, T seen,
                                                   T* state, T* y) {
    constexpr int width = VectorOf<T>::width;
    Vector<T> out[N], value[N];
    for (int n = 0; n < N; ++n) {
        value[n] = vector_at(v + n * width);
        out[n] = seen * value[n];
    }
    for (int i = 0; i < d; ++i) {
        const T ri = r[i], ki = k[i], ei = decay[i];
        for (int n = 0; n < N; ++n) {
            T* entry = state + i * d + n * width;
            Vector<T> old = vector_at(entry);
            wkv_step(old, out[n], ri, ki, value[n], ei);
            put_vector(entry, old);
        }
    }
    for (int n = 0; n < N; ++n) put_vector(y + n * width, out[n]);
}

// Heads of one sequence that are worked on together, so that their rows are read from end to end.
struct Heads {
    int64_t b, first;
    int count;
};

// What the steps of a chunk need beside their inputs: the decays [step][head][d], and how much each head of a step sees
// of itself, [step][head].
template <typename T>
inline __attribute__((always_inline)) void prepare(const Inputs<T>& in, Heads heads, int64_t first, int steps,
                                                   T* decays, T* seen) {
    const int d = static_cast<int>(in.d), channels = heads.count * d;
    const T* u = in.u == nullptr ? nullptr : in.u + heads.first * d;
    for (int t = 0; t < steps; ++t) {
        const int64_t row = in.at(heads.b, first + t, heads.first);
        const T *r = in.r + row, *k = in.k + row, *w = in.w + row;
        T* decay = decays + t * channels;
        for (int h = 0; h < heads.count; ++h) {
            T total = 0;
            if (u != nullptr)
#pragma omp simd reduction(+ : total)
                for (int i = h * d; i < (h + 1) * d; ++i) total += r[i] * u[i] * k[i];
            seen[t * heads.count + h] = total;
        }
#pragma omp simd
        for (int i = 0; i < channels; ++i) decay[i] = wkv_decay(w[i]);
    }
}

// One step of one head.
template <typename T>
inline __attribute__((always_inline)) void forward_step(int d, const T* r, const T* k, const T* v, const T* decay,
                                                        T seen, T* state, T* y) {
    constexpr int width = VectorOf<T>::width;
    int j = 0;
    for (; j + 4 * width <= d; j += 4 * width) advance<4>(d, r, k, v + j, decay, seen, state + j, y + j);
    for (; j + width <= d; j += width) advance<1>(d, r, k, v + j, decay, seen, state + j, y + j);
    for (; j < d; ++j) {
        y[j] = seen * v[j];
        for (int i = 0; i < d; ++i) wkv_step(state[i * d + j], y[j], r[i], k[i], v[j], decay[i]);
    }
}

template <typename T>
PCDET_FUSED_CLONES void forward_heads(const Inputs<T>& in, Heads heads, T* y, T* checkpoints, T* scratch) {
    const int d = static_cast<int>(in.d), size = d * d;
    T *states = scratch, *decays = states + heads.count * size, *seen = decays + kWkvChunk * heads.count * d;
    std::fill(states, states + heads.count * size, T(0));
    for (int64_t chunk = 0; chunk < in.chunks(); ++chunk) {
        const int64_t first = chunk * kWkvChunk;
        const int steps = static_cast<int>(std::min<int64_t>(kWkvChunk, in.length - first));
        prepare(in, heads, first, steps, decays, seen);
        for (int h = 0; h < heads.count; ++h) {
            const int64_t head = heads.first + h;
            T* state = states + h * size;
            if (checkpoints != nullptr)
                std::copy(state, state + size, checkpoints + in.checkpoint(heads.b * in.heads + head, chunk));
            for (int t = 0; t < steps; ++t) {
                const int64_t row = in.at(heads.b, first + t, head);
                const int place = t * heads.count + h;
                forward_step(d, in.r + row, in.k + row, in.v + row, decays + place * d, seen[place], state, y + row);
            }
        }
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

// D: the width of a head where it is known to the compiler, or 0.
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
    const int64_t most = std::max<int64_t>(1, kChannels / std::max<int64_t>(in.d, 1));
    const int64_t together = in.batch < 2 * threads ? 1 : std::min(most, in.heads);
    const int64_t portions = (in.heads + together - 1) / together;
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> scratch(together * (in.d * in.d + kWkvChunk * (in.d + 1)));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < in.batch * portions; ++task) {
            const int64_t first = task % portions * together;
            const Heads heads{task / portions, first, static_cast<int>(std::min(together, in.heads - first))};
            forward_heads(in, heads, y, checkpoints, scratch.data());
        }
    }
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
