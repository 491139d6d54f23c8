// Greedy non-maximum suppression on the CPU: the best box removes all later ones that overlap it too much.
#include "iou/footprint_columns.h"
#include "nms.h"

#include <cmath>
#include <numeric>

namespace {

using namespace pcdet;

// The boxes that can overlap anything, by x, so that the neighbours of a box lie in one short run.
struct Neighbourhood {
    std::vector<int64_t> number;  // of the box at each place
    std::vector<int64_t> place;   // of each box, -1 where it overlaps nothing
    Circles circles;
    double widest = 0;

    explicit Neighbourhood(const Circles& all) : place(all.x.size(), -1), circles(0) {
        for (int64_t i = 0; i < static_cast<int64_t>(place.size()); ++i) {
            if (std::isfinite(all.x[i] + all.y[i] + all.radius[i])) number.push_back(i);
        }
        std::sort(number.begin(), number.end(), [&](int64_t i, int64_t j) { return all.x[i] < all.x[j]; });
        circles = Circles(static_cast<int64_t>(number.size()));
        for (int64_t p = 0; p < static_cast<int64_t>(number.size()); ++p) {
            const int64_t i = number[p];
            place[i] = p;
            circles.set(p, all.x[i], all.y[i], all.radius[i]);
            widest = std::max(widest, all.radius[i]);
        }
    }

    // Calls visit(place) for those near the circle at a place.
    template <typename Visit>
    void each(int64_t p, const Visit& visit) const {
        const double x = circles.x[p], radius = circles.radius[p];
        const double reach = (radius + widest) * (1 + 1e-9) + 1e-9 * std::fabs(x);
        const auto begin = std::lower_bound(circles.x.begin(), circles.x.begin() + p, x - reach);
        const auto end = std::upper_bound(circles.x.begin() + p, circles.x.end(), x + reach);
        each_near(circles, begin - circles.x.begin(), end - circles.x.begin(), x, circles.y[p], radius, visit);
    }
};

// Removes from `alive` what overlaps footprint a by more than the threshold, and empties the block.
void remove_overlapping(const Footprint& a, FootprintBlock& block, double threshold, std::vector<uint8_t>& alive) {
    share_areas(a, block);
    for (int64_t k = 0; k < block.size; ++k) {
        const double shared = block.shared[k];
        if (shared > 0 && shared / (a.area + block.area[k] - shared) > threshold) alive[block.id[k]] = 0;
    }
    block.size = 0;
}

template <typename T>
int nms(const T* boxes, int64_t n, double threshold, int kind, int64_t most, int64_t* kept, int64_t* count) {
    std::vector<Footprint> prints(n);
    Circles circles(n);
    for (int64_t i = 0; i < n; ++i) {
        prints[i] = footprint(boxes + 7 * i);
        const bool usable = kind == kCircle || (kind == kAxisAligned ? prints[i].flat : prints[i].turned);
        const double radius = kind == kCircle ? 0.5 * std::sqrt(threshold) : prints[i].radius;
        circles.set(i, prints[i].x, prints[i].y, usable ? radius : Circles::kNowhere);
    }
    const Neighbourhood near(circles);
    std::vector<uint8_t> alive(near.number.size(), 1);  // neither kept nor removed, by place
    FootprintBlock block;
    *count = 0;
    for (int64_t i = 0; i < n && *count < most; ++i) {
        const int64_t p = near.place[i];
        if (p >= 0 && !alive[p]) continue;
        kept[(*count)++] = i;
        if (p < 0) continue;
        alive[p] = 0;
        near.each(p, [&](int64_t q) {
            if (!alive[q]) return;
            const Footprint& other = prints[near.number[q]];
            if (kind != kRotated) {
                alive[q] = !removes(prints[i], other, kind, threshold);
                return;
            }
            block.add(other, q);
            if (block.full()) remove_overlapping(prints[i], block, threshold, alive);
        });
        remove_overlapping(prints[i], block, threshold, alive);
    }
    return 0;
}

}  // namespace

// boxes [n, 7] in descending order of score; threshold >= 0; kept [most] are row numbers, *count of them.
PCDET_API int pcdet_nms_float32_cpu(const float* boxes, int64_t n, double threshold, int kind, int64_t most,
                                    int64_t* kept, int64_t* count, int) {
    return nms(boxes, n, threshold, kind, most, kept, count);
}

PCDET_API int pcdet_nms_float64_cpu(const double* boxes, int64_t n, double threshold, int kind, int64_t most,
                                    int64_t* kept, int64_t* count, int) {
    return nms(boxes, n, threshold, kind, most, kept, count);
}
