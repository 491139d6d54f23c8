// CUDA side of the serialization keys: one thread a row, grid-stride loops.
#include "cuda_launch.h"
#include "serialize.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;

int blocks_for(int64_t n) {
    const int64_t blocks = (n + kThreads - 1) / kThreads;
    return static_cast<int>(blocks < 65535 * 16 ? blocks : 65535 * 16);
}

struct Grid {
    int32_t size[3];
};

// A row (batch, z, y, x) in one 16-byte load; counts the rows outside.
__device__ bool load_row(const int4* coords, int64_t i, const int32_t* grid, int4& row, unsigned long long* bad) {
    row = coords[i];
    const bool ok = row.x >= 0 && row.x < (1 << 15) && static_cast<uint32_t>(row.y) < static_cast<uint32_t>(grid[0]) &&
                    static_cast<uint32_t>(row.z) < static_cast<uint32_t>(grid[1]) &&
                    static_cast<uint32_t>(row.w) < static_cast<uint32_t>(grid[2]);
    if (!ok) atomicAdd(bad, 1ull);
    return ok;
}

__global__ void curve_encode(const int4* coords, int64_t n, Grid grid, int curve, int depth, int64_t* keys,
                             unsigned long long* bad) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        int4 row;
        if (!load_row(coords, i, grid.size, row, bad)) continue;
        const uint32_t z = row.y, y = row.z, x = row.w;
        const int64_t key = curve == 2   ? hilbert_encode(x, y, z, depth)
                            : curve == 1 ? morton_encode(z, y, x)
                                         : morton_encode(x, y, z);
        keys[i] = static_cast<int64_t>(row.x) << kBatchShift | key;
    }
}

__global__ void curve_decode(const int64_t* keys, int64_t n, int curve, int depth, int4* coords) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        uint32_t high, middle, low;
        const int64_t key = keys[i] & ((int64_t(1) << kBatchShift) - 1);
        if (curve == 2) {
            hilbert_decode(key, depth, high, middle, low);
        } else {
            morton_decode(key, high, middle, low);
        }
        const int32_t z = static_cast<int32_t>(curve == 1 ? high : low);
        const int32_t x = static_cast<int32_t>(curve == 1 ? low : high);
        coords[i] = make_int4(static_cast<int32_t>(keys[i] >> kBatchShift), z, static_cast<int32_t>(middle), x);
    }
}

__global__ void window_keys(const int4* coords, int64_t n, WindowOrder o, int64_t* keys, unsigned long long* bad) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        int4 row;
        if (!load_row(coords, i, o.grid, row, bad)) continue;
        const int32_t shifted[3] = {row.y + o.shift[0], row.z + o.shift[1], row.w + o.shift[2]};
        int32_t w[3], r[3];
        for (int axis = 0; axis < 3; ++axis) {
            w[axis] = shifted[axis] / o.window[axis];
            r[axis] = shifted[axis] - w[axis] * o.window[axis];
        }
        const int64_t key = o.snake ? window_key_snake(o, w, r) : window_key_rows(o, w, r);
        keys[i] = static_cast<int64_t>(row.x) << kBatchShift | key;
    }
}

}  // namespace

// Device pointers but for `grid` and `order`; bad must hold 0.
PCDET_API int pcdet_curve_encode_cuda(const int32_t* coords, int64_t n, const int32_t* grid, int curve, int depth,
                                      int64_t* keys, int64_t* bad, void* stream) {
    if (n == 0) return 0;
    const Grid size = {{grid[0], grid[1], grid[2]}};
    start_kernel(curve_encode, blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream),
                 reinterpret_cast<const int4*>(coords), n, size, curve, depth, keys,
                 reinterpret_cast<unsigned long long*>(bad));
    return cudaGetLastError();
}

PCDET_API int pcdet_curve_decode_cuda(const int64_t* keys, int64_t n, int curve, int depth, int32_t* coords,
                                      void* stream) {
    if (n == 0) return 0;
    start_kernel(curve_decode, blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream), keys, n, curve, depth,
                 reinterpret_cast<int4*>(coords));
    return cudaGetLastError();
}

PCDET_API int pcdet_window_keys_cuda(const int32_t* coords, int64_t n, const WindowOrder* order, int64_t* keys,
                                     int64_t* bad, void* stream) {
    if (n == 0) return 0;
    start_kernel(window_keys, blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream),
                 reinterpret_cast<const int4*>(coords), n, *order, keys, reinterpret_cast<unsigned long long*>(bad));
    return cudaGetLastError();
}
