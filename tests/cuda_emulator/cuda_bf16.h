// The upper half of a float; conversion rounds to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline __nv_bfloat16 __float2bfloat16(float x) {
    if (std::isnan(x)) return {0x7FFF};
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return {uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
