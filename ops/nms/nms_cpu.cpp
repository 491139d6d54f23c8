// Greedy non-maximum suppression on the CPU: the best box removes all later ones that overlap it too much.
#include "iou/iou.h"

#include <algorithm>
#include <vector>

namespace {

using namespace pcdet;

constexpr int64_t kBlock = 256;

// Centres and radii apart, so that the cheap test of nearness runs on vectors.
struct Columns {
    std::vector<float> x, y, radius;
};

PCDET_CLONES void near_block(const float* x, const float* y, const float* radius, int64_t n, float cx, float cy, float r,
                             uint8_t* near) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        const float dx = x[j] - cx, dy = y[j] - cy, reach = (radius[j] + r) * 1.0001f + 1e-4f;
        near[j] = dx * dx + dy * dy <= reach * reach;
    }
}

// kind 0: rotated, 1: axis-aligned, 2: circle (threshold on the squared distance of centres).
bool removes(const Footprint& a, const Footprint& b, int kind, double threshold) {
    if (kind == 2) {
        const double dx = a.x - b.x, dy = a.y - b.y;
        return dx * dx + dy * dy <= threshold;
    }
    return (kind == 1 ? iou_axis_aligned(a, b) : iou_bev(a, b)) > threshold;
}

template <typename T>
int nms(const T* boxes, int64_t n, double threshold, int kind, int64_t most, int64_t* kept, int64_t* count) {
    std::vector<Footprint> prints(n);
    Columns columns{std::vector<float>(n), std::vector<float>(n), std::vector<float>(n)};
    const double circle = kind == 2 ? 0.5 * std::sqrt(std::max(threshold, 0.0)) : 0;
    for (int64_t i = 0; i < n; ++i) {
        prints[i] = footprint(boxes + 7 * i);
        columns.x[i] = static_cast<float>(prints[i].x);
        columns.y[i] = static_cast<float>(prints[i].y);
        columns.radius[i] = static_cast<float>(kind == 2 ? circle : prints[i].radius);
    }
    std::vector<uint8_t> removed(n, 0);
    uint8_t near[kBlock];
    *count = 0;
    for (int64_t i = 0; i < n && *count < most; ++i) {
        if (removed[i]) continue;
        kept[(*count)++] = i;
        for (int64_t start = i + 1; start < n; start += kBlock) {
            const int64_t size = std::min(kBlock, n - start);
            near_block(&columns.x[start], &columns.y[start], &columns.radius[start], size, columns.x[i], columns.y[i],
                       columns.radius[i], near);
            for (int64_t j = 0; j < size; ++j) {
                if (near[j] && !removed[start + j]) {
                    removed[start + j] = removes(prints[i], prints[start + j], kind, threshold);
                }
            }
        }
    }
    return 0;
}

}  // namespace

// boxes [n, 7] in descending order of score; kept [most] are row numbers, *count of them.
PCDET_API int pcdet_nms_float32_cpu(const float* boxes, int64_t n, double threshold, int kind, int64_t most,
                                    int64_t* kept, int64_t* count, int) {
    return nms(boxes, n, threshold, kind, most, kept, count);
}

PCDET_API int pcdet_nms_float64_cpu(const double* boxes, int64_t n, double threshold, int kind, int64_t most,
                                    int64_t* kept, int64_t* count, int) {
    return nms(boxes, n, threshold, kind, most, kept, count);
}
