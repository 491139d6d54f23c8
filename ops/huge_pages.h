// Large results on the CPU: memory that has never been touched is handed out page by page, 4 KiB each, which takes longer
// than writing a large table once.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pcdet {

// Ask for pages of 2 MiB where a result will be written whole; the kernel may decline, then nothing changes.
inline void prefer_huge_pages(void* result, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = uintptr_t(1) << 21;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(result) + kPage - 1) & ~(kPage - 1);
    const uintptr_t last = (reinterpret_cast<uintptr_t>(result) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)result, (void)bytes;
#endif
}

}  // namespace pcdet
