// Selective scan on the CPU: a task is one sequence and a portion of its channels, of which kLanes run side by side as
// vectors, kScanChunk steps at a time. Inputs may have any strides: those whose channels are not neighbours are copied.
// Products are rounded before they are added, as in the published scan: the last digit of a result may decide on which
// side of a ReLU a number behind it lies. With AVX-512, fused ones are 1 to 3 % faster.
#pragma GCC optimize("no-thread-jumps")
#include "selective_scan.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int kPortion = 4;  // blocks of channels of one task, which adds up their gradients of B and C

struct Sizes {
    int64_t batch, dim, state, length;
    int64_t blocks() const { return (dim + kLanes - 1) / kLanes; }
    int64_t chunks() const { return (length + kScanChunk - 1) / kScanChunk; }
    int64_t portions() const { return (blocks() + kPortion - 1) / kPortion; }
    // A state of one block of channels at the start of a chunk: [state][kLanes].
    int64_t checkpoint(int64_t b, int64_t block, int64_t chunk) const {
        return ((b * blocks() + block) * chunks() + chunk) * state * kLanes;
    }
};

template <typename T>
struct Inputs {
    SeriesView<const T> u, delta, z, B, C;
    const T *A, *D, *bias;
    bool softplus;
};

template <typename T>
struct Gradients {
    SeriesView<T> du, ddelta, dz, dB, dC;  // dB, dC: [portions * batch, state, length]
    T *dA, *dD, *dbias;                    // one for each sequence
};

// One block of channels over one chunk, with everything of a step beside each other.
template <typename T>
struct Tile {
    Lanes<T> u[kScanChunk], raw[kScanChunk], delta[kScanChunk], input[kScanChunk], z[kScanChunk], y[kScanChunk];
};

// A's rows of a block as [state][kLanes], and times log2(e).
template <typename T>
void load_matrix(const T* A, int64_t state, int rows, T* plain, T* scaled) {
    for (int64_t n = 0; n < state; ++n)
        for (int w = 0; w < kLanes; ++w) {
            plain[n * kLanes + w] = w < rows ? A[w * state + n] : T(0);
            scaled[n * kLanes + w] = plain[n * kLanes + w] * static_cast<T>(kLog2E);
        }
}

// u, the step size before and after softplus, and the gate.
template <typename T>
inline __attribute__((always_inline)) void load_tile(const Inputs<T>& in, int64_t b, int64_t d, int rows, int64_t t0,
                                                     int steps, const Lanes<T>& bias, Tile<T>& tile) {
    load(in.u.at(b, d, t0), rows, steps, tile.u);
    load(in.delta.at(b, d, t0), rows, steps, tile.raw);
    if (in.z.data != nullptr) load(in.z.at(b, d, t0), rows, steps, tile.z);
    for (int t = 0; t < steps; ++t)
#pragma omp simd
        for (int w = 0; w < kLanes; ++w) tile.delta[t][w] = tile.raw[t][w] += bias[w];
    if (!in.softplus) return;
    for (int t = 0; t < steps; ++t)
#pragma omp simd
        for (int w = 0; w < kLanes; ++w) tile.delta[t][w] = softplus_of(tile.raw[t][w]);
}

// B or C of a chunk as [step][state].
template <typename T>
inline __attribute__((always_inline)) void load_rows(SeriesView<const T> from, int64_t state, int steps, T* to) {
    for (int t = 0; t < steps; ++t) {
        if (from.row == 1)
            std::memcpy(to + t * state, from.data + t * from.time, state * sizeof(T));
        else
            for (int64_t n = 0; n < state; ++n) to[t * state + n] = from(n, t);
    }
}

