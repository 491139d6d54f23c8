// Depth-wise convolution over neighbour tables: what host and device share.
#pragma once

#include "common.h"

namespace pcdet {

// Sums over rows of a table [m, k]: of features [n, c] and weights [k, c], or of the gradient of the weights.
struct DepthwiseSizes {
    int64_t m, k, c;
};

// One channel of one output row.
template <typename T>
PCDET_HD T depthwise_output(const T* features, const T* weights, const int64_t* row, const DepthwiseSizes& s, int64_t channel) {
    T sum = 0;
    for (int64_t k = 0; k < s.k; ++k) {
        if (row[k] >= 0) sum += weights[k * s.c + channel] * features[row[k] * s.c + channel];
    }
    return sum;
}

// One channel of the gradient of one weight over rows first to last - 1.
template <typename T>
PCDET_HD T depthwise_weight_grad(const T* grad, const T* features, const int64_t* table, const DepthwiseSizes& s,
                                 int64_t first, int64_t last, int64_t k, int64_t channel) {
    T sum = 0;
    for (int64_t i = first; i < last; ++i) {
        const int64_t from = table[i * s.k + k];
        if (from >= 0) sum += grad[i * s.c + channel] * features[from * s.c + channel];
    }
    return sum;
}

}  // namespace pcdet
