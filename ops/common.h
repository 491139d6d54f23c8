// What every op shares: the exported-symbol macro and qualifiers for arithmetic that host and device both run.
#pragma once

#include <cstdint>

#define PCDET_API extern "C" __attribute__((visibility("default")))

#if defined(__CUDACC__)
#define PCDET_HD __host__ __device__ __forceinline__
#elif defined(__SANITIZE_ADDRESS__)
#define PCDET_HD inline  // instrumented code cannot always be inlined
#else
#define PCDET_HD inline __attribute__((always_inline))
#endif

// Several machine-code versions of one function, the best chosen when the library is loaded: one build for every x86-64.
// Sanitizers are not ready yet when it is chosen.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && !defined(__SANITIZE_ADDRESS__)
#define PCDET_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define PCDET_CLONES
#endif
