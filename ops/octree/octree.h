// Octrees: cells of points, and the neighbours of a node's children, from those of the node. What host and device share.
//
// Columns of a table of neighbours: 9 (dx + 1) + 3 (dy + 1) + dz + 1; octants: 4 x + 2 y + z of a child in its parent.
#pragma once

#include "../serialize/serialize.h"

#include <cmath>

namespace pcdet {

constexpr int kNeighbours = 27, kOctants = 8;
constexpr int64_t kCellMask = (int64_t(1) << kBatchShift) - 1;

// The cell of a coordinate in [-1, 1] along its axis; wrap: +1 falls into the first cell, not into the last one.
PCDET_HD uint32_t cell_of(float coordinate, int32_t depth, int32_t wrap) {
    const int32_t size = 1 << depth;
    const float half = static_cast<float>(size) * 0.5f;  // exact
    const int32_t cell = static_cast<int32_t>((coordinate + 1.0f) * half);
    return static_cast<uint32_t>(wrap ? cell & (size - 1) : cell < size ? cell : size - 1);
}

PCDET_HD int64_t key_of_point(const float* p, int32_t depth, int32_t wrap) {
    return morton_encode(cell_of(p[0], depth, wrap), cell_of(p[1], depth, wrap), cell_of(p[2], depth, wrap));
}

// So written that it is true for NaN.
PCDET_HD bool is_outside(const float* p) {
    return !(std::fabs(p[0]) <= 1.0f && std::fabs(p[1]) <= 1.0f && std::fabs(p[2]) <= 1.0f);
}

// The first of the eight children of a node.
PCDET_HD int64_t eldest_child(int64_t key) { return (key & kCellMask) << 3 | (key & ~kCellMask); }

PCDET_HD int64_t parent_of(int64_t key) { return (key & kCellMask) >> 3 | (key & ~kCellMask); }

// The cells within one of a node's children form a cube of 4 x 4 x 4, of which the middle 2 x 2 x 2 are the children.
// A cell at `place` 0 to 3 along an axis lies in the parent's neighbour at offset_of(place) - 1, in its half half_of(place).
PCDET_HD int offset_of(int place) { return (place + 1) >> 1; }
PCDET_HD int half_of(int place) { return (place + 1) & 1; }

// The column of the parent's neighbour in which a cell of that cube lies.
PCDET_HD int column_of(int x, int y, int z) { return 9 * offset_of(x) + 3 * offset_of(y) + offset_of(z); }

// The first child of a neighbour, or -1 where it has none. children: running number of each node of its depth among the
// occupied ones, or -1. A neighbour that is no node of the n counts as missing and sets `wrong`.
PCDET_HD int64_t eldest_of_neighbour(int64_t node, const int32_t* children, int64_t n, bool& wrong) {
    if (node < 0 || node >= n) {
        wrong |= node != -1;
        return -1;
    }
    const int64_t number = children[node];
    return number < 0 ? -1 : kOctants * number;
}

// The node at a cell of the cube, from the first child of the neighbour in which it lies; -1 where that is -1.
PCDET_HD int64_t node_of_cell(int64_t eldest, int x, int y, int z) {
    return eldest | (4 * half_of(x) + 2 * half_of(y) + half_of(z));
}

}  // namespace pcdet
