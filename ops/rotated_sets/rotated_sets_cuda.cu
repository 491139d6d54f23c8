// DSVT's rotated sets on CUDA: one thread a row finds its window and counts; then one block is one direction of one
// window. It marks the cells in a bit map and counts the bits below each voxel's, which is the voxel's rank: no sorting.
// What atomic counters decide, where in its window's list a row stands, has no influence on the result.
#include "cuda_launch.h"
#include "rotated_sets.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;  // a row each
constexpr int kTeam = 128;     // of a window

int blocks_for(int64_t n) {
    const int64_t blocks = (n + kThreads - 1) / kThreads;
    return static_cast<int>(blocks < 65535 * 16 ? blocks : 65535 * 16);
}

__global__ void locate(const int32_t* coords, int64_t n, int64_t frames, Windows w, int64_t* number, int32_t* inside,
                       int32_t* arrival, int32_t* counts, unsigned long long* outside) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        const int32_t* row = coords + 4 * i;
        bool ok = row[0] >= 0 && row[0] < frames;
        for (int axis = 0; axis < 3; ++axis) ok = ok && row[axis + 1] >= 0 && row[axis + 1] < w.grid[axis];
        if (!ok) {
            atomicAdd(outside, 1ull);
            continue;
        }
        int32_t place[3];
        for (int axis = 0; axis < 3; ++axis) {
            place[axis] = window_along(w, axis, row[axis + 1]);
            inside[3 * i + axis] = inside_along(w, axis, row[axis + 1]);
        }
        number[i] = window_number(w, row[0], place);
        arrival[i] = atomicAdd(counts + number[i], 1);
    }
}

__global__ void gather(int64_t n, const int64_t* number, const int32_t* arrival, const int64_t* starts,
                       int32_t* members) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        members[starts[number[i]] + arrival[i]] = static_cast<int32_t>(i);
    }
}

// below[i] = bits set in words before i. All threads of the block must call; `shares` has room for kTeam.
__device__ void count_below(const uint32_t* words, int32_t length, int32_t* below, int32_t* shares) {
    const int32_t each = (length + kTeam - 1) / kTeam;
    const int32_t begin = min(static_cast<int32_t>(threadIdx.x) * each, length), end = min(begin + each, length);
    int32_t bits = 0;
    for (int32_t i = begin; i < end; ++i) bits += __popc(words[i]);
    shares[threadIdx.x] = bits;
    __syncthreads();
    int32_t before = 0;
    for (int t = 0; t < static_cast<int>(threadIdx.x); ++t) before += shares[t];
    for (int32_t i = begin; i < end; ++i) {
        below[i] = before;
        before += __popc(words[i]);
    }
    __syncthreads();
}

__global__ void fill(Windows w, const int32_t* inside, const int32_t* members, const int64_t* starts,
                     const int64_t* first_set, int64_t n, int32_t length, int64_t set_size, int64_t sets,
                     int64_t* index, bool* repeats, int64_t* slot) {
    PCDET_DYNAMIC_SHARED(uint32_t, words);  // length words, and how many bits stand before each
    __shared__ int32_t shares[kTeam];
    int32_t* below = reinterpret_cast<int32_t*>(words + length);
    const int64_t window = blockIdx.x, begin = starts[window], voxels = starts[window + 1] - begin;
    const int direction = blockIdx.y;
    if (voxels == 0) return;
    for (int32_t i = threadIdx.x; i < length; i += kTeam) words[i] = 0;
    __syncthreads();
    for (int64_t m = threadIdx.x; m < voxels; m += kTeam) {
        const int32_t cell = cell_inside(w, direction, inside + 3 * static_cast<int64_t>(members[begin + m]));
        atomicOr(words + cell / 32, 1u << (cell % 32));
    }
    __syncthreads();
    count_below(words, length, below, shares);
    const int64_t base = first_set[window] * set_size, slots = first_set[window + 1] * set_size - base;
    index += direction * sets * set_size + base;
    repeats += direction * sets * set_size + base;
    for (int64_t m = threadIdx.x; m < voxels; m += kTeam) {
        const int64_t row = members[begin + m];
        const int32_t cell = cell_inside(w, direction, inside + 3 * row);
        const int64_t rank = below[cell / 32] + __popc(words[cell / 32] & ((1u << (cell % 32)) - 1));
        const int64_t first = first_slot(rank, voxels, slots), end = first_slot(rank + 1, voxels, slots);
        slot[direction * n + row] = base + first;
        for (int64_t s = first; s < end; ++s) {
            index[s] = row;
            repeats[s] = s != first;
        }
    }
}

}  // namespace

// First half: window number [n] and place inside [n, 3] (z, y, x) of each voxel, and its place in the window's list,
// arrival [n]. Adds to counts [windows], which are the lengths of the lists, and to `outside`, rows outside the grid.
PCDET_API int pcdet_rotated_windows_cuda(const int32_t* coords, int64_t n, int64_t frames, const Windows* windows,
                                         int64_t* number, int32_t* inside, int32_t* arrival, int32_t* counts,
                                         unsigned long long* outside, cudaStream_t stream) {
    if (n == 0) return 0;
    start_kernel(locate, blocks_for(n), kThreads, 0, stream, coords, n, frames, *windows, number, inside, arrival,
                 counts, outside);
    return static_cast<int>(cudaGetLastError());
}

// Second half: the voxel in each slot [2, sets, set_size], whether it repeats the slot to its left, and the first slot
// of each voxel [2, n]. The list of a window begins at starts [count + 1] in members [n], which is scratch, and its sets
// at first_set [count + 1].
PCDET_API int pcdet_rotated_fill_cuda(const int64_t* number, const int32_t* inside, const int32_t* arrival,
                                      const int64_t* starts, const int64_t* first_set, int64_t n, int64_t count,
                                      const Windows* windows, int64_t set_size, int64_t sets, int32_t* members,
                                      int64_t* index, bool* repeats, int64_t* slot, cudaStream_t stream) {
    if (n == 0) return 0;
    start_kernel(gather, blocks_for(n), kThreads, 0, stream, n, number, arrival, starts, members);
    const Windows& w = *windows;
    const int32_t length = (w.window[0] * w.window[1] * w.window[2] + 31) / 32;
    const dim3 grid(static_cast<unsigned>(count), 2);
    start_kernel(fill, grid, kTeam, length * 2 * sizeof(uint32_t), stream, w, inside, members, starts, first_set, n,
                 length, set_size, sets, index, repeats, slot);
    return static_cast<int>(cudaGetLastError());
}
