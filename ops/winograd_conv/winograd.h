// The 3x3 convolution of tiles of 4x4 cells by Winograd's minimal filtering, F(4x4, 3x3) (Lavin and Gray, CVPR 2016):
// 36 multiplications per tile and pair of channels instead of 144. The points at which the polynomials are evaluated
// are 0, +-3/4, +-3/2 and infinity instead of the usual 0, +-1, +-2: rounding then costs a fifth as much.
#pragma once

#include "common.h"

namespace pcdet {

constexpr int kTile = 4, kPatch = kTile + 2, kPoints = kPatch * kPatch;
constexpr float kNear = 0.75f, kFar = 1.5f;
constexpr float kNear2 = kNear * kNear, kFar2 = kFar * kFar;

// Six values of the input along one axis at the six points; Vector is a number or a vector of channels.
template <typename Vector>
PCDET_HD void to_points(const Vector* d, int step, Vector* v, int v_step) {
    const Vector d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const Vector even_near = d4 - kFar2 * d2, odd_near = kNear * (d3 - kFar2 * d1);
    const Vector even_far = d4 - kNear2 * d2, odd_far = kFar * (d3 - kNear2 * d1);
    v[0] = kNear2 * kFar2 * d0 - (kNear2 + kFar2) * d2 + d4;
    v[v_step] = even_near + odd_near;
    v[2 * v_step] = even_near - odd_near;
    v[3 * v_step] = even_far + odd_far;
    v[4 * v_step] = even_far - odd_far;
    v[5 * v_step] = kNear2 * kFar2 * d1 - (kNear2 + kFar2) * d3 + d5;
}

// Four values of the output along one axis from the products at the six points.
template <typename Vector>
PCDET_HD void from_points(const Vector* m, int step, Vector* y, int y_step) {
    const Vector sum_near = m[step] + m[2 * step], difference_near = kNear * (m[step] - m[2 * step]);
    const Vector sum_far = m[3 * step] + m[4 * step], difference_far = kFar * (m[3 * step] - m[4 * step]);
    y[0] = m[0] + sum_near + sum_far;
    y[y_step] = difference_near + difference_far;
    y[2 * y_step] = kNear2 * sum_near + kFar2 * sum_far;
    y[3 * y_step] = kNear2 * difference_near + kFar2 * difference_far + m[5 * step];
}

}  // namespace pcdet
