// Overlap matrices and pairwise overlaps on the CPU.
#include "iou.h"

#include <vector>

namespace {

using namespace pcdet;

template <typename T>
std::vector<Footprint> footprints(const T* boxes, int64_t n, int threads) {
    std::vector<Footprint> result(n);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) result[i] = footprint(boxes + 7 * i);
    return result;
}

template <typename T>
int matrix(const T* a, int64_t n, const T* b, int64_t m, int volume, T* out, int threads) {
    const std::vector<Footprint> first = footprints(a, n, threads), second = footprints(b, m, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
    for (int64_t i = 0; i < n; ++i) {
        T* row = out + i * m;
        for (int64_t j = 0; j < m; ++j) {
            row[j] = static_cast<T>(volume ? iou_3d(first[i], second[j]) : iou_bev(first[i], second[j]));
        }
    }
    return 0;
}

template <typename T>
int paired(const T* a, const T* b, int64_t n, int volume, T* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        const Footprint first = footprint(a + 7 * i), second = footprint(b + 7 * i);
        out[i] = static_cast<T>(volume ? iou_3d(first, second) : iou_bev(first, second));
    }
    return 0;
}

}  // namespace

#define PCDET_IOU(T, name)                                                                                          \
    PCDET_API int pcdet_iou_matrix_##name##_cpu(const T* a, int64_t n, const T* b, int64_t m, int volume, T* out,   \
                                                int threads) {                                                      \
        return matrix(a, n, b, m, volume, out, threads);                                                            \
    }                                                                                                               \
    PCDET_API int pcdet_iou_paired_##name##_cpu(const T* a, const T* b, int64_t n, int volume, T* out, int threads) { \
        return paired(a, b, n, volume, out, threads);                                                               \
    }

PCDET_IOU(float, float32)
PCDET_IOU(double, float64)
