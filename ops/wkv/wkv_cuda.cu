// RWKV-6 on CUDA, in three steps so that all chunks of a sequence run at once: each chunk's own contribution to the state
// after it, the states between chunks (one thread an entry of the state), and the results of each chunk from its first
// state. The backward pass goes the same way with the gradient of the state. A block is one head of one chunk; a thread
// holds a column of the state (value channel) or, for gradients of r, k and w, a row (key channel), so that no sum crosses
// threads. Accumulation is float32, in a fixed order.
#include "cuda_launch.h"
#include "half.h"
#include "wkv.h"

namespace {

using namespace pcdet;

constexpr int kPart = 8;  // steps of a chunk whose states the backward pass holds at a time

template <typename T>
struct Inputs {
    const T *r, *k, *v, *w;
    const float* u;  // [heads, d] or null
    int64_t batch, length, heads, d, chunks;
    bool reverse;
};

// One head of one chunk: its steps, and where its rows and its state lie.
struct Place {
    int64_t b, chunk, head, first, state;
    int steps;
};

template <typename T>
__device__ Place place(const Inputs<T>& in) {
    const int64_t chunk = blockIdx.x % in.chunks, task = blockIdx.x / in.chunks;
    const int64_t left = in.length - chunk * kWkvChunk;
    return {task / in.heads, chunk, task % in.heads, chunk * kWkvChunk, blockIdx.x * in.d * in.d,
            left < kWkvChunk ? int(left) : kWkvChunk};
}

template <typename T>
__device__ int64_t row(const Inputs<T>& in, const Place& at, int t) {
    const int64_t s = at.first + t;
    return ((at.b * in.length + (in.reverse ? in.length - 1 - s : s)) * in.heads + at.head) * in.d;
}

// Rows of a chunk in shared memory; each thread brings its column. Synchronise before reading others' columns.
template <typename T, int D>
__device__ void load(const Inputs<T>& in, const Place& at, const T* from, float (*to)[D]) {
    for (int t = 0; t < at.steps; ++t) to[t][threadIdx.x] = to_float(from[row(in, at, t) + threadIdx.x]);
}

template <typename T, int D>
__device__ void load_decay(const Inputs<T>& in, const Place& at, float (*to)[D]) {
    for (int t = 0; t < at.steps; ++t) to[t][threadIdx.x] = wkv_decay(to_float(in.w[row(in, at, t) + threadIdx.x]));
}

// How much of its own value each step sees.
template <typename T, int D>
__device__ void see(const Inputs<T>& in, const Place& at, const float (*r)[D], const float (*k)[D], float* seen) {
    for (int t = threadIdx.x; t < at.steps; t += D) {
        float total = 0;
        if (in.u != nullptr)
            for (int i = 0; i < D; ++i) total += r[t][i] * in.u[at.head * D + i] * k[t][i];
        seen[t] = total;
    }
}

// What remains over the whole chunk of a row of the state, [batch, heads, chunks, D].
template <int D>
__device__ void store_kept(const Place& at, const float (*decay)[D], float* kept) {
    float product = 1;
    for (int t = 0; t < at.steps; ++t) product *= decay[t][threadIdx.x];
    kept[blockIdx.x * int64_t(D) + threadIdx.x] = product;
}

// states [batch, heads, chunks, D, D] after chunks that begin with zeros.
template <typename T, int D>
__global__ void own_states(Inputs<T> in, float* states, float* kept) {
    __shared__ float k[kWkvChunk][D], decay[kWkvChunk][D];
    const Place at = place(in);
    const int j = threadIdx.x;
    load(in, at, in.k, k);
    load_decay(in, at, decay);
    __syncthreads();
    float column[D] = {};
    for (int t = 0; t < at.steps; ++t) {
        const float v = to_float(in.v[row(in, at, t) + j]);
#pragma unroll
        for (int i = 0; i < D; ++i) column[i] = decay[t][i] * column[i] + k[t][i] * v;
    }
#pragma unroll
    for (int i = 0; i < D; ++i) states[at.state + i * D + j] = column[i];
    store_kept(at, decay, kept);
}

// The same of the gradient of the state, against time: what a chunk hands to the one before it.
template <typename T, int D>
__global__ void own_gradients(Inputs<T> in, const T* dy, float* grads, float* kept) {
    __shared__ float r[kWkvChunk][D], decay[kWkvChunk][D];
    const Place at = place(in);
    const int j = threadIdx.x;
    load(in, at, in.r, r);
    load_decay(in, at, decay);
    __syncthreads();
    float column[D] = {};
    for (int t = at.steps - 1; t >= 0; --t) {
        const float grad = to_float(dy[row(in, at, t) + j]);
#pragma unroll
        for (int i = 0; i < D; ++i) column[i] = decay[t][i] * column[i] + r[t][i] * grad;
    }
#pragma unroll
    for (int i = 0; i < D; ++i) grads[at.state + i * D + j] = column[i];
    store_kept(at, decay, kept);
}

// From each chunk's own values to those that it begins with; one thread is one entry of the state.
__global__ void link(const float* kept, int64_t tasks, int64_t chunks, int64_t d, bool backwards, float* values) {
    const int64_t entry = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, entries = d * d;
    if (entry >= tasks * entries) return;
    const int64_t task = entry / entries, rest = entry % entries;
    float carried = 0;
    for (int64_t step = 0; step < chunks; ++step) {
        const int64_t chunk = task * chunks + (backwards ? chunks - 1 - step : step);
        const float own = values[chunk * entries + rest];
        values[chunk * entries + rest] = carried;
        carried = kept[chunk * d + rest / d] * carried + own;
    }
}

template <typename T, int D>
__global__ void outputs(Inputs<T> in, const float* states, T* y) {
    __shared__ float r[kWkvChunk][D], k[kWkvChunk][D], decay[kWkvChunk][D], seen[kWkvChunk];
    const Place at = place(in);
    const int j = threadIdx.x;
    load(in, at, in.r, r);
    load(in, at, in.k, k);
    load_decay(in, at, decay);
    __syncthreads();
    see(in, at, r, k, seen);
    __syncthreads();
    float column[D];
#pragma unroll
    for (int i = 0; i < D; ++i) column[i] = states[at.state + i * D + j];
    for (int t = 0; t < at.steps; ++t) {
        const float v = to_float(in.v[row(in, at, t) + j]);
        float out = seen[t] * v;
#pragma unroll
        for (int i = 0; i < D; ++i) wkv_step(column[i], out, r[t][i], k[t][i], v, decay[t][i]);
        set(y[row(in, at, t) + j], out);
    }
}

// Gradient of v: a thread holds a column of the gradient of the state.
template <typename T, int D>
__global__ void value_gradients(Inputs<T> in, const T* dy, const float* grads, T* dv) {
    __shared__ float r[kWkvChunk][D], k[kWkvChunk][D], decay[kWkvChunk][D], seen[kWkvChunk];
    const Place at = place(in);
    const int j = threadIdx.x;
    load(in, at, in.r, r);
    load(in, at, in.k, k);
    load_decay(in, at, decay);
    __syncthreads();
    see(in, at, r, k, seen);
    __syncthreads();
    float column[D];
#pragma unroll
    for (int i = 0; i < D; ++i) column[i] = grads[at.state + i * D + j];
    for (int t = at.steps - 1; t >= 0; --t) {
        const float grad = to_float(dy[row(in, at, t) + j]);
        float total = seen[t] * grad;
#pragma unroll
        for (int i = 0; i < D; ++i) {
            total += column[i] * k[t][i];
            column[i] = decay[t][i] * column[i] + r[t][i] * grad;
        }
        set(dv[row(in, at, t) + j], total);
    }
}

template <typename T>
struct KeyGradients {
    T *dr, *dk, *dw;
    float* du;  // [batch, chunks, heads, D] or null
};

// Gradients of r, k, w and u: a thread holds a row of the state and of its gradient.
template <typename T, int D>
__global__ void key_gradients(Inputs<T> in, const T* dy, const float* states, const float* grads, KeyGradients<T> out) {
    __shared__ float v[kWkvChunk][D], dout[kWkvChunk][D];
    const Place at = place(in);
    const int i = threadIdx.x;
    load(in, at, in.v, v);
    load(in, at, dy, dout);
    __syncthreads();
    const float u = in.u == nullptr ? 0.0f : in.u[at.head * D + i];
    float first[kWkvChunk / kPart][D], g[D], du = 0;
    for (int j = 0; j < D; ++j) {
        first[0][j] = states[at.state + i * D + j];
        g[j] = grads[at.state + i * D + j];
    }
    const auto advance = [&](float* line, int t) {
        const int64_t entry = row(in, at, t) + i;
        const float k = to_float(in.k[entry]), decay = wkv_decay(to_float(in.w[entry]));
        for (int j = 0; j < D; ++j) line[j] = decay * line[j] + k * v[t][j];
    };
    const int parts = (at.steps + kPart - 1) / kPart;
    for (int part = 1; part < parts; ++part) {
        for (int j = 0; j < D; ++j) first[part][j] = first[part - 1][j];
        for (int t = (part - 1) * kPart; t < part * kPart; ++t) advance(first[part], t);
    }
    for (int part = parts - 1; part >= 0; --part) {
        const int begin = part * kPart, end = begin + kPart < at.steps ? begin + kPart : at.steps;
        float before[kPart][D];  // the row before each step
        for (int j = 0; j < D; ++j) before[0][j] = first[part][j];
        for (int t = begin; t + 1 < end; ++t) {
            for (int j = 0; j < D; ++j) before[t - begin + 1][j] = before[t - begin][j];
            advance(before[t - begin + 1], t);
        }
        for (int t = end - 1; t >= begin; --t) {
            const int64_t entry = row(in, at, t) + i;
            const float r = to_float(in.r[entry]), k = to_float(in.k[entry]), w = to_float(in.w[entry]);
            const float decay = wkv_decay(w);
            float agreement = 0, dr = 0, dk = 0, dv = 0, ddecay = 0;  // of v and dy; dv stands in another kernel
            for (int j = 0; j < D; ++j) {
                agreement += v[t][j] * dout[t][j];
                wkv_adjoint(g[j], before[t - begin][j], r, k, v[t][j], decay, dout[t][j], dr, dk, dv, ddecay);
            }
            du += r * k * agreement;
            set(out.dr[entry], dr + u * agreement * k);
            set(out.dk[entry], dk + u * agreement * r);
            set(out.dw[entry], ddecay * wkv_decay_slope(w, decay));
        }
    }
    if (out.du != nullptr) out.du[((at.b * in.chunks + at.chunk) * in.heads + at.head) * D + i] = du;
}

// Untyped arguments, as they come.
struct Call {
    const void *r, *k, *v, *w;
    const float* u;
    int64_t batch, length, heads, d;
    bool reverse;
    cudaStream_t stream;

