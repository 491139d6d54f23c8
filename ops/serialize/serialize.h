// Space-filling curve keys of voxel coordinates: Morton (z-order) and Hilbert, and keys of window-sorted orders.
//
// Morton: bit i of the lowest axis goes to key bit 3i, of the middle axis (y) to 3i + 1, of the highest to 3i + 2.
// Hilbert: the transpose form of J. Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707 (2004), 3 axes.
// Every key carries the frame index from bit 48 on.
#pragma once

#include "common.h"

namespace pcdet {

constexpr int kBatchShift = 48;

// Put the lowest 16 bits of v at every third bit.
PCDET_HD uint64_t spread3(uint64_t v) {
    v &= 0xFFFF;
    v = (v | v << 16) & 0x0000FF0000FFull;
    v = (v | v << 8) & 0x00F00F00F00Full;
    v = (v | v << 4) & 0x0C30C30C30C3ull;
    v = (v | v << 2) & 0x249249249249ull;
    return v;
}

// The inverse of spread3.
PCDET_HD uint64_t collect3(uint64_t v) {
    v &= 0x249249249249ull;
    v = (v | v >> 2) & 0x0C30C30C30C3ull;
    v = (v | v >> 4) & 0x00F00F00F00Full;
    v = (v | v >> 8) & 0x0000FF0000FFull;
    v = (v | v >> 16) & 0xFFFF;
    return v;
}

PCDET_HD int64_t morton_encode(uint32_t high, uint32_t middle, uint32_t low) {
    return static_cast<int64_t>(spread3(high) << 2 | spread3(middle) << 1 | spread3(low));
}

PCDET_HD void morton_decode(int64_t key, uint32_t& high, uint32_t& middle, uint32_t& low) {
    const uint64_t k = static_cast<uint64_t>(key);
    high = static_cast<uint32_t>(collect3(k >> 2));
    middle = static_cast<uint32_t>(collect3(k >> 1));
    low = static_cast<uint32_t>(collect3(k));
}

// One level of Skilling's transform for one axis: where bit q of `axis` is set, invert the lower bits of `first`,
// elsewhere exchange the lower bits of the two. Free of branches, so that compilers vectorise it.
PCDET_HD void hilbert_step(uint32_t& first, uint32_t& axis, uint32_t q, uint32_t lower) {
    const uint32_t set = static_cast<uint32_t>(-static_cast<int32_t>((axis & q) != 0));
    const uint32_t exchange = (first ^ axis) & lower & ~set;
    first ^= exchange | (lower & set);
    axis ^= exchange;
}

// The axis that is exchanged with itself: only the inversion is left.
PCDET_HD void hilbert_step_first(uint32_t& first, uint32_t q, uint32_t lower) {
    first ^= lower & static_cast<uint32_t>(-static_cast<int32_t>((first & q) != 0));
}

// Bit k of the result is the parity of the bits above k (16 bits).
PCDET_HD uint32_t parity_above(uint32_t v) {
    v >>= 1;
    v ^= v >> 1;
    v ^= v >> 2;
    v ^= v >> 4;
    v ^= v >> 8;
    return v;
}

// Coordinates to the transposed Hilbert index: afterwards the key is the bit interleave with x highest.
PCDET_HD void hilbert_transpose(uint32_t& x, uint32_t& y, uint32_t& z, int depth) {
    for (uint32_t q = 1u << (depth - 1); q > 1; q >>= 1) {
        const uint32_t lower = q - 1;
        hilbert_step_first(x, q, lower);
        hilbert_step(x, y, q, lower);
        hilbert_step(x, z, q, lower);
    }
    y ^= x;
    z ^= y;
    const uint32_t flip = parity_above(z);
    x ^= flip;
    y ^= flip;
    z ^= flip;
}

// The inverse of the Gray code at the end of hilbert_transpose, and of one of its levels.
PCDET_HD void hilbert_unflip(uint32_t& x, uint32_t& y, uint32_t& z) {
    const uint32_t gray = z >> 1;
    z ^= y;
    y ^= x;
    x ^= gray;
}

PCDET_HD void hilbert_step_back(uint32_t& x, uint32_t& y, uint32_t& z, uint32_t q) {
    hilbert_step(x, z, q, q - 1);
    hilbert_step(x, y, q, q - 1);
    hilbert_step_first(x, q, q - 1);
}

// The inverse of hilbert_transpose.
PCDET_HD void hilbert_untranspose(uint32_t& x, uint32_t& y, uint32_t& z, int depth) {
    hilbert_unflip(x, y, z);
    for (uint32_t q = 2; q != 1u << depth; q <<= 1) hilbert_step_back(x, y, z, q);
}

PCDET_HD int64_t hilbert_encode(uint32_t x, uint32_t y, uint32_t z, int depth) {
    hilbert_transpose(x, y, z, depth);
    return morton_encode(x, y, z);
}

PCDET_HD void hilbert_decode(int64_t key, int depth, uint32_t& x, uint32_t& y, uint32_t& z) {
    morton_decode(key, x, y, z);
    hilbert_untranspose(x, y, z, depth);
}

// A window-sorted order along a major axis. Windows follow each other along the minor axis inside a line of the major
// axis ... the fields say which cell of which window comes when; see pcdet_ext/ops/serialize.py.
struct WindowOrder {
    int32_t grid[3];    // cells, (z, y, x)
    int32_t window[3];  // cells of a window, (z, y, x)
    int32_t shift[3];   // added to the coordinates, (z, y, x)
    int32_t count[3];   // windows, (z, y, x)
    int32_t along_y;    // 0: x order, 1: y order
    int32_t snake;      // 1: boustrophedon over windows and cells (two axes), 0: row by row (three axes)
};

PCDET_HD int32_t alternate(int32_t index) { return 1 - 2 * (index & 1); }

// Row by row: windows (major, minor, z), then cells (major, minor, z). LION's order: major is x in the x order.
PCDET_HD int64_t window_key_rows(const WindowOrder& o, const int32_t w[3], const int32_t r[3]) {
    const int major = o.along_y ? 1 : 2, minor = o.along_y ? 2 : 1;
    const int64_t window = (static_cast<int64_t>(w[major]) * o.count[minor] + w[minor]) * o.count[0] + w[0];
    const int64_t cell = (static_cast<int64_t>(r[major]) * o.window[minor] + r[minor]) * o.window[0] + r[0];
    return window * o.window[0] * o.window[1] * o.window[2] + cell;
}

// Back and forth: windows row by row of y (x order) or of x (y order), every other row backwards, and the same for the
// cells inside; a column of cells from the bottom up. FlatFormer's order, whose pillars leave z out.
PCDET_HD int64_t window_key_snake(const WindowOrder& o, const int32_t w[3], const int32_t r[3]) {
    const int line = o.along_y ? 2 : 1, along = o.along_y ? 1 : 2;
    const int64_t stride = 2 * static_cast<int64_t>(o.count[along]);
    const int64_t area = 4 * static_cast<int64_t>(o.window[1]) * o.window[2];
    const int32_t turn = alternate(w[line]);
    const int64_t cell = 2 * static_cast<int64_t>(o.window[line]) * r[along] + alternate(r[along]) * r[line];
    return ((stride * w[line] + turn * w[along]) * area + turn * cell) * o.window[0] + r[0];
}

}  // namespace pcdet
