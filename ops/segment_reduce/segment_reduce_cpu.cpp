// Sum, mean, maximum and minimum of rows by segment. Each thread owns a range of segments and walks all rows in order, so
// the result does not depend on the number of threads.
#include "common.h"

#include <algorithm>
#include <cstring>

namespace {

enum Reduce { kSum = 0, kMean = 1, kMax = 2, kMin = 3 };

template <typename T>
void add_rows(const T* values, const int64_t* index, int64_t n, int64_t c, int64_t first, int64_t last, T* out,
              int64_t* count) {
    std::fill(out + first * c, out + last * c, T(0));
    std::fill(count + first, count + last, 0);
    for (int64_t i = 0; i < n; ++i) {
        if (index[i] < first || index[i] >= last) continue;
        T* row = out + index[i] * c;
        const T* value = values + i * c;
        for (int64_t j = 0; j < c; ++j) row[j] += value[j];
        ++count[index[i]];
    }
}

// The row that holds each maximum (of sign * value); the first row wins a tie, NaN wins over numbers.
template <typename T>
void pick_rows(const T* values, const int64_t* index, int64_t n, int64_t c, int64_t first, int64_t last, T sign, T* out,
               int64_t* from, int64_t* count) {
    std::fill(out + first * c, out + last * c, T(0));
    std::fill(from + first * c, from + last * c, -1);
    std::fill(count + first, count + last, 0);
    for (int64_t i = 0; i < n; ++i) {
        if (index[i] < first || index[i] >= last) continue;
        const int64_t start = index[i] * c;
        const T* value = values + i * c;
        const bool fresh = count[index[i]]++ == 0;
        for (int64_t j = 0; j < c; ++j) {
            const T best = out[start + j];
            const bool better = sign * value[j] > sign * best || (value[j] != value[j] && best == best);
            if (fresh || better) {
                out[start + j] = value[j];
                from[start + j] = i;
            }
        }
    }
}

template <typename T>
int reduce(const T* values, const int64_t* index, int64_t n, int64_t c, int64_t segments, int kind, T* out,
           int64_t* from, int64_t* count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = segments * t / threads, last = segments * (t + 1) / threads;
        if (kind == kMax || kind == kMin) {
            pick_rows(values, index, n, c, first, last, kind == kMax ? T(1) : T(-1), out, from, count);
            continue;
        }
        add_rows(values, index, n, c, first, last, out, count);
        for (int64_t s = first; s < last && kind == kMean; ++s) {
            const T scale = static_cast<T>(std::max<int64_t>(count[s], 1));
            for (int64_t j = 0; j < c; ++j) out[s * c + j] /= scale;
        }
    }
    return 0;
}

}  // namespace

// values [n, c], index [n] (rows with another number than 0 .. segments - 1 are left out); out [segments, c], from
// [segments, c] for maximum and minimum, count [segments].
PCDET_API int pcdet_segment_reduce_float32_cpu(const float* values, const int64_t* index, int64_t n, int64_t c,
                                               int64_t segments, int kind, float* out, int64_t* from, int64_t* count,
                                               int threads) {
    return reduce(values, index, n, c, segments, kind, out, from, count, threads);
}

PCDET_API int pcdet_segment_reduce_float64_cpu(const double* values, const int64_t* index, int64_t n, int64_t c,
                                               int64_t segments, int kind, double* out, int64_t* from, int64_t* count,
                                               int threads) {
    return reduce(values, index, n, c, segments, kind, out, from, count, threads);
}
