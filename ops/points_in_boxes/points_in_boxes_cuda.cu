// Points in boxes on CUDA: a thread a point, the boxes through shared memory.
#include "cuda_launch.h"
#include "points_in_boxes.h"

namespace {

using namespace pcdet;

constexpr int kThreads = 256;
constexpr int kBoxes = 128;  // in shared memory at once
constexpr int64_t kMaxBlocks = 65535;

template <typename T>
__global__ void first_box(const T* points, int64_t n, int64_t stride, const T* boxes, int64_t m, T margin,
                          int64_t* index) {
    __shared__ BoxFrame<T> frames[kBoxes];
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads; start < n; start += step) {
        const int64_t i = start + threadIdx.x;
        const T* point = points + (i < n ? i : start) * stride;
        const T x = point[0], y = point[1], z = point[2];
        int64_t found = -1;
        for (int64_t begin = 0; begin < m; begin += kBoxes) {
            const int size = static_cast<int>(m - begin < kBoxes ? m - begin : kBoxes);
            __syncthreads();  // the boxes before are read by all
            if (threadIdx.x < size) frames[threadIdx.x] = box_frame(boxes + 7 * (begin + threadIdx.x), margin);
            __syncthreads();
            for (int b = 0; b < size && found < 0; ++b) {
                if (holds(frames[b], x, y, z)) found = begin + b;
            }
        }
        if (i < n) index[i] = found;
    }
}

template <typename T>
int launch(const T* points, int64_t n, int64_t stride, const T* boxes, int64_t m, T margin, int64_t* index, void* stream) {
    if (n == 0) return 0;
    const int64_t blocks = (n + kThreads - 1) / kThreads;
    start_kernel(first_box<T>, static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0,
                 static_cast<cudaStream_t>(stream), points, n, stride, boxes, m, margin, index);
    return cudaGetLastError();
}

}  // namespace

// Device pointers; otherwise as on the CPU.
PCDET_API int pcdet_points_in_boxes_float32_cuda(const float* points, int64_t n, int64_t stride, const float* boxes,
                                                 int64_t m, double margin, int64_t* index, void* stream) {
    return launch(points, n, stride, boxes, m, static_cast<float>(margin), index, stream);
}

PCDET_API int pcdet_points_in_boxes_float64_cuda(const double* points, int64_t n, int64_t stride, const double* boxes,
                                                 int64_t m, double margin, int64_t* index, void* stream) {
    return launch(points, n, stride, boxes, m, margin, index, stream);
}
