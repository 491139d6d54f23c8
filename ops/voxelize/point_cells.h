// Cells of many points on the CPU, in blocks that fit the first cache and run on vectors.
#pragma once

#include "voxelize.h"

#include <algorithm>

namespace pcdet {

constexpr int64_t kGrain = 8192;  // points that are worth a thread of their own

inline int useful_threads(int64_t points, int threads) {
    return static_cast<int>(std::clamp<int64_t>(points / kGrain, 1, threads));
}

// Cells of points first to last - 1; `frame` may be null.
PCDET_CLONES static void compute_cells(const float* points, int64_t first, int64_t last, int64_t stride,
                                       const int64_t* frame, const VoxelGrid& given, int64_t* cells) {
    constexpr int64_t kBlock = 256;
    float x[kBlock], y[kBlock], z[kBlock];
    const VoxelGrid grid = given;
    const int64_t cells_a_frame = volume(grid);
    for (int64_t start = first; start < last; start += kBlock) {
        const int64_t count = std::min(kBlock, last - start);
        for (int64_t i = 0; i < count; ++i) {
            const float* p = points + (start + i) * stride;
            x[i] = p[0], y[i] = p[1], z[i] = p[2];
        }
        int64_t* out = cells + start;
        for (int64_t i = 0; i < count; ++i) out[i] = cell_of(grid, x[i], y[i], z[i]);
        for (int64_t i = 0; i < count && frame; ++i) out[i] += out[i] < 0 ? 0 : frame[start + i] * cells_a_frame;
    }
}

}  // namespace pcdet
