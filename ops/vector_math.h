// exp, softplus and the logistic function from additions and multiplications alone, so that compilers turn loops over
// them into vector instructions. float: relative error below 3e-7; double: the C library's functions.
#pragma once

#include <cmath>
#include <cstring>

#include "common.h"

// As PCDET_CLONES, with fused multiplication and addition, for sources that begin with
//     #pragma GCC optimize("fp-contract=fast")
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define PCDET_FUSED_CLONES __attribute__((target_clones("avx512f", "arch=x86-64-v3", "default")))
#else
#define PCDET_FUSED_CLONES
#endif

namespace pcdet {

constexpr double kLog2E = 1.4426950408889634;

// The body of exp2_of for a number, or for a vector of them: Float has the bits of Int.
template <typename Float, typename Int>
PCDET_HD Float exp2_by_bits(Float x) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
    constexpr int32_t kLeast = 0x4B400000 - 125, kMost = 0x4B400000 + 126;  // its bits, and the exponents that there are
    const Float shifted = x + kShift;
    const Float f = x - (shifted - kShift);
    // The polynomial of degree 5 of least relative error to 2^f on [-0.5, 0.5].
    const Float p =
        1.0f +
        f * (0.693147004f + f * (0.240222424f + f * (0.0555073358f + f * (0.00967151299f + f * 0.00132647273f))));
    Int exponent, bits;
    std::memcpy(&exponent, &shifted, sizeof(Float));
    std::memcpy(&bits, &p, sizeof(Float));
    exponent = exponent > kLeast ? exponent : kLeast;  // as integers, and so written: one instruction each
    exponent = exponent > kMost ? kMost : exponent;
    bits += exponent << 23;
    Float y;
    std::memcpy(&y, &bits, sizeof(Float));
    return y;
}

// 2^x for finite x, within 2^-125 and 2^126 (up to rounding); for x that is not finite, some number.
PCDET_HD float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
    return exp2f(x);
#else
    return exp2_by_bits<float, int32_t>(x);
#endif
}
PCDET_HD double exp2_of(double x) { return exp2(x); }

#if !defined(__CUDACC__)

// Numbers that a processor's widest usual register holds; the compiler splits them where there are only narrower ones.
template <typename T>
struct VectorOf {
    typedef T type __attribute__((vector_size(32)));
    static constexpr int width = 32 / sizeof(T);
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
PCDET_HD Vector<T> vector_at(const T* from) {
    Vector<T> v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}

template <typename T>
PCDET_HD void put_vector(T* to, Vector<T> v) {
    std::memcpy(to, &v, sizeof(v));
}

PCDET_HD Vector<float> exp2_of(Vector<float> x) { return exp2_by_bits<Vector<float>, Vector<int32_t>>(x); }
PCDET_HD Vector<double> exp2_of(Vector<double> x) {
    Vector<double> y;
    for (int i = 0; i < VectorOf<double>::width; ++i) y[i] = exp2(x[i]);
    return y;
}

#endif

// e^x, within the bounds of exp2_of; NaN stays NaN.
PCDET_HD float exp_of(float x) {
    const float above = x < -87.0f ? -87.0f : x;  // one instruction each, by which NaN passes
    const float y = exp2_of((87.0f < above ? 87.0f : above) * static_cast<float>(kLog2E));
    return x == x ? y : x;
}
PCDET_HD double exp_of(double x) { return exp(x); }

template <typename T>
PCDET_HD T sigmoid_of(T x) {
    return T(1) / (T(1) + exp_of(-x));
}

// d(x sigmoid(x)) / dx from s = sigmoid(x).
template <typename T>
PCDET_HD T silu_slope(T x, T s) {
    return s * (T(1) + x * (T(1) - s));
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
    return (x < T(0) ? T(0) : x) + log1p_of(exp_of(-size));
}

}  // namespace pcdet
