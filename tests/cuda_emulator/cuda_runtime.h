// The part of CUDA's language and runtime that the kernels use, for a C++ compiler.
#pragma once

#include <cmath>
#include <map>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
// One block runs at a time, so that one copy is enough. Thread-local memory of a library lies in one piece, which is filled
// with NaN before each block; the address sanitizer watches the borders of other variables only.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

using std::max;
using std::min;

struct alignas(16) int4 {
    int x, y, z, w;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

// Barriers and operations of a warp. The default arguments are the place of the call.

#define CUDA_EMULATOR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_EMULATOR_HERE) {
    cuda_emulator::machine.wait(cuda_emulator::State::kAtBarrier, {file, line});
}

namespace cuda_emulator {

// Gives a value to the lanes of the mask, and waits for theirs.
template <typename T>
unsigned exchange(unsigned mask, const T& value, Site site) {
    static_assert(sizeof(T) <= sizeof(Thread::slots[0]), "lanes exchange at most 8 bytes");
    Thread& thread = machine.current();
    if (!(mask >> machine.lane_id() & 1)) machine.fail("a lane is not in its own mask at " + site.text());
    const unsigned slot = thread.turn++ % 2;
    std::memcpy(thread.slots[slot], &value, sizeof(T));
    machine.wait(State::kInWarp, site, mask);
    return slot;
}

template <typename T>
T given(unsigned slot, unsigned lane) {
    T value;
    std::memcpy(&value, machine.lane(lane).slots[slot], sizeof(T));
    return value;
}

template <typename T>
T shuffle(unsigned mask, const T& value, unsigned lane, Site site) {
    const unsigned slot = exchange(mask, value, site);
    if (lane >= machine.lanes() || !(mask >> lane & 1)) machine.fail("a lane reads one outside its mask at " + site.text());
    return given<T>(slot, lane);
}

template <typename T, typename Join>
T join_lanes(unsigned mask, T value, const Join& join, Site site) {
    const unsigned slot = exchange(mask, value, site);
    bool first = true;
    T total = value;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (!(mask >> lane & 1)) continue;
        total = first ? given<T>(slot, lane) : join(total, given<T>(slot, lane));
        first = false;
    }
    return total;
}

}  // namespace cuda_emulator

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, CUDA_EMULATOR_HERE) {
    cuda_emulator::exchange(mask, 0, {file, line});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, CUDA_EMULATOR_HERE) {
    return cuda_emulator::shuffle(mask, value, static_cast<unsigned>(lane) % cuda_emulator::kWarp, {file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, CUDA_EMULATOR_HERE) {
    return cuda_emulator::shuffle(mask, value, cuda_emulator::machine.lane_id() ^ unsigned(bits), {file, line});
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, CUDA_EMULATOR_HERE) {
    const unsigned lane = cuda_emulator::machine.lane_id();
    return cuda_emulator::shuffle(mask, value, lane < distance ? lane : lane - distance, {file, line});
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, CUDA_EMULATOR_HERE) {
    const unsigned lane = cuda_emulator::machine.lane_id(), from = lane + distance;
    return cuda_emulator::shuffle(mask, value, from < cuda_emulator::kWarp ? from : lane, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int vote, CUDA_EMULATOR_HERE) {
    const unsigned bit = vote ? 1u << cuda_emulator::machine.lane_id() : 0;
    return cuda_emulator::join_lanes(mask, bit, std::bit_or<unsigned>(), {file, line});
}

inline int __any_sync(unsigned mask, int vote, CUDA_EMULATOR_HERE) {
    return cuda_emulator::join_lanes(mask, int(vote != 0), std::bit_or<int>(), {file, line});
}

inline int __all_sync(unsigned mask, int vote, CUDA_EMULATOR_HERE) {
    return cuda_emulator::join_lanes(mask, int(vote != 0), std::bit_and<int>(), {file, line});
}

template <typename T>
T __reduce_add_sync(unsigned mask, T value, CUDA_EMULATOR_HERE) {
    return cuda_emulator::join_lanes(mask, value, std::plus<T>(), {file, line});
}

#undef CUDA_EMULATOR_HERE

// A thread is never interrupted, so that plain code is atomic.

template <typename T, typename V>
T atomicAdd(T* place, V value) {
    const T old = *place;
    *place = static_cast<T>(old + value);
    return old;
}

template <typename T, typename V>
T atomicOr(T* place, V value) {
    const T old = *place;
    *place = static_cast<T>(old | value);
    return old;
}

template <typename T, typename V>
T atomicMax(T* place, V value) {
    const T old = *place;
    if (old < static_cast<T>(value)) *place = static_cast<T>(value);
    return old;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

// The runtime. Numbers as in CUDA.

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
};

using cudaStream_t = struct CUstream_st*;

namespace cuda_emulator {

inline std::map<void*, size_t> allocations;  // what is not yet freed

}  // namespace cuda_emulator

inline cudaError_t cudaGetLastError() {
    const int status = cuda_emulator::machine.status;
    cuda_emulator::machine.status = cudaSuccess;
    return static_cast<cudaError_t>(status);
}

inline const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaSuccess ? "no error" : cuda_emulator::machine.message.c_str();
}

template <typename T>
cudaError_t cudaMallocAsync(T** place, size_t size, cudaStream_t) {
    void* memory = std::malloc(size);
    if (memory == nullptr) {
        cuda_emulator::machine.message = "out of memory";
        return cudaErrorMemoryAllocation;
    }
    std::memset(memory, cuda_emulator::kPoison, size);
    cuda_emulator::allocations[memory] = size;
    *place = static_cast<T*>(memory);
    return cudaSuccess;
}

inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
    if (cuda_emulator::allocations.erase(memory) == 0) {
        cuda_emulator::machine.message = "memory is freed that was not allocated";
        return cudaErrorInvalidValue;
    }
    std::free(memory);
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t size, cudaStream_t) {
    std::memset(memory, value, size);
    return cudaSuccess;
}