// Some numbers of the states through a chunk, and their part of y.
template <int Bytes, int Together, typename T>
inline __attribute__((always_inline)) void advance(Tile<T>& tile, int steps, int64_t n_state, const T* a, const T* B,
                                                   const T* C, T* h) {
    for (int w = 0; w < kLanes; w += VectorOf<T, Bytes>::width) {
        Vector<T, Bytes> rate[Together], state[Together];
        for (int i = 0; i < Together; ++i) {
            rate[i] = vector_at<Bytes>(a + i * kLanes + w);
            state[i] = vector_at<Bytes>(h + i * kLanes + w);
        }
        for (int t = 0; t < steps; ++t) {
            const Vector<T, Bytes> delta = vector_at<Bytes>(tile.delta[t] + w);
            const Vector<T, Bytes> input = vector_at<Bytes>(tile.input[t] + w);
            Vector<T, Bytes> y = vector_at<Bytes>(tile.y[t] + w);
            for (int i = 0; i < Together; ++i) {
                state[i] = scan_decay(delta, rate[i]) * state[i] + input * B[t * n_state + i];
                y += state[i] * C[t * n_state + i];
            }
            put_vector(tile.y[t] + w, y);
        }
        for (int i = 0; i < Together; ++i) put_vector(h + i * kLanes + w, state[i]);
    }
}

// A block of channels on its way along the sequence.
template <typename T>
struct Walker {
    T *h, *a;  // [state][kLanes]: the states, and A times log2(e)
    Lanes<T> bias, D;
    int64_t d;
    int rows;

    static int64_t room(int64_t n_state) { return 2 * n_state * kLanes; }

    void begin(const Inputs<T>& in, Sizes size, int64_t block, T* scratch) {
        d = block * kLanes;
        rows = static_cast<int>(std::min<int64_t>(kLanes, size.dim - d));
        h = scratch;
        a = h + size.state * kLanes;
        load_matrix(in.A + d * size.state, size.state, rows, h, a);
        load_lanes(in.bias == nullptr ? nullptr : in.bias + d, rows, bias);
        load_lanes(in.D == nullptr ? nullptr : in.D + d, rows, D);
        for (int64_t i = 0; i < size.state * kLanes; ++i) h[i] = a[i] == a[i] ? T(0) : a[i];  // exp2_of hides NaN
    }
};

// Step sizes, inputs and the start of y.
template <int Bytes, typename T>
inline __attribute__((always_inline)) void begin_tile(const Walker<T>& walker, Steps<T> u, Steps<T> raw, bool softplus,
                                                      int steps, Tile<T>& tile) {
    for (int w = 0; w < kLanes; w += VectorOf<T, Bytes>::width) {
        const Vector<T, Bytes> bias = vector_at<Bytes>(walker.bias + w), D = vector_at<Bytes>(walker.D + w);
        for (int t = 0; t < steps; ++t) {
            const Vector<T, Bytes> u_t = vector_at<Bytes>(u[t] + w), step = vector_at<Bytes>(raw[t] + w) + bias;
            const Vector<T, Bytes> delta = softplus ? softplus_of(step) : step;
            put_vector(tile.delta[t] + w, delta);
            put_vector(tile.input[t] + w, delta * u_t);
            put_vector(tile.y[t] + w, D * u_t);
        }
    }
}

template <int Bytes, typename T>
inline __attribute__((always_inline)) void gate(Steps<T> z, int steps, Lanes<T>* y) {
    for (int t = 0; t < steps; ++t)
        for (int w = 0; w < kLanes; w += VectorOf<T, Bytes>::width) {
            const Vector<T, Bytes> z_t = vector_at<Bytes>(z[t] + w);
            put_vector(y[t] + w, vector_at<Bytes>(y[t] + w) * z_t * sigmoid_of(z_t));
        }
}

