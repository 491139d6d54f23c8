// Stands before ops/cuda_launch.h: launches run on the CPU, at once, and streams have no meaning.
#pragma once

#include <cuda_runtime.h>

#if defined(CUDA_EMULATOR_TRAFFIC)
extern "C" int traffic_start(const void* kernel);
#endif

namespace pcdet {

template <typename... Parameters, typename... Arguments>
void start_kernel(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared, cudaStream_t,
                  const Arguments&... arguments) {
    using cuda_emulator::machine;
    constexpr unsigned kMostY = 65535, kMostX = 2147483647;
    const bool fits = blocks.count() > 0 && blocks.x <= kMostX && blocks.y <= kMostY && blocks.z <= kMostY &&
                      threads.count() > 0 && threads.count() <= cuda_emulator::kMostThreads && threads.z <= 64;
    if (!fits || shared > 48 * 1024) {
        machine.status = fits ? cudaErrorInvalidValue : cudaErrorInvalidConfiguration;
        machine.message = fits ? "more than 48 KiB of shared memory" : "numbers of blocks or threads that no device takes";
        return;
    }
#if defined(CUDA_EMULATOR_TRAFFIC)
    if (traffic_start(reinterpret_cast<const void*>(kernel))) {
        machine.status = cudaErrorLaunchFailure;
        machine.message = "too many arrays or launches to count what is moved";
        return;
    }
#endif
    machine.launch(blocks, threads, shared, [&] { kernel(arguments...); });
}

}  // namespace pcdet

#define PCDET_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(cuda_emulator::machine.dynamic_shared())
