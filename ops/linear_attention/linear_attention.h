// Scattered linear attention inside segments (ScatterFormer, He et al., ECCV 2024): rows of one segment share
//     S = sum k v^T,  s = sum k,  y = (q^T S) / (q . s + eps).
// The arithmetic of one row, with the matrix S of one segment and head as [d][d] (key channel, value channel).
#pragma once

#include "common.h"

namespace pcdet {

// S += a b^T, r += w a: the state takes up one row.
template <typename T>
PCDET_HD void outer_add(T* state, T* sum, const T* a, const T* b, T weight, int d) {
    for (int i = 0; i < d; ++i) {
        const T scale = a[i];
        sum[i] += weight * scale;
        T* row = state + i * d;
#pragma omp simd
        for (int j = 0; j < d; ++j) row[j] += scale * b[j];
    }
}

// out = a^T S.
template <typename T>
PCDET_HD void row_times(const T* state, const T* a, T* out, int d) {
    for (int j = 0; j < d; ++j) out[j] = 0;
    for (int i = 0; i < d; ++i) {
        const T scale = a[i];
        const T* row = state + i * d;
#pragma omp simd
        for (int j = 0; j < d; ++j) out[j] += scale * row[j];
    }
}

// out = S b.
template <typename T>
PCDET_HD void times_column(const T* state, const T* b, T* out, int d) {
    for (int i = 0; i < d; ++i) {
        const T* row = state + i * d;
        T total = 0;
#pragma omp simd reduction(+ : total)
        for (int j = 0; j < d; ++j) total += row[j] * b[j];
        out[i] = total;
    }
}

template <typename T>
PCDET_HD T dot(const T* a, const T* b, int d) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < d; ++i) total += a[i] * b[i];
    return total;
}

}  // namespace pcdet