// At most kPortion blocks from the first on, chunk by chunk, so that their rows are read from end to end. The states go
// along in vectors of so many bytes, so many of their numbers together.
template <int Bytes, int Together, typename T>
inline __attribute__((always_inline)) void walk_portion(const Inputs<T>& in, Sizes size, int64_t b, int64_t first,
                                                        int64_t blocks, SeriesView<T> out, T* checkpoints, T* scratch) {
    const int64_t n_state = size.state;
    T *Bt = scratch, *Ct = Bt + kScanChunk * n_state;
    Walker<T> walkers[kPortion];
    Tile<T> tile;
    for (int64_t i = 0; i < blocks; ++i)
        walkers[i].begin(in, size, first + i, Ct + kScanChunk * n_state + i * Walker<T>::room(n_state));
    for (int64_t chunk = 0; chunk < size.chunks(); ++chunk) {
        const int64_t t0 = chunk * kScanChunk;
        const int steps = static_cast<int>(std::min<int64_t>(kScanChunk, size.length - t0));
        load_rows(in.B.at(b, 0, t0), n_state, steps, Bt);
        load_rows(in.C.at(b, 0, t0), n_state, steps, Ct);
        for (int64_t i = 0; i < blocks; ++i) {
            const Walker<T>& walker = walkers[i];
            if (checkpoints != nullptr)
                std::copy(walker.h, walker.h + n_state * kLanes, checkpoints + size.checkpoint(b, first + i, chunk));
            const Steps<T> u = steps_of(in.u.at(b, walker.d, t0), walker.rows, steps, tile.u);
            const Steps<T> raw = steps_of(in.delta.at(b, walker.d, t0), walker.rows, steps, tile.raw);
            begin_tile<Bytes>(walker, u, raw, in.softplus, steps, tile);
            int64_t n = 0;
            for (; n + Together <= n_state; n += Together)
                advance<Bytes, Together>(tile, steps, n_state, walker.a + n * kLanes, Bt + n, Ct + n,
                                         walker.h + n * kLanes);
            for (; n < n_state; ++n)
                advance<Bytes, 1>(tile, steps, n_state, walker.a + n * kLanes, Bt + n, Ct + n, walker.h + n * kLanes);
            if (in.z.data != nullptr)
                gate<Bytes>(steps_of(in.z.at(b, walker.d, t0), walker.rows, steps, tile.z), steps, tile.y);
            store(tile.y, walker.rows, steps, out.at(b, walker.d, t0));
        }
    }
}

// The same for the processor that this runs on: its registers decide how many numbers go together.
template <typename T>
struct ForwardPortion {
    using Function = void (*)(const Inputs<T>&, Sizes, int64_t, int64_t, int64_t, SeriesView<T>, T*, T*);

    static void anywhere(const Inputs<T>& in, Sizes size, int64_t b, int64_t first, int64_t blocks, SeriesView<T> out,
                         T* checkpoints, T* scratch) {
        walk_portion<32, 1>(in, size, b, first, blocks, out, checkpoints, scratch);
    }

#if defined(PCDET_FUSED_TARGETS)
    __attribute__((target("arch=x86-64-v3"))) static void avx2(const Inputs<T>& in, Sizes size, int64_t b,
                                                               int64_t first, int64_t blocks, SeriesView<T> out,
                                                               T* checkpoints, T* scratch) {
        walk_portion<32, 1>(in, size, b, first, blocks, out, checkpoints, scratch);
    }
    __attribute__((target("arch=x86-64-v4"))) static void avx512(const Inputs<T>& in, Sizes size, int64_t b,
                                                                 int64_t first, int64_t blocks, SeriesView<T> out,
                                                                 T* checkpoints, T* scratch) {
        walk_portion<64, 4>(in, size, b, first, blocks, out, checkpoints, scratch);
    }
#endif

    static Function best() {
#if defined(PCDET_FUSED_TARGETS)
        if (__builtin_cpu_supports("x86-64-v4")) return avx512;
        if (__builtin_cpu_supports("x86-64-v3")) return avx2;
#endif
        return anywhere;
    }
};

// Overwrite steps before softplus by the slope there.
template <typename T>
inline __attribute__((always_inline)) void softplus_slopes(bool softplus, int steps, Lanes<T>* raw) {
    if (!softplus) std::fill(raw[0], raw[0] + steps * kLanes, T(1));
    if (!softplus) return;
    for (int t = 0; t < steps; ++t)
#pragma omp simd
        for (int w = 0; w < kLanes; ++w) raw[t][w] = sigmoid_of(raw[t][w]);
}

