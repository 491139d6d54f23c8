// Turns a cudaError_t that a launcher returned into text for the Python layer.
#include "common.h"

#include <cuda_runtime.h>

PCDET_API const char* pcdet_cuda_error_string(int status) {
    return cudaGetErrorString(static_cast<cudaError_t>(status));
}
