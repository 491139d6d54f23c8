// Parts of the CUDA kernels of attention in groups: the slots of a group, vectors of a head shared out to the lanes of a
// query, and tiles of rows in shared memory.
//
// A query (or, for its gradients, a key) belongs to S neighbouring lanes, each of which holds kChannels channels of the
// head: quads, every S-th one, so that the lanes read neighbouring quads of a row in shared memory.
#pragma once

#include <cfloat>
#include <cmath>

#include "common.h"
#include "cuda_launch.h"
#include "half.h"

namespace pcdet {

constexpr int kChannels = 16, kQuad = 4;
constexpr int kQueries = 32;  // of a block
constexpr int kStep = 8;      // slots that a thread computes at a time
constexpr int kMostTable = 1024;  // entries of a table that the forward pass copies into shared memory

template <int S>
constexpr int kWidth = S * kChannels;  // channels of a row in shared memory
template <int S>
constexpr int kTile = S <= 4 ? 32 : 8;  // rows in shared memory at a time

struct Groups {
    const int64_t* index;    // [groups, slots], the row in each slot
    const int64_t* inverse;  // [rows], the flat slot that each row reads back
    const uint8_t* valid;    // [groups, slots], 0: the slot is seen by none; or null
    const int64_t* owner;    // [groups, slots], slots of different owners do not see each other; or null
    const int32_t* cells;    // [rows, 3] as (z, y, x), negative: no place; or null
    const float* table;      // [heads, 3 (2 bound + 1)], biases of distances along x, y, z; or null
    int64_t groups, slots, rows, heads, dim, bound;
    float scale;  // of the logits

    __device__ int entries() const { return static_cast<int>(3 * (2 * bound + 1)); }
};

struct Slot {
    int64_t row;  // -1: none
    int64_t owner;
    int32_t cell[3];  // z, y, x
    bool valid, read, placed;  // others see it; its row reads it back; its row has a cell
};

__device__ __forceinline__ Slot slot_of(const Groups& plan, int64_t group, int64_t slot) {
    Slot found{-1, 0, {0, 0, 0}, false, false, false};
    if (slot >= plan.slots) return found;
    const int64_t at = group * plan.slots + slot, row = plan.index[at];
    if (row < 0 || row >= plan.rows) return found;
    found.row = row;
    found.owner = plan.owner == nullptr ? 0 : plan.owner[at];
    found.valid = plan.valid == nullptr || plan.valid[at];
    found.read = plan.inverse[row] == at;
    if (plan.table != nullptr) {
        for (int axis = 0; axis < 3; ++axis) found.cell[axis] = plan.cells[3 * row + axis];
        found.placed = (found.cell[0] | found.cell[1] | found.cell[2]) >= 0;
    }
    return found;
}

__device__ __forceinline__ bool sees(const Slot& query, const Slot& other) {
    return other.valid && query.owner == other.owner;
}

// The entry of the table for the distance of two cells along an axis 0, 1, 2: x, y, z.
__device__ __forceinline__ int entry_of(const Groups& plan, const Slot& query, const Slot& other, int axis) {
    const int bound = static_cast<int>(plan.bound);
    const int away = min(max(query.cell[2 - axis] - other.cell[2 - axis], -bound), bound);
    return axis * (2 * bound + 1) + bound + away;
}

__device__ __forceinline__ float bias_of(const Groups& plan, const float* table, const Slot& query, const Slot& other) {
    if (table == nullptr || !query.placed || !other.placed) return 0;
    float sum = 0;
    for (int axis = 0; axis < 3; ++axis) sum += table[entry_of(plan, query, other, axis)];
    return sum;
}

// The first channel of a lane's quad of that number.
template <int S>
__device__ __forceinline__ int channel_of(int part, int quad) {
    return (quad * S + part) * kQuad;
}

// A lane's channels of a row [dim] in memory, zeros for no row.
template <int S, typename T>
__device__ void read_channels(const T* row, int64_t dim, int part, float* to) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
        const int channel = channel_of<S>(part, i / kQuad) + i % kQuad;
        to[i] = row != nullptr && channel < dim ? to_float(row[channel]) : 0.0f;
    }
}

template <int S, typename T>
__device__ void write_channels(const float* from, int64_t dim, int part, float factor, T* row) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
        const int channel = channel_of<S>(part, i / kQuad) + i % kQuad;
        if (channel < dim) set(row[channel], from[i] * factor);
    }
}

// The product of a vector that lanes share with a row in shared memory; every lane gets it. The whole warp must call.
template <int S>
__device__ float product(const float* own, const float* row, int part) {
    float sum = 0;
#pragma unroll
    for (int quad = 0; quad < kChannels / kQuad; ++quad) {
        const float4 other = *reinterpret_cast<const float4*>(row + channel_of<S>(part, quad));
        sum += own[kQuad * quad] * other.x + own[kQuad * quad + 1] * other.y + own[kQuad * quad + 2] * other.z +
               own[kQuad * quad + 3] * other.w;
    }
#pragma unroll
    for (int lanes = 1; lanes < S; lanes *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
    return sum;
}

// sums += factor * row.
template <int S>
__device__ void add_row(float factor, const float* row, int part, float* sums) {
#pragma unroll
    for (int quad = 0; quad < kChannels / kQuad; ++quad) {
        const float4 other = *reinterpret_cast<const float4*>(row + channel_of<S>(part, quad));
        sums[kQuad * quad] += factor * other.x;
        sums[kQuad * quad + 1] += factor * other.y;
        sums[kQuad * quad + 2] += factor * other.z;
        sums[kQuad * quad + 3] += factor * other.w;
    }
}

// Rows of two arrays for some slots of a group, in shared memory. Row r of an array begins at r * stride.
template <int S>
struct Tile {
    alignas(16) float first[kTile<S>][kWidth<S>], second[kTile<S>][kWidth<S>];
    Slot slots[kTile<S>];
};

template <int S, typename T>
__device__ void fetch_rows(const T* from, int64_t stride, int64_t dim, const Slot* slots, float (*to)[kWidth<S>]) {
    for (int i = threadIdx.x; i < kTile<S> * kWidth<S>; i += kQueries * S) {
        const int slot = i / kWidth<S>, channel = i % kWidth<S>;
        const int64_t row = slots[slot].row;
        to[slot][channel] = row >= 0 && channel < dim ? to_float(from[row * stride + channel]) : 0.0f;
    }
}

template <int S, typename T>
__device__ void fetch(const Groups& plan, int64_t group, int64_t begin, const T* first, int64_t first_stride,
                      const T* second, int64_t second_stride, Tile<S>& tile) {
    __syncthreads();  // all have done with the tile before
    for (int i = threadIdx.x; i < kTile<S>; i += kQueries * S) tile.slots[i] = slot_of(plan, group, begin + i);
    __syncthreads();
    fetch_rows<S>(first, first_stride, plan.dim, tile.slots, tile.first);
    fetch_rows<S>(second, second_stride, plan.dim, tile.slots, tile.second);
    __syncthreads();
}

}  // namespace pcdet