template <typename T>
inline __attribute__((always_inline)) T sum_lanes(Lanes<T>& x) {
    static_assert(kLanes == 16);
    for (int w = 0; w < 8; ++w) x[w] += x[w + 8];
    for (int w = 0; w < 4; ++w) x[w] += x[w + 4];
    return (x[0] + x[2]) + (x[1] + x[3]);
}

// The states after each step of a chunk and the decayed states before their input, from the chunk's first state.
template <typename T>
inline __attribute__((always_inline)) void replay(const Tile<T>& tile, int64_t n_state, int steps, const T* a,
                                                  const T* Bt, const T* Ct, const T* first, const Lanes<T>& D,
                                                  T* states, T* decays, Lanes<T>* y) {
    const int64_t row = n_state * kLanes;
    for (int t = 0; t < steps; ++t) {
        const T* before = t == 0 ? first : states + (t - 1) * row;
        Lanes<T> input, total;
#pragma omp simd
        for (int w = 0; w < kLanes; ++w) {
            input[w] = tile.delta[t][w] * tile.u[t][w];
            total[w] = D[w] * tile.u[t][w];
        }
        for (int64_t n = 0; n < n_state; ++n) {
            const T B = Bt[t * n_state + n], C = Ct[t * n_state + n];
            const T *old = before + n * kLanes, *an = a + n * kLanes;
            T *now = states + t * row + n * kLanes, *decay = decays + t * row + n * kLanes;
#pragma omp simd
            for (int w = 0; w < kLanes; ++w) {
                const T factor = scan_decay(tile.delta[t][w], an[w]);
                const T state = factor * old[w] + input[w] * B;
                decay[w] = factor;
                now[w] = state;
                total[w] += state * C;
            }
        }
        std::copy(total, total + kLanes, y[t]);
    }
}

// Gradient of the gated output: that of y (in place of `grad`), and of z.
template <typename T>
inline __attribute__((always_inline)) void ungate(const Tile<T>& tile, const Lanes<T>* y, int steps, Lanes<T>* grad,
                                                  Lanes<T>* dz) {
    for (int t = 0; t < steps; ++t)
#pragma omp simd
        for (int w = 0; w < kLanes; ++w) {
            const T z = tile.z[t][w], s = sigmoid_of(z), g = grad[t][w];
            dz[t][w] = g * y[t][w] * silu_slope(z, s);
            grad[t][w] = g * z * s;
        }
}

