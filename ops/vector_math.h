// exp, softplus and the logistic function of numbers and, on the CPU, of vectors, from additions and multiplications
// alone. float: relative error below 3e-7; double: the C library's functions.
#pragma once

#include <cmath>
#include <cstring>

#include "common.h"

// As PCDET_CLONES, with fused multiplication and addition, for sources that begin with
//     #pragma GCC optimize("fp-contract=fast")
// The widest is x86-64-v4 and not avx512f alone, which has no fused operation on vectors of 32 bytes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && !defined(__SANITIZE_ADDRESS__)
#define PCDET_FUSED_TARGETS
#define PCDET_FUSED_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PCDET_FUSED_CLONES
#endif

namespace pcdet {

constexpr double kLog2E = 1.4426950408889634;

#if !defined(__CUDACC__)

// Numbers that a processor's widest usual register holds; the compiler splits them where there are only narrower ones.
// 64 bytes are for functions that run on AVX-512 alone: elsewhere conditions on them become slow.
template <typename T, int Bytes = 32>
struct VectorOf {
    typedef T type __attribute__((vector_size(Bytes)));
    static constexpr int width = Bytes / sizeof(T);
};
template <typename T, int Bytes = 32>
using Vector = typename VectorOf<T, Bytes>::type;

template <int Bytes = 32, typename T>
PCDET_HD Vector<T, Bytes> vector_at(const T* from) {
    Vector<T, Bytes> v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}

template <typename T, typename V>
PCDET_HD void put_vector(T* to, V v) {
    std::memcpy(to, &v, sizeof(v));
}

template <typename V, typename Function>
PCDET_HD V for_each(V x, const Function& function) {
    for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = function(x[i]);
    return x;
}

#endif

// Below, Float is float or a vector of floats, whose bits are those of Int and of Bits (without a
// sign, whose sums may run over), and Real is any of float, double and vectors.

template <typename Float, typename Int, typename Bits>
PCDET_HD Float exp2_by_bits(Float x) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
    constexpr int32_t kZero = 0x4B400000;  // its bits
    constexpr int32_t kLeast = kZero - 125, kMost = kZero + 126;  // for the exponents that there are
    const Float shifted = x + kShift;
    const Float f = x - (shifted - kShift);
    // The polynomial of degree 5 of least relative error to 2^f on [-0.5, 0.5].
    const Float p =
        1.0f +
        f * (0.693147004f + f * (0.240222424f + f * (0.0555073358f + f * (0.00967151299f + f * 0.00132647273f))));
    Int exponent;
    Bits bits;
    std::memcpy(&exponent, &shifted, sizeof(Float));
    std::memcpy(&bits, &p, sizeof(Float));
    exponent = exponent > kLeast ? exponent : kLeast;  // as integers, and so written: one instruction each
    exponent = exponent > kMost ? kMost : exponent;
    bits += (Bits)(exponent - kZero) << 23;
    Float y;
    std::memcpy(&y, &bits, sizeof(Float));
    return y;
}

// 2^x for finite x, within 2^-125 and 2^126 (up to rounding); for x that is not finite, some number.
PCDET_HD float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
    return exp2f(x);
#else
    return exp2_by_bits<float, int32_t, uint32_t>(x);
#endif
}
PCDET_HD double exp2_of(double x) { return exp2(x); }

#if !defined(__CUDACC__)
PCDET_HD Vector<float> exp2_of(Vector<float> x) { return exp2_by_bits<Vector<float>, Vector<int32_t>, Vector<uint32_t>>(x); }
PCDET_HD Vector<double> exp2_of(Vector<double> x) {
    return for_each(x, [](double number) { return exp2(number); });
}
PCDET_HD Vector<float, 64> exp2_of(Vector<float, 64> x) {
    return exp2_by_bits<Vector<float, 64>, Vector<int32_t, 64>, Vector<uint32_t, 64>>(x);
}
PCDET_HD Vector<double, 64> exp2_of(Vector<double, 64> x) {
    return for_each(x, [](double number) { return exp2(number); });
}
#endif

template <typename Float>
PCDET_HD Float exp_by_exp2(Float x) {
    const Float above = x < -87.0f ? Float{} - 87.0f : x;  // so written: one instruction, by which NaN passes
    const Float bounded = 87.0f < above ? Float{} + 87.0f : above;
    const Float y = exp2_of(bounded * static_cast<float>(kLog2E));
    return x == x ? y : x;
}

// e^x, within the bounds of exp2_of; NaN stays NaN.
PCDET_HD float exp_of(float x) { return exp_by_exp2(x); }
PCDET_HD double exp_of(double x) { return exp(x); }

template <typename Float>
PCDET_HD Float log1p_by_series(Float y) {
    const Float s = y / (2.0f + y), r = s * s;
    const Float high = 0.11111111f + r * (0.090909091f + r * (0.076923077f + r * 0.072f));
    const Float series = 1.0f + r * (0.33333333f + r * (0.2f + r * (0.14285714f + r * high)));
    return 2.0f * s * series;
}

// log(1 + y) for y in [0, 1]: 2 atanh(s) with s = y / (2 + y) <= 1/3, by its series.
PCDET_HD float log1p_of(float y) { return log1p_by_series(y); }
PCDET_HD double log1p_of(double y) { return log1p(y); }

#if !defined(__CUDACC__)
PCDET_HD Vector<float> exp_of(Vector<float> x) { return exp_by_exp2(x); }
PCDET_HD Vector<double> exp_of(Vector<double> x) {
    return for_each(x, [](double number) { return exp(number); });
}
PCDET_HD Vector<float, 64> exp_of(Vector<float, 64> x) { return exp_by_exp2(x); }
PCDET_HD Vector<double, 64> exp_of(Vector<double, 64> x) {
    return for_each(x, [](double number) { return exp(number); });
}
PCDET_HD Vector<float> log1p_of(Vector<float> y) { return log1p_by_series(y); }
PCDET_HD Vector<double> log1p_of(Vector<double> y) {
    return for_each(y, [](double number) { return log1p(number); });
}
PCDET_HD Vector<float, 64> log1p_of(Vector<float, 64> y) { return log1p_by_series(y); }
PCDET_HD Vector<double, 64> log1p_of(Vector<double, 64> y) {
    return for_each(y, [](double number) { return log1p(number); });
}
#endif

template <typename Real>
PCDET_HD Real sigmoid_of(Real x) {
    return 1.0f / (1.0f + exp_of(-x));
}

// d(x sigmoid(x)) / dx from s = sigmoid(x).
template <typename Real>
PCDET_HD Real silu_slope(Real x, Real s) {
    return s * (1.0f + x * (1.0f - s));
}

template <typename Real>
PCDET_HD Real softplus_of(Real x) {
    const Real size = x < 0.0f ? -x : x;
    return (x < 0.0f ? Real{} : x) + log1p_of(exp_of(-size));
}

}  // namespace pcdet
