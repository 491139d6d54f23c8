// Kernels with known results and with known faults, for test_emulator.py.
#include "common.h"
#include "cuda_launch.h"
#include "half.h"

namespace {

using pcdet::start_kernel;

constexpr int kThreads = 64;

// Sum of 64 values by halves in shared memory; without barriers it is wrong in most orders.
__global__ void sum(const float* values, bool with_barriers, float* out) {
    __shared__ float parts[kThreads];
    parts[threadIdx.x] = values[threadIdx.x];
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (with_barriers) __syncthreads();
        if (static_cast<int>(threadIdx.x) < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *out = parts[0];
}

// Reads shared memory of which the second half is never written.
__global__ void read_unwritten(float* out) {
    __shared__ float once[kThreads];
    PCDET_DYNAMIC_SHARED(float, given);
    if (threadIdx.x < kThreads / 2) once[threadIdx.x] = given[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = once[threadIdx.x] + given[threadIdx.x];
}

__global__ void barriers_apart() {
    if (threadIdx.x < 10) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ void lane_missing(int* out) {
    if (threadIdx.x % 32 != 5) out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, threadIdx.x, 1);
}

__global__ void lane_outside_mask(int* out) {
    if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xFFu, threadIdx.x, 9);
}

// Rows of 64: what each operation of a warp gives to each thread.
__global__ void warp_operations(const int* values, int* out) {
    const unsigned all = 0xFFFFFFFFu, t = threadIdx.x;
    const int value = values[t];
    out[t] = __shfl_sync(all, value, 3);
    out[kThreads + t] = __shfl_xor_sync(all, value, 6);
    out[2 * kThreads + t] = __shfl_up_sync(all, value, 5);
    out[3 * kThreads + t] = __shfl_down_sync(all, value, 7);
    out[4 * kThreads + t] = static_cast<int>(__ballot_sync(all, value > 0));
    out[5 * kThreads + t] = __any_sync(all, value > 90);
    out[6 * kThreads + t] = __all_sync(all, value > -90);
    out[7 * kThreads + t] = __reduce_add_sync(all, value);
    __syncwarp();
}

__global__ void counted(int* count, int* bits, int* most) {
    const int number = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(count, number);
    atomicOr(bits, 1 << number % 31);
    atomicMax(most, number);
}

// One thread beyond the end of shared memory, or of an array.
__global__ void write_beyond(float* out, bool shared, int end) {
    __shared__ float row[kThreads];
    float* to = shared ? row : out;
    if (threadIdx.x == 0) to[end] = 1.0f;
    __syncthreads();
    if (threadIdx.x == 1) out[0] = row[0];
}

__global__ void nothing() {}

}  // namespace

PCDET_API int probe_sum(const float* values, int with_barriers, float* out) {
    start_kernel(sum, 1, kThreads, 0, nullptr, values, with_barriers != 0, out);
    return cudaGetLastError();
}

PCDET_API int probe_read_unwritten(float* out) {
    start_kernel(read_unwritten, 1, kThreads, kThreads * sizeof(float), nullptr, out);
    return cudaGetLastError();
}

PCDET_API int probe_barriers_apart() {
    start_kernel(barriers_apart, 1, kThreads, 0, nullptr);
    return cudaGetLastError();
}

PCDET_API int probe_lane_missing(int* out) {
    start_kernel(lane_missing, 1, kThreads, 0, nullptr, out);
    return cudaGetLastError();
}

PCDET_API int probe_lane_outside_mask(int* out) {
    start_kernel(lane_outside_mask, 1, kThreads, 0, nullptr, out);
    return cudaGetLastError();
}

PCDET_API int probe_warp_operations(const int* values, int* out) {
    start_kernel(warp_operations, 1, kThreads, 0, nullptr, values, out);
    return cudaGetLastError();
}

PCDET_API int probe_atomics(int blocks, int* out) {
    start_kernel(counted, blocks, kThreads, 0, nullptr, out, out + 1, out + 2);
    return cudaGetLastError();
}

PCDET_API int probe_shape(int blocks, int rows, int threads, int shared) {
    start_kernel(nothing, dim3(blocks, rows), threads, shared, nullptr);
    return cudaGetLastError();
}

PCDET_API int probe_write_beyond(float* out, int shared, int end) {
    start_kernel(write_beyond, 1, kThreads, 0, nullptr, out, shared != 0, end);
    return cudaGetLastError();
}

PCDET_API int probe_leak() {
    char* memory = nullptr;
    return cudaMallocAsync(&memory, 100, nullptr);
}

PCDET_API int probe_free_twice() {
    char* memory = nullptr;
    cudaMallocAsync(&memory, 100, nullptr);
    cudaFreeAsync(memory, nullptr);
    return cudaFreeAsync(memory, nullptr);
}

PCDET_API void probe_to_half(const float* from, __half* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) pcdet::set(to[i], from[i]);
}

PCDET_API void probe_from_half(const __half* from, float* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = pcdet::to_float(from[i]);
}

PCDET_API void probe_to_bfloat16(const float* from, __nv_bfloat16* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) pcdet::set(to[i], from[i]);
}

PCDET_API void probe_from_bfloat16(const __nv_bfloat16* from, float* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = pcdet::to_float(from[i]);
}