template <typename T>
PCDET_FUSED_CLONES void backward_block(const Inputs<T>& in, Sizes size, int64_t b, int64_t block, SeriesView<const T> dy,
                                 const T* checkpoints, const Gradients<T>& out, T* scratch) {
    const int64_t d = block * kLanes, n_state = size.state, row = n_state * kLanes;
    const int rows = static_cast<int>(std::min<int64_t>(kLanes, size.dim - d));
    const int64_t slice = block / kPortion * size.batch + b;
    T *g = scratch, *a_plain = g + row, *a = a_plain + row, *dA = a + row;
    T *Bt = dA + row, *Ct = Bt + kScanChunk * n_state;
    T *states = Ct + kScanChunk * n_state, *decays = states + kScanChunk * row;
    Tile<T> tile;
    Lanes<T> grad[kScanChunk], dz[kScanChunk], bias, D, dD = {}, dbias = {};
    load_matrix(in.A + d * n_state, n_state, rows, a_plain, a);
    load_lanes(in.bias == nullptr ? nullptr : in.bias + d, rows, bias);
    load_lanes(in.D == nullptr ? nullptr : in.D + d, rows, D);
    std::fill(g, g + row, T(0));
    std::fill(dA, dA + row, T(0));
    for (int64_t chunk = size.chunks() - 1; chunk >= 0; --chunk) {
        const int64_t t0 = chunk * kScanChunk;
        const int steps = static_cast<int>(std::min<int64_t>(kScanChunk, size.length - t0));
        const T* first = checkpoints + size.checkpoint(b, block, chunk);
        load_tile(in, b, d, rows, t0, steps, bias, tile);
        load_rows(in.B.at(b, 0, t0), n_state, steps, Bt);
        load_rows(in.C.at(b, 0, t0), n_state, steps, Ct);
        load(dy.at(b, d, t0), rows, steps, grad);
        softplus_slopes(in.softplus, steps, tile.raw);
        replay(tile, n_state, steps, a, Bt, Ct, first, D, states, decays, tile.y);
        if (in.z.data != nullptr) {
            ungate(tile, tile.y, steps, grad, dz);
            store(dz, rows, steps, out.dz.at(b, d, t0));
        }
        const SeriesView<T> dB = out.dB.at(slice, 0, t0), dC = out.dC.at(slice, 0, t0);
        const bool begins = block % kPortion == 0;
        for (int t = steps - 1; t >= 0; --t) {
            const T* before = t == 0 ? first : states + (t - 1) * row;
            Lanes<T> dinput = {}, ddelta = {}, input;
#pragma omp simd
            for (int w = 0; w < kLanes; ++w) input[w] = tile.delta[t][w] * tile.u[t][w];
            for (int64_t n = 0; n < n_state; ++n) {
                const T B = Bt[t * n_state + n], C = Ct[t * n_state + n];
                const T *old = before + n * kLanes, *now = states + t * row + n * kLanes;
                const T *decay = decays + t * row + n * kLanes, *an = a_plain + n * kLanes;
                T *gn = g + n * kLanes, *dAn = dA + n * kLanes;
                Lanes<T> to_B, to_C;
#pragma omp simd
                for (int w = 0; w < kLanes; ++w) {
                    const T total = gn[w] + grad[t][w] * C;
                    const ScanAdjoint<T> step = scan_adjoint(total, decay[w] * old[w], tile.delta[t][w], an[w], B);
                    to_C[w] = grad[t][w] * now[w];
                    to_B[w] = total * input[w];
                    ddelta[w] += step.delta;
                    dinput[w] += step.input;
                    dAn[w] += step.a;
                    gn[w] = total * decay[w];
                }
                const T sum_B = sum_lanes(to_B), sum_C = sum_lanes(to_C);
                dB(n, t) = begins ? sum_B : dB(n, t) + sum_B;
                dC(n, t) = begins ? sum_C : dC(n, t) + sum_C;
            }
#pragma omp simd
            for (int w = 0; w < kLanes; ++w) {
                const T u = tile.u[t][w];
                const T change = (ddelta[w] + dinput[w] * u) * tile.raw[t][w];
                dD[w] += grad[t][w] * u;
                dbias[w] += change;
                tile.y[t][w] = change;
                tile.u[t][w] = dinput[w] * tile.delta[t][w] + grad[t][w] * D[w];
            }
        }
        store(tile.u, rows, steps, out.du.at(b, d, t0));
        store(tile.y, rows, steps, out.ddelta.at(b, d, t0));
    }
    for (int w = 0; w < rows; ++w) {
        for (int64_t n = 0; n < n_state; ++n) out.dA[(b * size.dim + d + w) * n_state + n] = dA[n * kLanes + w];
        out.dD[b * size.dim + d + w] = dD[w];
        out.dbias[b * size.dim + d + w] = dbias[w];
    }
}

template <typename T>
int forward(const Inputs<T>& in, Sizes size, SeriesView<T> out, T* checkpoints, int threads) {
    const int64_t together = size.batch * size.portions() < 2 * threads ? 1 : kPortion;  // enough tasks for all threads
    const int64_t parts = (size.blocks() + together - 1) / together;
    const auto forward_portion = ForwardPortion<T>::best();
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> scratch(size.state * 2 * kScanChunk + together * Walker<T>::room(size.state));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < size.batch * parts; ++task) {
            const int64_t first = task % parts * together;
            forward_portion(in, size, task / parts, first, std::min(together, size.blocks() - first), out, checkpoints,
                            scratch.data());
        }
    }
    return 0;
}

