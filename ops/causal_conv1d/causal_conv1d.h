// Causal depth-wise convolution along time (Mamba, Gu & Dao, 2023): y_t = bias + sum_k weight_k x_{t - K + 1 + k}, and SiLU.
#pragma once

#include "series.h"
#include "vector_math.h"

namespace pcdet {

template <typename T>
PCDET_HD T activate(T x, bool silu) {
    return silu ? x * sigmoid_of(x) : x;
}

template <typename T>
PCDET_HD T activation_slope(T x, bool silu) {
    return silu ? silu_slope(x, sigmoid_of(x)) : T(1);
}

}  // namespace pcdet
