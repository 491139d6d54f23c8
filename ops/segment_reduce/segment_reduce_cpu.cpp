// Sum, mean, maximum and minimum of rows by segment on the CPU. Each thread owns a range of segments and walks all rows
// in order, so the result does not depend on the number of threads.
#include "segment_reduce.h"

#include <algorithm>
#include <cstring>

namespace {

using namespace pcdet;

// What a thread works on: rows [n, c] of the segments first to last - 1. `count` is 0 in the beginning.
template <typename T>
struct Share {
    const T* values;
    const int64_t* index;
    int64_t n, c, first, last;
    T* out;
    int32_t* from;
    int64_t* count;
};

// Width is the number of columns where it is known when this is compiled, else 0.
template <typename T, int Width>
void add_rows(const Share<T>& s) {
    const int64_t c = Width ? Width : s.c;
    for (int64_t i = 0; i < s.n; ++i) {
        if (s.index[i] < s.first || s.index[i] >= s.last) continue;
        T* __restrict row = s.out + s.index[i] * c;
        const T* value = s.values + i * c;
        for (int64_t j = 0; j < c; ++j) row[j] += value[j];
        ++s.count[s.index[i]];
    }
}

template <typename T>
__attribute__((always_inline)) inline void pick_rows(const Share<T>& s, bool is_max) {
    const int64_t c = s.c;
    for (int64_t i = 0; i < s.n; ++i) {
        if (s.index[i] < s.first || s.index[i] >= s.last) continue;
        T* __restrict best = s.out + s.index[i] * c;
        int32_t* __restrict from = s.from + s.index[i] * c;
        const T* value = s.values + i * c;
        const int32_t here = static_cast<int32_t>(i);
        if (s.count[s.index[i]]++ == 0) {
            std::copy(value, value + c, best);
            std::fill(from, from + c, here);
            continue;
        }
        for (int64_t j = 0; j < c; ++j) {
            const bool better = beats(value[j], best[j], is_max);
            best[j] = better ? value[j] : best[j];
            from[j] = better ? here : from[j];
        }
    }
}

// Compiled for several instruction sets, which the templates cannot be.
PCDET_CLONES void pick(const Share<float>& s, bool is_max) { is_max ? pick_rows(s, true) : pick_rows(s, false); }
PCDET_CLONES void pick(const Share<double>& s, bool is_max) { is_max ? pick_rows(s, true) : pick_rows(s, false); }

template <typename T>
void add(const Share<T>& s) {
    if (s.c == 3) add_rows<T, 3>(s);
    else if (s.c == 4) add_rows<T, 4>(s);
    else if (s.c == 5) add_rows<T, 5>(s);
    else add_rows<T, 0>(s);
}

template <typename T>
void reduce_share(const Share<T>& s, Reduce kind) {
    const bool picks = kind == kMax || kind == kMin;
    std::fill(s.out + s.first * s.c, s.out + s.last * s.c, T(0));
    std::fill(s.count + s.first, s.count + s.last, 0);
    if (picks) {
        std::fill(s.from + s.first * s.c, s.from + s.last * s.c, -1);
        pick(s, kind == kMax);
        return;
    }
    add(s);
    for (int64_t segment = s.first; segment < s.last && kind == kMean; ++segment) {
        const T divisor = static_cast<T>(std::max<int64_t>(s.count[segment], 1));
        for (int64_t j = 0; j < s.c; ++j) s.out[segment * s.c + j] /= divisor;
    }
}

PCDET_CLONES int64_t highest_of(const int64_t* index, int64_t n) {
    int64_t highest = -1;
    for (int64_t i = 0; i < n; ++i) highest = std::max(highest, index[i]);
    return highest;
}

int useful_threads(int64_t values, int threads) {
    constexpr int64_t kGrain = 32768;
    return static_cast<int>(std::clamp<int64_t>(values / kGrain, 1, threads));
}

template <typename T>
int reduce(const T* values, const int64_t* index, int64_t n, int64_t c, int64_t segments, int kind, T* out,
           int32_t* from, int64_t* count, int64_t* highest, int threads) {
    const int team = useful_threads(n * c, threads);
    int64_t most = -1;
#pragma omp parallel for num_threads(team) schedule(static) reduction(max : most)
    for (int t = 0; t < team; ++t) {
        const int64_t first = n * t / team;
        most = std::max(most, highest_of(index + first, n * (t + 1) / team - first));
    }
    *highest = most;
    if (most >= segments) return 0;
#pragma omp parallel for num_threads(team) schedule(static)
    for (int t = 0; t < team; ++t) {
        const int64_t first = segments * t / team, last = segments * (t + 1) / team;
        reduce_share(Share<T>{values, index, n, c, first, last, out, from, count}, static_cast<Reduce>(kind));
    }
    return 0;
}

// Gradients of the rows from those of the segments.
template <typename T>
int spread(const T* grad, const int64_t* index, const int32_t* from, const int64_t* count, int64_t n, int64_t c,
           int kind, T* out, int threads) {
    const int team = useful_threads(n * c, threads);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        T* __restrict row = out + i * c;
        if (index[i] < 0) {
            std::fill(row, row + c, T(0));
            continue;
        }
        const T* above = grad + index[i] * c;
        if (kind == kMax || kind == kMin) {
            const int32_t* chosen = from + index[i] * c;
            for (int64_t j = 0; j < c; ++j) row[j] = chosen[j] == i ? above[j] : T(0);
        } else {
            const T divisor = kind == kMean ? static_cast<T>(count[index[i]]) : T(1);
            for (int64_t j = 0; j < c; ++j) row[j] = above[j] / divisor;
        }
    }
    return 0;
}

}  // namespace

// values [n, c], index [n] (negative: left out); out [segments, c], from [segments, c] the row that each maximum or
// minimum came from, -1 without rows (not touched for sums), count [segments]. *highest is the highest index; when it is
// not below `segments`, nothing else is written. n below 2^31.
#define PCDET_SEGMENT_REDUCE(T, NAME)                                                                                  \
    PCDET_API int pcdet_segment_reduce_##NAME##_cpu(const T* values, const int64_t* index, int64_t n, int64_t c,       \
                                                    int64_t segments, int kind, T* out, int32_t* from, int64_t* count, \
                                                    int64_t* highest, int threads) {                                   \
        return reduce(values, index, n, c, segments, kind, out, from, count, highest, threads);                        \
    }                                                                                                                  \
    PCDET_API int pcdet_segment_spread_##NAME##_cpu(const T* grad, const int64_t* index, const int32_t* from,          \
                                                    const int64_t* count, int64_t n, int64_t c, int kind, T* out,      \
                                                    int threads) {                                                     \
        return spread(grad, index, from, count, n, c, kind, out, threads);                                             \
    }

PCDET_SEGMENT_REDUCE(float, float32)
PCDET_SEGMENT_REDUCE(double, float64)
