// What every op shares: the exported-symbol macro and qualifiers for arithmetic that host and device both run.
#pragma once

#include <cstdint>

#define PCDET_API extern "C" __attribute__((visibility("default")))

#if defined(__CUDACC__)
#define PCDET_HD __host__ __device__ __forceinline__
#else
#define PCDET_HD inline
#endif