template <typename T>
int backward(const Inputs<T>& in, Sizes size, SeriesView<const T> dy, const T* checkpoints, const Gradients<T>& out,
             int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> scratch(size.state * (4 * kLanes + 2 * kScanChunk + 2 * kScanChunk * kLanes));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < size.batch * size.portions(); ++task) {
            const int64_t first = task % size.portions() * kPortion;
            for (int64_t block = first; block < std::min(first + kPortion, size.blocks()); ++block)
                backward_block(in, size, task / size.portions(), block, dy, checkpoints, out, scratch.data());
        }
    }
    return 0;
}

template <typename T>
Inputs<T> inputs(const T* u, const T* delta, const T* z, const T* A, const T* B, const T* C, const T* D, const T* bias,
                 const int64_t* strides, int64_t length, bool softplus, bool reverse) {
    const auto view = [=](const T* data, int i) { return series_view(data, strides + 3 * i, length, reverse); };
    return {view(u, 0), view(delta, 1), view(z, 2), view(B, 3), view(C, 4), A, D, bias, softplus};
}

}  // namespace

// u, delta, z, y: [batch, dim, length]; B, C: [batch, state, length]; A [dim, state]; D, bias [dim]; z, D, bias may be
// null. strides: three (batch, row, time) for each of u, delta, z, B, C, and y or dy, du, ddelta, dz, dB, dC.
// checkpoints: [batch, ceil(dim / 16), ceil(length / 32), state, 16], null in a forward pass without a backward one.
// dB, dC: [ceil(dim / 64) * batch, state, length], the sum over the first axis (parts major) is to be taken; likewise of
// dA [batch, dim, state] and dD, dbias [batch, dim].
#define PCDET_SELECTIVE_SCAN(T, name)                                                                                 \
    PCDET_API int pcdet_selective_scan_forward_##name##_cpu(                                                          \
        const T* u, const T* delta, const T* z, const T* A, const T* B, const T* C, const T* D, const T* bias,        \
        const int64_t* strides, int64_t batch, int64_t dim, int64_t state, int64_t length, int softplus, int reverse, \
        T* y, T* checkpoints, int threads) {                                                                          \
        const auto in = inputs(u, delta, z, A, B, C, D, bias, strides, length, softplus, reverse);                    \
        return forward<T>(in, {batch, dim, state, length}, series_view(y, strides + 15, length, reverse),             \
                          checkpoints, threads);                                                                      \
    }                                                                                                                 \
    PCDET_API int pcdet_selective_scan_backward_##name##_cpu(                                                         \
        const T* u, const T* delta, const T* z, const T* A, const T* B, const T* C, const T* D, const T* bias,        \
        const int64_t* strides, int64_t batch, int64_t dim, int64_t state, int64_t length, int softplus, int reverse, \
        const T* dy, const T* checkpoints, T* du, T* ddelta, T* dz, T* dB, T* dC, T* dA, T* dD, T* dbias,             \
        int threads) {                                                                                                \
        const auto in = inputs(u, delta, z, A, B, C, D, bias, strides, length, softplus, reverse);                    \
        const auto view = [=](T* data, int i) { return series_view(data, strides + 3 * i, length, reverse); };        \
        const Gradients<T> out{view(du, 6), view(ddelta, 7), view(dz, 8), view(dB, 9), view(dC, 10), dA, dD, dbias};  \
        return backward<T>(in, {batch, dim, state, length}, series_view(dy, strides + 15, length, reverse),           \
                           checkpoints, out, threads);                                                                \
    }

PCDET_SELECTIVE_SCAN(float, float32)
PCDET_SELECTIVE_SCAN(double, float64)
