// Points in boxes on the CPU: blocks of points against every box, the test free of branches.
#include "points_in_boxes.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int64_t kBlock = 512;

// Later boxes first, so that the lowest number stays where boxes overlap.
template <typename T>
PCDET_CLONES void first_box(const T* x, const T* y, const T* z, int64_t n, const BoxFrame<T>* boxes, int64_t m,
                            int32_t* found) {
    for (int64_t b = m - 1; b >= 0; --b) {
        const BoxFrame<T> box = boxes[b];
        const int32_t number = static_cast<int32_t>(b);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) found[i] = holds(box, x[i], y[i], z[i]) ? number : found[i];
    }
}

template <typename T>
int run(const T* points, int64_t n, int64_t stride, const T* boxes, int64_t m, T margin, int64_t* index, int threads) {
    std::vector<BoxFrame<T>> frames(m);
    for (int64_t b = 0; b < m; ++b) frames[b] = box_frame(boxes + 7 * b, margin);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < n; start += kBlock) {
        const int64_t size = std::min(kBlock, n - start);
        T x[kBlock], y[kBlock], z[kBlock];
        int32_t found[kBlock];
        for (int64_t i = 0; i < size; ++i) {
            const T* point = points + (start + i) * stride;
            x[i] = point[0];
            y[i] = point[1];
            z[i] = point[2];
            found[i] = -1;
        }
        first_box(x, y, z, size, frames.data(), m, found);
        for (int64_t i = 0; i < size; ++i) index[start + i] = found[i];
    }
    return 0;
}

}  // namespace

// points [n, stride >= 3], boxes [m, 7]; index [n] is the lowest number of a box that holds the point, or -1.
PCDET_API int pcdet_points_in_boxes_float32_cpu(const float* points, int64_t n, int64_t stride, const float* boxes,
                                                int64_t m, double margin, int64_t* index, int threads) {
    return run(points, n, stride, boxes, m, static_cast<float>(margin), index, threads);
}

PCDET_API int pcdet_points_in_boxes_float64_cpu(const double* points, int64_t n, int64_t stride, const double* boxes,
                                                int64_t m, double margin, int64_t* index, int threads) {
    return run(points, n, stride, boxes, m, margin, index, threads);
}
