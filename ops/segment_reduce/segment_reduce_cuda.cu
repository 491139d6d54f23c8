// Segment reductions on CUDA. Rows are sorted by segment (stably, by torch), and one thread walks the rows of a segment
// in one column in order: no atomics, so results repeat and sums round as on the CPU.
#include "cuda_launch.h"
#include "segment_reduce.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;
constexpr int kAhead = 4;  // rows that are read at once: one alone would wait for memory each time

int blocks_for(int64_t n) { return static_cast<int>((n + kThreads - 1) / kThreads); }

template <typename T>
__global__ void reduce(const T* values, const int64_t* rows, const int64_t* offsets, int64_t segments, int64_t c, int kind,
                       T* out, int32_t* from) {
    const int64_t place = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (place >= segments * c) return;
    const int64_t segment = place / c, column = place % c;
    const int64_t first = offsets[segment], last = offsets[segment + 1];
    const bool picks = kind == kMax || kind == kMin;
    T result = 0;
    int32_t chosen = -1;
    for (int64_t k = first; k < last; k += kAhead) {
        int64_t row[kAhead];
        T value[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) row[i] = rows[k + i < last ? k + i : last - 1];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) value[i] = values[row[i] * c + column];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            if (k + i >= last) break;
            if (!picks) {
                result += value[i];
            } else if (chosen < 0 || beats(value[i], result, kind == kMax)) {
                result = value[i];
                chosen = static_cast<int32_t>(row[i]);
            }
        }
    }
    if (kind == kMean) result /= static_cast<T>(last > first ? last - first : 1);
    out[place] = result;
    if (picks) from[place] = chosen;
}

template <typename T>
__global__ void spread(const T* grad, const int64_t* index, const int32_t* from, const int64_t* count, int64_t n,
                       int64_t c, int kind, T* out) {
    const int64_t place = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (place >= n * c) return;
    const int64_t row = place / c, segment = index[row], above = segment * c + place % c;
    T result = 0;
    if (segment >= 0) {
        const bool picks = kind == kMax || kind == kMin;
        if (!picks || from[above] == row) result = grad[above];
        if (kind == kMean) result /= static_cast<T>(count[segment]);
    }
    out[place] = result;
}

template <typename T>
int launch_reduce(const T* values, const int64_t* rows, const int64_t* offsets, int64_t segments, int64_t c, int kind,
                  T* out, int32_t* from, cudaStream_t stream) {
    const int64_t n = segments * c;
    if (n > 0) {
        start_kernel(reduce<T>, blocks_for(n), kThreads, 0, stream, values, rows, offsets, segments, c, kind, out,
                     from);
    }
    return cudaGetLastError();
}

template <typename T>
int launch_spread(const T* grad, const int64_t* index, const int32_t* from, const int64_t* count, int64_t n, int64_t c,
                  int kind, T* out, cudaStream_t stream) {
    if (n * c > 0) {
        start_kernel(spread<T>, blocks_for(n * c), kThreads, 0, stream, grad, index, from, count, n, c, kind, out);
    }
    return cudaGetLastError();
}

}  // namespace

// rows [n]: the rows sorted by segment; segment s has places offsets[s] to offsets[s + 1]. Otherwise as on the CPU.
#define PCDET_SEGMENT_REDUCE(T, NAME)                                                                                  \
    PCDET_API int pcdet_segment_reduce_##NAME##_cuda(const T* values, const int64_t* rows, const int64_t* offsets,     \
                                                     int64_t segments, int64_t c, int kind, T* out, int32_t* from,     \
                                                     cudaStream_t stream) {                                            \
        return launch_reduce(values, rows, offsets, segments, c, kind, out, from, stream);                             \
    }                                                                                                                  \
    PCDET_API int pcdet_segment_spread_##NAME##_cuda(const T* grad, const int64_t* index, const int32_t* from,         \
                                                     const int64_t* count, int64_t n, int64_t c, int kind, T* out,     \
                                                     cudaStream_t stream) {                                            \
        return launch_spread(grad, index, from, count, n, c, kind, out, stream);                                       \
    }

PCDET_SEGMENT_REDUCE(float, float32)
PCDET_SEGMENT_REDUCE(double, float64)
