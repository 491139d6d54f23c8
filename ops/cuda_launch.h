// Starting kernels. Only this file has CUDA's own syntax for it: tests/cuda_emulator puts another file of this name before
// it, with which a C++ compiler compiles the same kernels for the CPU.
#pragma once

#include <cuda_runtime.h>

namespace pcdet {

// kernel<<<blocks, threads, shared, stream>>>(arguments...), converted to the types of the kernel's parameters.
template <typename... Parameters, typename... Arguments>
void start_kernel(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared, cudaStream_t stream,
                  const Arguments&... arguments) {
    kernel<<<blocks, threads, shared, stream>>>(arguments...);
}

}  // namespace pcdet

// An array of elements of type T in the shared memory whose size the launch tells; one in each kernel.
#define PCDET_DYNAMIC_SHARED(T, name) extern __shared__ T name[]
