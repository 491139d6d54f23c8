// Overlap matrices and pairwise overlaps on the CPU.
#include "footprint_columns.h"

namespace {

using namespace pcdet;

struct Prepared {
    std::vector<Footprint> prints;
    Circles circles;
};

template <typename T>
Prepared prepare(const T* boxes, int64_t n, int threads) {
    Prepared result{std::vector<Footprint>(n), Circles(n)};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        result.prints[i] = footprint(boxes + 7 * i);
        result.circles.set(i, result.prints[i]);
    }
    return result;
}

// Write the overlaps of a with a block of footprints, and empty the block.
template <typename T>
void write_overlaps(const Footprint& a, FootprintBlock& block, const std::vector<Footprint>& b, int kind, T* row) {
    share_areas(a, block);
    for (int64_t k = 0; k < block.size; ++k) {
        const Footprint& other = b[block.id[k]];
        row[block.id[k]] = static_cast<T>(overlap_of(block.shared[k], a, other, kind));
    }
    block.size = 0;
}

template <typename T>
int matrix(const T* a, int64_t n, const T* b, int64_t m, int kind, T* out, int threads) {
    const Prepared second = prepare(b, m, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
    for (int64_t i = 0; i < n; ++i) {
        T* row = out + i * m;
        std::fill(row, row + m, T(0));
        const Footprint first = footprint(a + 7 * i);
        if (!first.turned) continue;
        FootprintBlock block;
        each_near(second.circles, 0, m, first.x, first.y, first.radius, [&](int64_t j) {
            block.add(second.prints[j], j);
            if (block.full()) write_overlaps(first, block, second.prints, kind, row);
        });
        write_overlaps(first, block, second.prints, kind, row);
    }
    return 0;
}

template <typename T>
int paired(const T* a, const T* b, int64_t n, int kind, T* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) {
        const Footprint first = footprint(a + 7 * i), second = footprint(b + 7 * i);
        out[i] = static_cast<T>(overlap(first, second, kind));
    }
    return 0;
}

}  // namespace

// Boxes are [n, 7]; kind as in iou.h; out is [n, m] or [n].
#define PCDET_IOU(T, name)                                                                                          \
    PCDET_API int pcdet_iou_matrix_##name##_cpu(const T* a, int64_t n, const T* b, int64_t m, int kind, T* out,     \
                                                int threads) {                                                      \
        return matrix(a, n, b, m, kind, out, threads);                                                              \
    }                                                                                                               \
    PCDET_API int pcdet_iou_paired_##name##_cpu(const T* a, const T* b, int64_t n, int kind, T* out, int threads) { \
        return paired(a, b, n, kind, out, threads);                                                                 \
    }

PCDET_IOU(float, float32)
PCDET_IOU(double, float64)
