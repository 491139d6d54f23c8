// The grid cell of a point: subtract, divide, floor, in float32 as the published voxelisers do.
#pragma once

#include "common.h"

#include <cmath>

namespace pcdet {

struct VoxelGrid {
    float low[3], size[3];  // (x, y, z), metres
    int32_t cells[3];       // (x, y, z)
};

// Number of the cell, x fastest, or -1 outside; NaN and infinity are outside.
PCDET_HD int64_t cell_of(const VoxelGrid& g, float x, float y, float z) {
    const float fx = floorf((x - g.low[0]) / g.size[0]);
    const float fy = floorf((y - g.low[1]) / g.size[1]);
    const float fz = floorf((z - g.low[2]) / g.size[2]);
    const bool inside = fx >= 0 && fx < static_cast<float>(g.cells[0]) && fy >= 0 &&
                        fy < static_cast<float>(g.cells[1]) && fz >= 0 && fz < static_cast<float>(g.cells[2]);
    if (!inside) return -1;
    return (static_cast<int64_t>(fz) * g.cells[1] + static_cast<int64_t>(fy)) * g.cells[0] + static_cast<int64_t>(fx);
}

PCDET_HD void cell_coords(const VoxelGrid& g, int64_t cell, int32_t zyx[3]) {
    zyx[2] = static_cast<int32_t>(cell % g.cells[0]);
    zyx[1] = static_cast<int32_t>(cell / g.cells[0] % g.cells[1]);
    zyx[0] = static_cast<int32_t>(cell / g.cells[0] / g.cells[1]);
}

}  // namespace pcdet
