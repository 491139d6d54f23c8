// Selective scan on CUDA, in three steps so that all chunks of a sequence run at once: each chunk's own contribution to the
// state after it, the states between chunks (one thread a number of the state), and the results of each chunk from its
// first state. The backward pass goes the same way with the gradient of the state. One thread is one channel of one chunk
// and holds its state in registers; one block is one warp, which adds up gradients of B and C in a fixed order.
#include "cuda_launch.h"
#include "half.h"
#include "selective_scan.h"

namespace {

using namespace pcdet;

constexpr int kWarp = 32;
constexpr int kPart = 8;  // steps of a chunk whose states the backward pass holds at a time

struct Sizes {
    int64_t batch, dim, length, chunks;
};

template <typename T>
struct Inputs {
    SeriesView<const T> u, delta, z, B, C;
    const float *A, *D, *bias;
    bool softplus;
};

// What a thread works on. Its channel may lie beyond the last: it then takes part, on the last one, and writes nothing.
struct Place {
    int64_t b, chunk, t0, d;
    int steps;
    bool live;
};

__device__ Place place(Sizes size) {
    const int64_t d = blockIdx.y * int64_t(kWarp) + threadIdx.x;
    const int64_t b = blockIdx.x / size.chunks, chunk = blockIdx.x % size.chunks, t0 = chunk * kScanChunk;
    const int64_t left = size.length - t0;
    return {b, chunk, t0, d < size.dim ? d : size.dim - 1, left < kScanChunk ? int(left) : kScanChunk, d < size.dim};
}

template <typename T, int N>
struct Channel {
    const Inputs<T>& in;
    Place at;
    float a[N], a_log2[N], bias, skip;

    __device__ Channel(const Inputs<T>& inputs, Place where) : in(inputs), at(where) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            a[n] = in.A[at.d * N + n];
            a_log2[n] = a[n] * static_cast<float>(kLog2E);
        }
        bias = in.bias == nullptr ? 0.0f : in.bias[at.d];
        skip = in.D == nullptr ? 0.0f : in.D[at.d];
    }
    __device__ float read(SeriesView<const T> from, int t) const { return to_float(from.at(at.b, at.d, at.t0 + t).data[0]); }
    __device__ float raw_step(int t) const { return read(in.delta, t) + bias; }
    __device__ float step(int t) const {
        const float raw = raw_step(t);
        return in.softplus ? softplus_of(raw) : raw;
    }
    // Gradient of y before the gate.
    __device__ float gradient(SeriesView<const T> dy, int t) const {
        const float grad = read(dy, t);
        if (in.z.data == nullptr) return grad;
        const float z = read(in.z, t);
        return grad * z * sigmoid_of(z);
    }
};

// B and C of a chunk, which all channels share.
template <typename T, int N>
__device__ void load_rows(const Inputs<T>& in, const Place& at, float (*B)[N], float (*C)[N]) {
    for (int i = threadIdx.x; i < at.steps * N; i += kWarp) {
        B[i / N][i % N] = to_float(in.B.at(at.b, i % N, at.t0 + i / N).data[0]);
        C[i / N][i % N] = to_float(in.C.at(at.b, i % N, at.t0 + i / N).data[0]);
    }
    __syncthreads();
}

template <int N>
__device__ void advance(float* h, const float* a_log2, float delta, float u, const float* B) {
#pragma unroll
    for (int n = 0; n < N; ++n) h[n] = scan_decay(delta, a_log2[n]) * h[n] + delta * u * B[n];
}

// states [batch, chunks, dim, N] of chunks that begin with zeros; elapsed [batch, chunks, dim]: the sum of their steps.
template <typename T, int N>
__global__ void own_states(Inputs<T> in, Sizes size, float* states, float* elapsed) {
    __shared__ float B[kScanChunk][N], C[kScanChunk][N];
    const Place at = place(size);
    const Channel<T, N> channel(in, at);
    load_rows(in, at, B, C);
    float h[N] = {}, sum = 0;
    for (int t = 0; t < at.steps; ++t) {
        const float delta = channel.step(t);
        sum += delta;
        advance<N>(h, channel.a_log2, delta, channel.read(in.u, t), B[t]);
    }
    if (!at.live) return;
    const int64_t row = (at.b * size.chunks + at.chunk) * size.dim + at.d;
#pragma unroll
    for (int n = 0; n < N; ++n) states[row * N + n] = h[n];
    elapsed[row] = sum;
}

