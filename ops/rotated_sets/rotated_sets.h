// DSVT's rotated sets: in which window a voxel lies, at which of its cells, and which slots of the window's sets it
// fills.
#pragma once

#include "common.h"

namespace pcdet {

struct Windows {
    int32_t grid[3];    // cells, (z, y, x)
    int32_t window[3];  // cells of a window
    int32_t shift[3];   // added to the coordinates
    int32_t count[3];   // windows
};

PCDET_HD int32_t window_along(const Windows& w, int axis, int32_t cell) {
    return (cell + w.shift[axis]) / w.window[axis];
}

PCDET_HD int32_t inside_along(const Windows& w, int axis, int32_t cell) {
    return (cell + w.shift[axis]) % w.window[axis];
}

// Windows ascend by (frame, x, y, z); place is (z, y, x).
PCDET_HD int64_t window_number(const Windows& w, int64_t frame, const int32_t place[3]) {
    return ((frame * w.count[2] + place[2]) * w.count[1] + place[1]) * w.count[0] + place[0];
}

// Cells of a window ascend by (y, x, z) in direction 0 and by (x, y, z) in direction 1.
PCDET_HD int32_t cell_inside(const Windows& w, int direction, const int32_t inside[3]) {
    const int major = 1 + direction, minor = 2 - direction;
    return (inside[major] * w.window[minor] + inside[minor]) * w.window[0] + inside[0];
}

PCDET_HD int64_t sets_of(int64_t voxels, int64_t set_size) { return (voxels + set_size - 1) / set_size; }

// Slot k of a window's `slots` holds the voxel of rank floor(k * voxels / slots): the first slot of a rank, and with
// rank + 1 the end of its slots.
PCDET_HD int64_t first_slot(int64_t rank, int64_t voxels, int64_t slots) {
    return (rank * slots + voxels - 1) / voxels;
}

}  // namespace pcdet
