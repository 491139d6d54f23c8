// Cells of points and coordinates of cells on CUDA; the sorting between them is torch's.
#include "cuda_launch.h"
#include "voxelize.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;

int blocks_for(int64_t n) { return static_cast<int>((n + kThreads - 1) / kThreads); }

__global__ void point_cells(const float* points, int64_t n, int64_t stride, const int64_t* frame, VoxelGrid grid,
                            int64_t* cells) {
    const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (i >= n) return;
    const float* p = points + i * stride;
    const int64_t cell = cell_of(grid, p[0], p[1], p[2]);
    cells[i] = cell < 0 || !frame ? cell : frame[i] * volume(grid) + cell;
}

__global__ void cell_coords(const int64_t* cells, int64_t n, CellDecoder decode, int32_t* coords) {
    const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (i < n) decode.batched(cells[i], coords + 4 * i);
}

}  // namespace

// cells [n]: frame * volume + cell, or the cell alone where `frame` is null; -1 outside.
PCDET_API int pcdet_point_cells_cuda(const float* points, int64_t n, int64_t stride, const int64_t* frame,
                                     const VoxelGrid* grid, int64_t* cells, cudaStream_t stream) {
    if (n > 0) start_kernel(point_cells, blocks_for(n), kThreads, 0, stream, points, n, stride, frame, *grid, cells);
    return cudaGetLastError();
}

// coords [n, 4] as (frame, z, y, x).
PCDET_API int pcdet_cell_coords_cuda(const int64_t* cells, int64_t n, const VoxelGrid* grid, int32_t* coords,
                                     cudaStream_t stream) {
    if (n > 0) start_kernel(cell_coords, blocks_for(n), kThreads, 0, stream, cells, n, CellDecoder(*grid), coords);
    return cudaGetLastError();
}