// The same of the gradient of the state, against time: what a chunk hands to the one before it.
template <typename T, int N>
__global__ void own_gradients(Inputs<T> in, Sizes size, SeriesView<const T> dy, float* grads, float* elapsed) {
    __shared__ float B[kScanChunk][N], C[kScanChunk][N];
    const Place at = place(size);
    const Channel<T, N> channel(in, at);
    load_rows(in, at, B, C);
    float g[N] = {}, sum = 0;
    for (int t = at.steps - 1; t >= 0; --t) {
        const float delta = channel.step(t), grad = channel.gradient(dy, t);
        sum += delta;
#pragma unroll
        for (int n = 0; n < N; ++n) g[n] = scan_decay(delta, channel.a_log2[n]) * (g[n] + grad * C[t][n]);
    }
    if (!at.live) return;
    const int64_t row = (at.b * size.chunks + at.chunk) * size.dim + at.d;
#pragma unroll
    for (int n = 0; n < N; ++n) grads[row * N + n] = g[n];
    elapsed[row] = sum;
}

// From each chunk's own values to those that it begins with; one thread is one number of the state.
__global__ void link(const float* A, const float* elapsed, Sizes size, int64_t state, bool backwards, float* values) {
    const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, numbers = size.dim * state;
    if (i >= size.batch * numbers) return;
    const int64_t b = i / numbers, rest = i % numbers;
    const float a_log2 = A[rest] * static_cast<float>(kLog2E);
    float carried = 0;
    for (int64_t k = 0; k < size.chunks; ++k) {
        const int64_t row = b * size.chunks + (backwards ? size.chunks - 1 - k : k);
        const float own = values[row * numbers + rest];
        values[row * numbers + rest] = carried;
        carried = scan_decay(elapsed[row * size.dim + rest / state], a_log2) * carried + own;
    }
}

template <typename T, int N>
__global__ void outputs(Inputs<T> in, Sizes size, const float* states, SeriesView<T> y) {
    __shared__ float B[kScanChunk][N], C[kScanChunk][N];
    const Place at = place(size);
    const Channel<T, N> channel(in, at);
    load_rows(in, at, B, C);
    float h[N];
#pragma unroll
    for (int n = 0; n < N; ++n) h[n] = states[((at.b * size.chunks + at.chunk) * size.dim + at.d) * N + n];
    for (int t = 0; t < at.steps; ++t) {
        const float u = channel.read(in.u, t);
        advance<N>(h, channel.a_log2, channel.step(t), u, B[t]);
        float out = channel.skip * u;
#pragma unroll
        for (int n = 0; n < N; ++n) out += h[n] * C[t][n];
        if (in.z.data != nullptr) {
            const float z = channel.read(in.z, t);
            out *= z * sigmoid_of(z);
        }
        if (at.live) set(y.at(at.b, at.d, at.t0 + t).data[0], out);
    }
}

// Sums of K values over the lanes of a warp: each step adds up half of them in half of the lanes. Afterwards lane l holds
// sums number l * K / 32 and on, of which there are K / 32, or one in 32 / K lanes.
template <int K>
__device__ void sum_over_lanes(float* values) {
    int count = K;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const bool upper = threadIdx.x & offset;
        if (count > 1) {
            count /= 2;
#pragma unroll
            for (int i = 0; i < K / 2; ++i) {
                if (i >= count) break;
                const float sent = upper ? values[i] : values[i + count];
                const float kept = upper ? values[i + count] : values[i];
                values[i] = kept + __shfl_xor_sync(0xFFFFFFFFu, sent, offset);
            }
        } else {
            values[0] += __shfl_xor_sync(0xFFFFFFFFu, values[0], offset);
        }
    }
}

template <typename T>
struct Gradients {
    SeriesView<T> du, ddelta, dz;
    SeriesView<float> dB, dC;  // [parts * batch, N, length], a part for each block of channels
    float *dA, *dD, *dbias;    // one for each chunk of each sequence
};

