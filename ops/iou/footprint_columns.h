// One footprint against many on the CPU: a cheap test of nearness and exact areas, both in vector registers.
#pragma once

#include "iou.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace pcdet {
namespace {  // every source file has its own copy, compiled for its own clones

constexpr int64_t kBlock = 256;

// Centres and radii of circles; NaN as radius makes a circle near to none.
struct Circles {
    std::vector<double> x, y, radius;

    explicit Circles(int64_t n) : x(n), y(n), radius(n) {}
    void set(int64_t i, double cx, double cy, double r) {
        x[i] = cx;
        y[i] = cy;
        radius[i] = r;
    }
    void set(int64_t i, const Footprint& f) { set(i, f.x, f.y, f.turned ? f.radius : kNowhere); }
    static constexpr double kNowhere = std::numeric_limits<double>::quiet_NaN();
};

PCDET_CLONES inline void mark_near(const double* x, const double* y, const double* radius, int64_t n, double cx,
                                   double cy, double r, uint8_t* near) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        const double dx = x[j] - cx, dy = y[j] - cy, reach = radius[j] + r;
        near[j] = dx * dx + dy * dy <= reach * reach * (1 + 1e-12);  // false for NaN
    }
}

// Calls visit(j) for the circles of [begin, end) that meet the circle (cx, cy, r), ascending.
template <typename Visit>
void each_near(const Circles& circles, int64_t begin, int64_t end, double cx, double cy, double r, const Visit& visit) {
    uint8_t near[kBlock];
    for (int64_t start = begin; start < end; start += kBlock) {
        const int64_t size = std::min(kBlock, end - start);
        std::memset(near + size, 0, kBlock - size);
        mark_near(&circles.x[start], &circles.y[start], &circles.radius[start], size, cx, cy, r, near);
        for (int64_t word = 0; word < size; word += 8) {
            uint64_t flags;
            std::memcpy(&flags, near + word, 8);
            for (; flags; flags &= flags - 1) visit(start + word + (__builtin_ctzll(flags) >> 3));
        }
    }
}

// Footprints gathered to be held against one at once. Fields as in Footprint; id: the caller's number.
struct FootprintBlock {
    int64_t size = 0;
    int64_t id[kBlock];
    double x[kBlock], y[kBlock], half_x[kBlock], half_y[kBlock], cos[kBlock], sin[kBlock], area[kBlock], shared[kBlock];

    void add(const Footprint& f, int64_t number) {
        id[size] = number;
        x[size] = f.x;
        y[size] = f.y;
        half_x[size] = f.half_x;
        half_y[size] = f.half_y;
        cos[size] = f.cos;
        sin[size] = f.sin;
        area[size++] = f.area;
    }
    bool full() const { return size == kBlock; }
};

// Areas shared with footprint a, into b.shared.
PCDET_CLONES inline void share_areas(const Footprint& a, FootprintBlock& b) {
    const Footprint first = a;  // nothing that is written can lie in a copy
    const int64_t n = b.size;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
        b.shared[j] =
            shared_area(first, b.x[j], b.y[j], b.half_x[j], b.half_y[j], b.cos[j], b.sin[j], b.area[j]);
    }
}

}  // namespace
}  // namespace pcdet
