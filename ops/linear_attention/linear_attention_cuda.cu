// Scattered linear attention on CUDA: one block is one head of one segment. Thread (j, r) owns value channel j; the R row
// groups share out the rows and add their states in a fixed order, so that results repeat. Accumulation is float32.
#include "common.h"
#include "cuda_launch.h"
#include "half.h"

namespace {

using pcdet::set;
using pcdet::start_kernel;
using pcdet::to_float;
using pcdet::with_type;

constexpr int kGroups = 4;

// Sum over the D threads of a row group; `scratch` is that group's D floats. All threads of the block must call.
template <int D>
__device__ float group_sum(float x, float* scratch, int j) {
    scratch[j] = x;
    __syncthreads();
    for (int half = D / 2; half > 0; half /= 2) {
        if (j < half) scratch[j] += scratch[j + half];
        __syncthreads();
    }
    const float total = scratch[0];
    __syncthreads();
    return total;
}

// Sum a^T b over the rows of a segment into `state` [D][D + 1] and of weight * a into `sum`, whose rows are a(r), b(r).
template <int D, typename A, typename B, typename W>
__device__ void accumulate(int64_t begin, int64_t end, const A& a, const B& b, const W& weight, float (*state)[D + 1],
                           float* sum, float (*rows)[D], int j, int r) {
    float column[D];
    float total = 0;
#pragma unroll
    for (int i = 0; i < D; ++i) column[i] = 0;
    for (int64_t first = begin; first < end; first += kGroups) {
        const int64_t row = first + r;
        const bool live = row < end;
        const float left = live ? a(row) : 0.0f;
        rows[r][j] = left;
        __syncthreads();
        if (live) {
            const float right = b(row);
            total += weight(row) * left;
#pragma unroll
            for (int i = 0; i < D; ++i) column[i] += rows[r][i] * right;
        }
        __syncthreads();
    }
    for (int turn = 0; turn < kGroups; ++turn) {  // one group after the other: the order of the sum is fixed
        if (turn == r) {
#pragma unroll
            for (int i = 0; i < D; ++i) state[i][j] = (turn ? state[i][j] : 0.0f) + column[i];
            sum[j] = (turn ? sum[j] : 0.0f) + total;
        }
        __syncthreads();
    }
}

template <typename T, int D>
__global__ void forward(const T* q, const T* k, const T* v, const int64_t* offsets, int64_t heads, float eps, T* y) {
    __shared__ float state[D][D + 1], sum[D], rows[kGroups][D], scratch[kGroups][D];
    const int j = threadIdx.x, r = threadIdx.y;
    const int64_t segment = blockIdx.x / heads, head = blockIdx.x % heads;
    const int64_t begin = offsets[segment], end = offsets[segment + 1];
    const auto at = [=](int64_t row) { return (row * heads + head) * D + j; };
    accumulate<D>(
        begin, end, [&](int64_t row) { return to_float(k[at(row)]); }, [&](int64_t row) { return to_float(v[at(row)]); },
        [](int64_t) { return 1.0f; }, state, sum, rows, j, r);
    for (int64_t first = begin; first < end; first += kGroups) {
        const int64_t row = first + r;
        const bool live = row < end;
        const float query = live ? to_float(q[at(row)]) : 0.0f;
        rows[r][j] = query;
        const float z = group_sum<D>(query * sum[j], scratch[r], j) + eps;
        float out = 0;
#pragma unroll
        for (int i = 0; i < D; ++i) out += rows[r][i] * state[i][j];
        if (live) set(y[at(row)], out / z);
        __syncthreads();
    }
}

template <typename T, int D>
__global__ void backward(const T* q, const T* k, const T* v, const T* dy, const int64_t* offsets, int64_t heads,
                         float eps, float* scales, T* dq, T* dk, T* dv) {
    __shared__ float state[D][D + 1], sum[D], rows[kGroups][D], scratch[kGroups][D];
    const int j = threadIdx.x, r = threadIdx.y;
    const int64_t segment = blockIdx.x / heads, head = blockIdx.x % heads;
    const int64_t begin = offsets[segment], end = offsets[segment + 1];
    const auto at = [=](int64_t row) { return (row * heads + head) * D + j; };
    const auto key = [&](int64_t row) { return to_float(k[at(row)]); };
    const auto value = [&](int64_t row) { return to_float(v[at(row)]); };
    accumulate<D>(begin, end, key, value, [](int64_t) { return 1.0f; }, state, sum, rows, j, r);
    for (int64_t first = begin; first < end; first += kGroups) {
        const int64_t row = first + r;
        const bool live = row < end;
        const float query = live ? to_float(q[at(row)]) : 0.0f;
        const float grad = live ? to_float(dy[at(row)]) : 0.0f;
        rows[r][j] = query;
        const float scale = 1.0f / (group_sum<D>(query * sum[j], scratch[r], j) + eps);
        float out = 0;
#pragma unroll
        for (int i = 0; i < D; ++i) out += rows[r][i] * state[i][j];
        const float dz = -group_sum<D>(grad * out, scratch[r], j) * scale * scale;
        rows[r][j] = grad * scale;
        __syncthreads();
        float dquery = sum[j] * dz;
#pragma unroll
        for (int i = 0; i < D; ++i) dquery += state[j][i] * rows[r][i];
        if (live) {
            set(dq[at(row)], dquery);
            if (j == 0) {
                scales[2 * (row * heads + head)] = scale;
                scales[2 * (row * heads + head) + 1] = dz;
            }
        }
        __syncthreads();
    }
    const auto dn = [&](int64_t row) { return to_float(dy[at(row)]) * scales[2 * (row * heads + head)]; };
    const auto dz = [&](int64_t row) { return scales[2 * (row * heads + head) + 1]; };
    const auto query = [&](int64_t row) { return to_float(q[at(row)]); };
    accumulate<D>(begin, end, query, dn, dz, state, sum, rows, j, r);
    for (int64_t first = begin; first < end; first += kGroups) {
        const int64_t row = first + r;
        const bool live = row < end;
        rows[r][j] = live ? value(row) : 0.0f;
        scratch[r][j] = live ? key(row) : 0.0f;
        __syncthreads();
        float dkey = sum[j], dvalue = 0;
#pragma unroll
        for (int i = 0; i < D; ++i) {
            dkey += state[j][i] * rows[r][i];
            dvalue += state[i][j] * scratch[r][i];
        }
        if (live) {
            set(dk[at(row)], dkey);
            set(dv[at(row)], dvalue);
        }
        __syncthreads();
    }
}

template <typename T, int D>
int launch_forward(const void* q, const void* k, const void* v, const int64_t* offsets, int64_t segments, int64_t heads,
                   float eps, void* y, cudaStream_t stream) {
    const dim3 threads(D, kGroups);
    start_kernel(forward<T, D>, static_cast<unsigned>(segments * heads), threads, 0, stream, static_cast<const T*>(q),
                 static_cast<const T*>(k), static_cast<const T*>(v), offsets, heads, eps, static_cast<T*>(y));
    return cudaGetLastError();
}

template <typename T, int D>
int launch_backward(const void* q, const void* k, const void* v, const void* dy, const int64_t* offsets,
                    int64_t segments, int64_t heads, float eps, float* scales, void* dq, void* dk, void* dv,
                    cudaStream_t stream) {
    const dim3 threads(D, kGroups);
    start_kernel(backward<T, D>, static_cast<unsigned>(segments * heads), threads, 0, stream, static_cast<const T*>(q),
                 static_cast<const T*>(k), static_cast<const T*>(v), static_cast<const T*>(dy), offsets, heads, eps,
                 scales, static_cast<T*>(dq), static_cast<T*>(dk), static_cast<T*>(dv));
    return cudaGetLastError();
}

// Calls launch.template with_dim<T, D>() with the dimension of a head; -1 for what is not covered.
template <typename T, typename Launch>
int with_dim(int64_t d, const Launch& launch) {
    switch (d) {
        case 8: return launch.template with_dim<T, 8>();
        case 16: return launch.template with_dim<T, 16>();
        case 32: return launch.template with_dim<T, 32>();
        case 64: return launch.template with_dim<T, 64>();
        default: return -1;
    }
}

struct Forward {
    const void *q, *k, *v;
    const int64_t* offsets;
    int64_t segments, heads, d;
    float eps;
    void* y;
    cudaStream_t stream;

