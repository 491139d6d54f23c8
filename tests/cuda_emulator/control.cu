// What the tests ask of the emulator itself.
#include "common.h"

#include <cuda_runtime.h>

// 0: threads and blocks in ascending order, 1: in descending order, 2: in an order that `seed` decides.
PCDET_API void cuda_emulator_set_order(int order, uint64_t seed) {
    cuda_emulator::machine.order = static_cast<cuda_emulator::Order>(order);
    cuda_emulator::machine.seed = seed;
}

// How many allocations are not freed.
PCDET_API int64_t cuda_emulator_allocations() { return static_cast<int64_t>(cuda_emulator::allocations.size()); }

// What went wrong last.
PCDET_API const char* cuda_emulator_message() { return cuda_emulator::machine.message.c_str(); }
