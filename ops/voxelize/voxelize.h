// The grid cell of a point: subtract, divide, floor, in float32 as the published voxelisers do.
#pragma once

#include "common.h"

#include <cmath>

namespace pcdet {

struct VoxelGrid {
    float low[3], size[3];  // (x, y, z), metres; an infinite size makes columns of any height: every finite z is in cell 0
    int32_t cells[3];       // (x, y, z)
    int32_t strides[3];     // what a step along x, y and z adds to the number of a cell
};

PCDET_HD int64_t volume(const VoxelGrid& g) {
    return static_cast<int64_t>(g.cells[0]) * g.cells[1] * g.cells[2];
}

// Number of the cell, or -1 outside; NaN and infinity are outside. No branches, so that it runs on vectors.
PCDET_HD int64_t cell_of(const VoxelGrid& g, float x, float y, float z) {
    const float fx = floorf((x - g.low[0]) / g.size[0]);
    const float fy = floorf((y - g.low[1]) / g.size[1]);
    const float fz = floorf((z - g.low[2]) / g.size[2]);
    const bool inside = (fx >= 0) & (fx < static_cast<float>(g.cells[0])) & (fy >= 0) &
                        (fy < static_cast<float>(g.cells[1])) & (fz >= 0) & (fz < static_cast<float>(g.cells[2]));
    const int64_t ix = static_cast<int32_t>(inside ? fx : 0.0f);
    const int64_t iy = static_cast<int32_t>(inside ? fy : 0.0f);
    const int64_t iz = static_cast<int32_t>(inside ? fz : 0.0f);
    return inside ? ix * g.strides[0] + iy * g.strides[1] + iz * g.strides[2] : -1;
}

// Division by one number many times: a multiplication while both are below 2^32 (Lemire, Kaser and Kurz, "Faster
// remainder by direct computation", 2019).
struct Divider {
    int64_t divisor;
    uint64_t reciprocal;  // 2^64 / divisor rounded up; 0 stands for 2^64

    PCDET_HD explicit Divider(int64_t d) : divisor(d), reciprocal(~uint64_t(0) / static_cast<uint64_t>(d) + 1) {}

    PCDET_HD int64_t operator()(int64_t n) const {
        if ((n | divisor) >> 32) return n / divisor;
        if (reciprocal == 0) return n;
#if defined(__CUDA_ARCH__)
        return static_cast<int64_t>(__umul64hi(reciprocal, static_cast<uint64_t>(n)));
#else
        return static_cast<int64_t>((static_cast<unsigned __int128>(reciprocal) * static_cast<uint64_t>(n)) >> 64);
#endif
    }
};

// Back from cell numbers to coordinates.
struct CellDecoder {
    bool x_major;  // z is fastest instead of x
    Divider frame, line, row;

    PCDET_HD explicit CellDecoder(const VoxelGrid& g)
        : x_major(g.strides[0] != 1), frame(volume(g)), line(g.cells[1]), row(g.cells[x_major ? 2 : 0]) {}

    // (z, y, x) of a cell of one frame.
    PCDET_HD void inside(int64_t cell, int32_t zyx[3]) const {
        const int64_t rows = row(cell), lines = line(rows);
        const int32_t minor = static_cast<int32_t>(cell - rows * row.divisor), major = static_cast<int32_t>(lines);
        zyx[0] = x_major ? minor : major;
        zyx[1] = static_cast<int32_t>(rows - lines * line.divisor);
        zyx[2] = x_major ? major : minor;
    }

    // (frame, z, y, x) of frame * volume + cell.
    PCDET_HD void batched(int64_t cell, int32_t coords[4]) const {
        const int64_t number = frame(cell);
        coords[0] = static_cast<int32_t>(number);
        inside(cell - number * frame.divisor, coords + 1);
    }
};

}  // namespace pcdet
