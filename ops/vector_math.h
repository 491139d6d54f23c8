// exp, softplus and the logistic function from additions and multiplications alone, so that compilers turn loops over
// them into vector instructions. float: relative error below 3e-7; double: the C library's functions.
#pragma once

#include <cmath>
#include <cstring>

#include "common.h"

namespace pcdet {

constexpr double kLog2E = 1.4426950408889634;

// 2^x; 0 below 2^-125, at most 2^127. NaN stays NaN.
PCDET_HD float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
    return exp2f(x);
#else
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
    const float bounded = x < -125.0f ? -125.0f : (x > 126.5f ? 126.5f : x);
    const float shifted = bounded + kShift;
    const float f = bounded - (shifted - kShift);
    // The polynomial of degree 5 of least relative error to 2^f on [-0.5, 0.5].
    const float p =
        1.0f +
        f * (0.693147004f + f * (0.240222424f + f * (0.0555073358f + f * (0.00967151299f + f * 0.00132647273f))));
    int32_t exponent, bits;
    std::memcpy(&exponent, &shifted, 4);
    std::memcpy(&bits, &p, 4);
    bits += exponent << 23;
    float y;
    std::memcpy(&y, &bits, 4);
    return x < -125.0f ? 0.0f : y;
#endif
}
PCDET_HD double exp2_of(double x) { return exp2(x); }

template <typename T>
PCDET_HD T exp_of(T x) {
    return exp2_of(x * static_cast<T>(kLog2E));
}
template <>
PCDET_HD double exp_of(double x) { return exp(x); }

template <typename T>
PCDET_HD T sigmoid_of(T x) {
    return T(1) / (T(1) + exp_of(-x));
}

// log(1 + y) for y in [0, 1]: 2 atanh(s) with s = y / (2 + y) <= 1/3, by its series.
PCDET_HD float log1p_of(float y) {
    const float s = y / (2.0f + y), r = s * s;
    const float high = 0.11111111f + r * (0.090909091f + r * (0.076923077f + r * 0.072f));
    const float series = 1.0f + r * (0.33333333f + r * (0.2f + r * (0.14285714f + r * high)));
    return 2.0f * s * series;
}
PCDET_HD double log1p_of(double y) { return log1p(y); }

template <typename T>
PCDET_HD T softplus_of(T x) {
    const T size = x < T(0) ? -x : x;
    return (x > T(0) ? x : T(0)) + log1p_of(exp_of(-size));
}

}  // namespace pcdet
