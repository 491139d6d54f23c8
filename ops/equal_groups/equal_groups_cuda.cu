// The slots of equal groups on CUDA, in one pass over slots and voxels.
#include "common.h"
#include "cuda_launch.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;

struct Sizes {
    int64_t voxels, slots, frames, size;
};

// The frame that the position lies in: the first whose end is behind it. starts [frames + 1].
__device__ int64_t frame_of(const int64_t* starts, int64_t frames, int64_t position) {
    int64_t low = 0, high = frames - 1;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (starts[middle + 1] > position) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

__global__ void fill(const int64_t* order, const int64_t* inverse, const int64_t* starts, const int64_t* padded,
                     Sizes sizes, int64_t* index, int64_t* back, bool* valid) {
    const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (i < sizes.slots) {
        const int64_t frame = frame_of(padded, sizes.frames, i), count = starts[frame + 1] - starts[frame];
        const int64_t slot = i - padded[frame];
        const int64_t place = slot < count ? slot : count > sizes.size ? slot - sizes.size : slot % count;
        index[i] = order[starts[frame] + place];
        valid[i] = slot < count;
    }
    if (i < sizes.voxels) {
        const int64_t frame = frame_of(starts, sizes.frames, inverse[i]);
        back[i] = inverse[i] - starts[frame] + padded[frame];
    }
}

}  // namespace

// order, inverse [voxels]: the sequence and its inverse; starts, padded [frames + 1]: where each frame begins in the
// sequence and among the slots. index, valid [slots]: the voxel in each slot, and whether it is there for the first
// time; back [voxels]: the slot of each voxel.
PCDET_API int pcdet_equal_groups_cuda(const int64_t* order, const int64_t* inverse, int64_t voxels, const int64_t* starts,
                                      const int64_t* padded, int64_t frames, int64_t size, int64_t slots, int64_t* index,
                                      int64_t* back, bool* valid, cudaStream_t stream) {
    const int64_t most = slots > voxels ? slots : voxels;
    if (most > 0) {
        start_kernel(fill, static_cast<int>((most + kThreads - 1) / kThreads), kThreads, 0, stream, order, inverse,
                     starts, padded, Sizes{voxels, slots, frames, size}, index, back, valid);
    }
    return cudaGetLastError();
}