    int64_t chunks() const { return (length + kWkvChunk - 1) / kWkvChunk; }
    unsigned blocks() const { return static_cast<unsigned>(batch * heads * chunks()); }
    bool is_covered() const { return batch * heads * chunks() < (int64_t(1) << 31); }
    template <typename T>
    Inputs<T> inputs() const {
        const auto typed = [](const void* data) { return static_cast<const T*>(data); };
        return {typed(r), typed(k), typed(v), typed(w), u, batch, length, heads, d, chunks(), reverse};
    }
    void link_chunks(const float* kept, bool backwards, float* values) const {
        const int64_t entries = batch * heads * d * d;
        const unsigned blocks = static_cast<unsigned>((entries + 127) / 128);
        start_kernel(link, blocks, 128, 0, stream, kept, batch * heads, chunks(), d, backwards, values);
    }
};

struct Forward : Call {
    void* y;
    float *states, *kept;

    template <typename T, int D>
    int launch() const {
        const Inputs<T> in = inputs<T>();
        start_kernel(own_states<T, D>, blocks(), D, 0, stream, in, states, kept);
        link_chunks(kept, false, states);
        start_kernel(outputs<T, D>, blocks(), D, 0, stream, in, states, static_cast<T*>(y));
        return cudaGetLastError();
    }
    template <typename T>
    int run() const {
        if (d == 16) return launch<T, 16>();
        return d == 32 ? launch<T, 32>() : -1;
    }
};

struct Backward : Call {
    const void* dy;
    const float* states;
    void *dr, *dk, *dv, *dw;
    float *du, *grads, *kept;

