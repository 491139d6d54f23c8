// Products of rows with panels of 16 columns of a matrix, as many sums at once as the registers of a processor hold. For
// sources that begin with
//     #pragma GCC optimize("fp-contract=fast")
#pragma once

#include <cstring>

#include "common.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PCDET_WIDE_TARGETS
#endif

namespace pcdet {

constexpr int64_t kLanes = 16;  // channels that go together
typedef float Lanes __attribute__((vector_size(64), aligned(4)));

PCDET_HD Lanes lanes_at(const float* from) {
    Lanes v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}

// So many products are added up before their sum goes to those before: rounding then grows with the root of this number
// and of the number of such sums, and not with the root of all.
constexpr int64_t kSummed = 64;

// Add the products of numbers `first` to `end` of `Rows` rows of a [.., depth] with `Panels` panels [depth, 16] of weights.
template <int Rows, int Panels>
PCDET_HD void add_products(const float* a, const float* panel, int64_t depth, int64_t first, int64_t end,
                           Lanes (&sum)[Rows][Panels]) {
    for (int64_t k = first; k < end; ++k) {
        Lanes w[Panels];
        for (int j = 0; j < Panels; ++j) w[j] = lanes_at(panel + (j * depth + k) * kLanes);
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Panels; ++j) sum[i][j] += a[i * depth + k] * w[j];
    }
}

// The products of whole rows, to m [.., m_step]; zeros where the depth is 0.
template <int Rows, int Panels>
PCDET_HD void multiply_some(const float* a, const float* panel, int64_t depth, float* m, int64_t m_step) {
    for (int64_t first = 0; first < depth || first == 0; first += kSummed) {
        Lanes sum[Rows][Panels] = {};
        add_products<Rows, Panels>(a, panel, depth, first, first + kSummed < depth ? first + kSummed : depth, sum);
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Panels; ++j) {
                float* to = m + i * m_step + j * kLanes;
                if (first > 0) sum[i][j] += lanes_at(to);
                std::memcpy(to, &sum[i][j], sizeof(Lanes));
            }
    }
}

template <int Rows, int Panels>
PCDET_HD void multiply(const float* a, const float* panel, int64_t rows, int64_t depth, float* m) {
    int64_t i = 0;
    for (; i + Rows <= rows; i += Rows)
        multiply_some<Rows, Panels>(a + i * depth, panel, depth, m + i * Panels * kLanes, Panels * kLanes);
    for (; i < rows; ++i)
        multiply_some<1, Panels>(a + i * depth, panel, depth, m + i * Panels * kLanes, Panels * kLanes);
}

// `Work::run<Rows, Panels>` for the processor that this runs on, with as many sums at once as its registers hold: two
// rows, `Avx2Rows`, or eight and, where the channels are a multiple of 32, two panels.
template <typename Work, int Avx2Rows, typename... Given>
struct Versions {
    using Function = void (*)(Given...);

    static void anywhere(Given... given) { Work::template run<2, 1>(given...); }

#if defined(PCDET_WIDE_TARGETS)
    __attribute__((target("arch=x86-64-v3"))) static void avx2(Given... given) {
        Work::template run<Avx2Rows, 1>(given...);
    }
    __attribute__((target("arch=x86-64-v4"))) static void avx512(Given... given) {
        Work::template run<8, 1>(given...);
    }
    __attribute__((target("arch=x86-64-v4"))) static void avx512_pairs(Given... given) {
        Work::template run<8, 2>(given...);
    }
#endif

    static Function best(int64_t channels) {
#if defined(PCDET_WIDE_TARGETS)
        if (__builtin_cpu_supports("x86-64-v4")) return channels % (2 * kLanes) ? avx512 : avx512_pairs;
        if (__builtin_cpu_supports("x86-64-v3")) return avx2;
#endif
        (void)channels;
        return anywhere;
    }
};

}  // namespace pcdet