    template <typename T>
    int run() const {
        return ::with_dim<T>(d, *this);
    }
    template <typename T, int D>
    int with_dim() const {
        return launch_forward<T, D>(q, k, v, offsets, segments, heads, eps, y, stream);
    }
};

struct Backward {
    const void *q, *k, *v, *dy;
    const int64_t* offsets;
    int64_t segments, heads, d;
    float eps;
    float* scales;
    void *dq, *dk, *dv;
    cudaStream_t stream;

    template <typename T>
    int run() const {
        return ::with_dim<T>(d, *this);
    }
    template <typename T, int D>
    int with_dim() const {
        return launch_backward<T, D>(q, k, v, dy, offsets, segments, heads, eps, scales, dq, dk, dv, stream);
    }
};

constexpr int64_t kMaxBlocks = (int64_t(1) << 31) - 1;

}  // namespace

// Rows [n, heads, d] of the element type; d is 8, 16, 32 or 64. Returns -1 for what it does not cover.
PCDET_API int pcdet_linear_attention_forward_cuda(const void* q, const void* k, const void* v, const int64_t* offsets,
                                                  int64_t segments, int64_t heads, int64_t d, double eps, int type,
                                                  void* y, void* stream) {
    if (segments * heads == 0) return 0;
    if (segments * heads > kMaxBlocks) return -1;
    const Forward launch{q, k, v, offsets, segments, heads, d, static_cast<float>(eps), y, static_cast<cudaStream_t>(stream)};
    return with_type(type, launch);
}

// scales: float32 [n, heads, 2], scratch.
PCDET_API int pcdet_linear_attention_backward_cuda(const void* q, const void* k, const void* v, const void* dy,
                                                   const int64_t* offsets, int64_t segments, int64_t heads, int64_t d,
                                                   double eps, int type, float* scales, void* dq, void* dk, void* dv,
                                                   void* stream) {
    if (segments * heads == 0) return 0;
    if (segments * heads > kMaxBlocks) return -1;
    const Backward launch{q,      k,  v,  dy, offsets, segments, heads, d, static_cast<float>(eps), scales, dq,
                          dk, dv, static_cast<cudaStream_t>(stream)};
    return with_type(type, launch);
}