    template <typename T, int D>
    int launch() const {
        const Inputs<T> in = inputs<T>();
        const T* dout = static_cast<const T*>(dy);
        const KeyGradients<T> keys{static_cast<T*>(dr), static_cast<T*>(dk), static_cast<T*>(dw), du};
        start_kernel(own_gradients<T, D>, blocks(), D, 0, stream, in, dout, grads, kept);
        link_chunks(kept, true, grads);
        start_kernel(value_gradients<T, D>, blocks(), D, 0, stream, in, dout, grads, static_cast<T*>(dv));
        start_kernel(key_gradients<T, D>, blocks(), D, 0, stream, in, dout, states, grads, keys);
        return cudaGetLastError();
    }
    template <typename T>
    int run() const {
        if (d == 16) return launch<T, 16>();
        return d == 32 ? launch<T, 32>() : -1;
    }
};

}  // namespace

// Shapes as on the CPU, of the element type but u and du, which are float; du [batch, chunks, heads, d] or null. states,
// grads [batch, heads, chunks, d, d] and kept [batch, heads, chunks, d] are room, of chunks of 32 steps; states go from
// the forward to the backward pass. Returns -1 for a width of the heads, or sizes, that it does not cover.
PCDET_API int pcdet_wkv_forward_cuda(const void* r, const void* k, const void* v, const void* w, const float* u,
                                     int64_t batch, int64_t length, int64_t heads, int64_t d, int reverse, void* y,
                                     float* states, float* kept, int type, void* stream) {
    if (batch * length * heads == 0) return 0;
    const Call call{r, k, v, w, u, batch, length, heads, d, reverse != 0, static_cast<cudaStream_t>(stream)};
    return call.is_covered() ? with_type(type, Forward{call, y, states, kept}) : -1;
}

PCDET_API int pcdet_wkv_backward_cuda(const void* r, const void* k, const void* v, const void* w, const float* u,
                                      int64_t batch, int64_t length, int64_t heads, int64_t d, int reverse,
                                      const void* dy, const float* states, void* dr, void* dk, void* dv, void* dw,
                                      float* du, float* grads, float* kept, int type, void* stream) {
    if (batch * length * heads == 0) return 0;
    const Call call{r, k, v, w, u, batch, length, heads, d, reverse != 0, static_cast<cudaStream_t>(stream)};
    return call.is_covered() ? with_type(type, Backward{call, dy, states, dr, dk, dv, dw, du, grads, kept}) : -1;
}