template <typename T, int N>
__global__ void gradients(Inputs<T> in, Sizes size, SeriesView<const T> dy, const float* states, const float* grads,
                          Gradients<T> out) {
    __shared__ float B[kScanChunk][N], C[kScanChunk][N];
    const Place at = place(size);
    const Channel<T, N> channel(in, at);
    load_rows(in, at, B, C);
    const int64_t row = (at.b * size.chunks + at.chunk) * size.dim + at.d;
    const int64_t slice = blockIdx.y * size.batch + at.b;
    float first[kScanChunk / kPart][N], g[N], dA[N] = {}, dD = 0, dbias = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        first[0][n] = states[row * N + n];
        g[n] = grads[row * N + n];
    }
    const int parts = (at.steps + kPart - 1) / kPart;
    for (int part = 1; part < parts; ++part) {
        for (int n = 0; n < N; ++n) first[part][n] = first[part - 1][n];
        for (int t = (part - 1) * kPart; t < part * kPart; ++t)
            advance<N>(first[part], channel.a_log2, channel.step(t), channel.read(in.u, t), B[t]);
    }
    for (int part = parts - 1; part >= 0; --part) {
        const int begin = part * kPart, end = begin + kPart < at.steps ? begin + kPart : at.steps;
        float h[kPart + 1][N];  // before each step, and after the last
        for (int n = 0; n < N; ++n) h[0][n] = first[part][n];
        for (int t = begin; t < end; ++t) {
            for (int n = 0; n < N; ++n) h[t - begin + 1][n] = h[t - begin][n];
            advance<N>(h[t - begin + 1], channel.a_log2, channel.step(t), channel.read(in.u, t), B[t]);
        }
        for (int t = end - 1; t >= begin; --t) {
            const float *before = h[t - begin], *after = h[t - begin + 1];
            const float u = channel.read(in.u, t), raw = channel.raw_step(t), delta = channel.step(t);
            float grad = channel.read(dy, t), shared[2 * N];  // contributions to dB, then dC
            if (in.z.data != nullptr) {
                const float z = channel.read(in.z, t), s = sigmoid_of(z);
                float y = channel.skip * u;
#pragma unroll
                for (int n = 0; n < N; ++n) y += after[n] * C[t][n];
                if (at.live) set(out.dz.at(at.b, at.d, at.t0 + t).data[0], grad * y * silu_slope(z, s));
                grad *= z * s;
            }
            float ddelta = 0, dinput = 0;
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float total = g[n] + grad * C[t][n], decay = scan_decay(delta, channel.a_log2[n]);
                const ScanAdjoint<float> step = scan_adjoint(total, decay * before[n], delta, channel.a[n], B[t][n]);
                shared[n] = at.live ? total * delta * u : 0.0f;
                shared[N + n] = at.live ? grad * after[n] : 0.0f;
                ddelta += step.delta;
                dinput += step.input;
                dA[n] += step.a;
                g[n] = total * decay;
            }
            const float change = (ddelta + dinput * u) * (in.softplus ? sigmoid_of(raw) : 1.0f);
            dD += grad * u;
            dbias += change;
            if (at.live) {
                set(out.du.at(at.b, at.d, at.t0 + t).data[0], dinput * delta + grad * channel.skip);
                set(out.ddelta.at(at.b, at.d, at.t0 + t).data[0], change);
            }
            sum_over_lanes<2 * N>(shared);
            constexpr int kLanesPerSum = 2 * N < kWarp ? kWarp / (2 * N) : 1, kSums = 2 * N > kWarp ? 2 * N / kWarp : 1;
            for (int i = 0; i < kSums; ++i) {
                const int n = threadIdx.x / kLanesPerSum * kSums + i;
                const SeriesView<float>& to = n < N ? out.dB : out.dC;
                if (threadIdx.x % kLanesPerSum == 0) to.at(slice, n % N, at.t0 + t).data[0] = shared[i];
            }
        }
    }
    if (!at.live) return;
#pragma unroll
    for (int n = 0; n < N; ++n) out.dA[row * N + n] = dA[n];
    out.dD[row] = dD;
    out.dbias[row] = dbias;
}

// Untyped arguments, as they come; `run` makes views of an element type of them.
struct Call {
    const void *u, *delta, *z, *B, *C;
    const float *A, *D, *bias;
    const int64_t* strides;
    Sizes size;
    int64_t state;
    bool softplus, reverse;
    cudaStream_t stream;

    template <typename T>
    SeriesView<T> view(T* data, int i) const {
        return series_view(data, strides + 3 * i, size.length, reverse);
    }
    template <typename T>
    SeriesView<const T> input(const void* data, int i) const {
        return view(static_cast<const T*>(data), i);
    }
    template <typename T>
    Inputs<T> inputs() const {
        return {input<T>(u, 0), input<T>(delta, 1), input<T>(z, 2), input<T>(B, 3), input<T>(C, 4), A, D, bias, softplus};
    }
    dim3 grid() const {
        return dim3(static_cast<unsigned>(size.batch * size.chunks),
                    static_cast<unsigned>((size.dim + kWarp - 1) / kWarp));
    }
    void link_chunks(const float* elapsed, bool backwards, float* values) const {
        const int64_t numbers = size.batch * size.dim * state;
        start_kernel(link, static_cast<unsigned>((numbers + 127) / 128), 128, 0, stream, A, elapsed, size, state,
                     backwards, values);
    }
    bool is_covered() const { return size.batch * size.chunks < (int64_t(1) << 31) && size.dim < kWarp * 65535; }
};

