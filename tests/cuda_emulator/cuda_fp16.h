// Half-precision numbers: 1 sign bit, 5 bits of exponent, 10 of mantissa; conversion rounds to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
    uint16_t bits;
};

inline float __half2float(__half x) {
    const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    float size;
    if (exponent == 31) {
        size = mantissa == 0 ? INFINITY : NAN;
    } else {
        size = exponent == 0 ? std::ldexp(float(mantissa), -24) : std::ldexp(float(1024 + mantissa), exponent - 25);
    }
    return std::copysign(size, x.bits >> 15 ? -1.0f : 1.0f);
}

inline __half __float2half(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (std::isnan(x)) return {0x7FFF};
    if (size >= 65520.0f) return {uint16_t(sign | 0x7C00)};  // would round to 2^16
    int exponent = -14;  // below 2^-14 the numbers are multiples of 2^-24
    if (size >= std::ldexp(1.0f, -14)) exponent = std::ilogb(size);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return {uint16_t(sign | (((exponent + 14) << 10) + steps))};  // 1024 steps carry into the exponent
}
