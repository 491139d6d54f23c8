// Element types of CUDA kernels: read as float, written from float, named by a number (0 float32, 1 float16, 2 bfloat16).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace pcdet {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void set(float& to, float x) { to = x; }
__device__ __forceinline__ void set(__half& to, float x) { to = __float2half(x); }
__device__ __forceinline__ void set(__nv_bfloat16& to, float x) { to = __float2bfloat16(x); }

// Calls launch.template run<T>() with the element type of that number; -1 for another number.
template <typename Launch>
int with_type(int type, const Launch& launch) {
    switch (type) {
        case 0: return launch.template run<float>();
        case 1: return launch.template run<__half>();
        case 2: return launch.template run<__nv_bfloat16>();
        default: return -1;
    }
}

}  // namespace pcdet