struct Forward : Call {
    void* y;
    float *states, *elapsed;

    template <typename T, int N>
    int launch() const {
        const Inputs<T> in = inputs<T>();
        start_kernel(own_states<T, N>, grid(), kWarp, 0, stream, in, size, states, elapsed);
        link_chunks(elapsed, false, states);
        start_kernel(outputs<T, N>, grid(), kWarp, 0, stream, in, size, states, view(static_cast<T*>(y), 5));
        return cudaGetLastError();
    }
    template <typename T>
    int run() const {
        if (state == 8) return launch<T, 8>();
        return state == 16 ? launch<T, 16>() : -1;
    }
};

struct Backward : Call {
    const void* dy;
    const float* states;
    void *du, *ddelta, *dz;
    float *dB, *dC, *dA, *dD, *dbias, *grads, *elapsed;

    template <typename T, int N>
    int launch() const {
        const Inputs<T> in = inputs<T>();
        const SeriesView<const T> dout = input<T>(dy, 5);
        const Gradients<T> out{view(static_cast<T*>(du), 6), view(static_cast<T*>(ddelta), 7),
                               view(static_cast<T*>(dz), 8), view(dB, 9), view(dC, 10), dA, dD, dbias};
        start_kernel(own_gradients<T, N>, grid(), kWarp, 0, stream, in, size, dout, grads, elapsed);
        link_chunks(elapsed, true, grads);
        start_kernel(gradients<T, N>, grid(), kWarp, 0, stream, in, size, dout, states, grads, out);
        return cudaGetLastError();
    }
    template <typename T>
    int run() const {
        if (state == 8) return launch<T, 8>();
        return state == 16 ? launch<T, 16>() : -1;
    }
};

Sizes sizes(int64_t batch, int64_t dim, int64_t length) {
    return {batch, dim, length, (length + kScanChunk - 1) / kScanChunk};
}

}  // namespace

// u, delta, z, B, C, y and their gradients are of the element type, but dB and dC, which are float as all else is. Shapes
// and strides as on the CPU; dB, dC: [ceil(dim / 32) * batch, state, length]; dA, dD, dbias: one for each chunk of each
// sequence. states, grads [batch, chunks, dim, state] and elapsed [batch, chunks, dim] are room; states go from the
// forward to the backward pass. Returns -1 for a size of the state, or sizes, that it does not cover.
PCDET_API int pcdet_selective_scan_forward_cuda(const void* u, const void* delta, const void* z, const float* A,
                                                const void* B, const void* C, const float* D, const float* bias,
                                                const int64_t* strides, int64_t batch, int64_t dim, int64_t state,
                                                int64_t length, int softplus, int reverse, void* y, float* states,
                                                float* elapsed, int type, void* stream) {
    if (batch * dim * length == 0) return 0;
    const Call call{u, delta, z, B, C, A, D, bias, strides, sizes(batch, dim, length), state, softplus != 0,
                    reverse != 0, static_cast<cudaStream_t>(stream)};
    return call.is_covered() ? with_type(type, Forward{call, y, states, elapsed}) : -1;
}

PCDET_API int pcdet_selective_scan_backward_cuda(const void* u, const void* delta, const void* z, const float* A,
                                                 const void* B, const void* C, const float* D, const float* bias,
                                                 const int64_t* strides, int64_t batch, int64_t dim, int64_t state,
                                                 int64_t length, int softplus, int reverse, const void* dy,
                                                 const float* states, void* du, void* ddelta, void* dz, float* dB,
                                                 float* dC, float* dA, float* dD, float* dbias, float* grads,
                                                 float* elapsed, int type, void* stream) {
    if (batch * dim * length == 0) return 0;
    const Call call{u, delta, z, B, C, A, D, bias, strides, sizes(batch, dim, length), state, softplus != 0,
                    reverse != 0, static_cast<cudaStream_t>(stream)};
    const Backward backward{call, dy, states, du, ddelta, dz, dB, dC, dA, dD, dbias, grads, elapsed};
    return call.is_covered() ? with_type(type, backward) : -1;
}
