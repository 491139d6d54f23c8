// Counts the bytes that kernels move. The compiler calls a function for every access (-fsanitize=thread without its library:
// what it calls is here); those to arrays that were named are counted.
//
// The model is a cache of each block: a sector of 32 bytes is moved when a block reads (or writes) it for the first time,
// and again when the block has moved `kCache` bytes since it last did. What other blocks have moved does not help.
#include "common.h"

#include <cuda_runtime.h>

namespace {

constexpr uint64_t kSector = 32, kCache = 16 * 1024;  // a share of the first-level cache, with eight blocks beside each other
constexpr int kMostRanges = 64, kMostLaunches = 4096;

// When a block last moved a sector.
struct Visit {
    uint64_t block, moved;
};

struct Range {
    uintptr_t begin, size;
    Visit* visits[2];  // reads and writes, one for each sector
};

struct Launch {
    const void* kernel;
    uint64_t moved, least;
};

Range ranges[kMostRanges];
Launch launches[kMostLaunches];
int range_count = 0, launch_count = 0;

#define UNWATCHED __attribute__((no_sanitize("thread")))

UNWATCHED void note(const void* address, uint64_t size, int written) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    for (int i = 0; i < range_count; ++i) {
        const Range& range = ranges[i];
        if (at < range.begin || at >= range.begin + range.size || launch_count == 0) continue;
        Launch& launch = launches[launch_count - 1];
        const uint64_t block = (uint64_t(launch_count) << 40) +
                               (uint64_t(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        for (uintptr_t sector = (at - range.begin) / kSector; sector <= (at - range.begin + size - 1) / kSector; ++sector) {
            Visit& visit = range.visits[written][sector];
            if (visit.block >> 40 != uint64_t(launch_count)) launch.least += kSector;
            if (visit.block != block || launch.moved - visit.moved > kCache) launch.moved += kSector;
            visit = {block, launch.moved};
        }
        return;
    }
}

}  // namespace

PCDET_API UNWATCHED void traffic_forget_arrays() {
    for (int i = 0; i < range_count; ++i)
        for (Visit* visits : ranges[i].visits) std::free(visits);
    range_count = 0;
}

// An array whose accesses count; nonzero where there are too many, or no memory for the counting.
PCDET_API UNWATCHED int traffic_watch(const void* begin, uint64_t size) {
    const uintptr_t aligned = reinterpret_cast<uintptr_t>(begin) / kSector * kSector;
    size += reinterpret_cast<uintptr_t>(begin) - aligned;
    for (int i = 0; i < range_count; ++i)
        if (ranges[i].begin == aligned && ranges[i].size >= size) return 0;
    if (range_count == kMostRanges) return 1;
    Range& range = ranges[range_count++];
    range = {aligned, size, {}};
    for (Visit*& visits : range.visits) {
        visits = static_cast<Visit*>(std::calloc(size / kSector + 2, sizeof(Visit)));
        if (visits == nullptr) return 1;
    }
    return 0;
}

// From now on accesses are those of this kernel.
PCDET_API UNWATCHED int traffic_start(const void* kernel) {
    for (const auto& [memory, size] : cuda_emulator::allocations)
        if (traffic_watch(memory, size)) return 1;
    if (launch_count == kMostLaunches) return 1;
    launches[launch_count++] = {kernel, 0, 0};
    return 0;
}

PCDET_API UNWATCHED int traffic_launches() { return launch_count; }

// A launch: the kernel's address, the bytes moved, and how many there would have been had each sector been moved once.
PCDET_API UNWATCHED void traffic_of(int launch, uint64_t* to) {
    to[0] = reinterpret_cast<uint64_t>(launches[launch].kernel);
    to[1] = launches[launch].moved;
    to[2] = launches[launch].least;
}

// What the compiler calls.
#define WATCH(SIZE)                                                                                                    \
    extern "C" UNWATCHED void __tsan_read##SIZE(void* at) { note(at, SIZE, 0); }                                       \
    extern "C" UNWATCHED void __tsan_write##SIZE(void* at) { note(at, SIZE, 1); }                                      \
    extern "C" UNWATCHED void __tsan_unaligned_read##SIZE(void* at) { note(at, SIZE, 0); }                             \
    extern "C" UNWATCHED void __tsan_unaligned_write##SIZE(void* at) { note(at, SIZE, 1); }                            \
    extern "C" UNWATCHED void __tsan_volatile_read##SIZE(void* at) { note(at, SIZE, 0); }                              \
    extern "C" UNWATCHED void __tsan_volatile_write##SIZE(void* at) { note(at, SIZE, 1); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
extern "C" UNWATCHED void __tsan_read_range(void* at, uint64_t size) { note(at, size, 0); }
extern "C" UNWATCHED void __tsan_write_range(void* at, uint64_t size) { note(at, size, 1); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
