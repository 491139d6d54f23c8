// Overlap of upright boxes that are turned about z. All arithmetic is float64 and relative to the first box, so nothing
// is lost far from the origin, and boxes that coincide overlap by exactly their area.
#pragma once

#include "common.h"

#include <cmath>

namespace pcdet {

struct Footprint {
    double x, y, half_x, half_y, cos, sin, area, radius, z_low, z_high;
    bool valid;  // finite, and of positive size
};

// A box is (x, y, z, dx, dy, dz, heading), z at the centre.
template <typename T>
PCDET_HD Footprint footprint(const T* box) {
    Footprint f;
    f.x = box[0];
    f.y = box[1];
    f.half_x = 0.5 * box[3];
    f.half_y = 0.5 * box[4];
    f.cos = cos(static_cast<double>(box[6]));
    f.sin = sin(static_cast<double>(box[6]));
    f.area = static_cast<double>(box[3]) * box[4];
    f.radius = sqrt(f.half_x * f.half_x + f.half_y * f.half_y);
    f.z_low = box[2] - 0.5 * box[5];
    f.z_high = box[2] + 0.5 * box[5];
    double total = 0;
    for (int i = 0; i < 7; ++i) total += fabs(static_cast<double>(box[i]));
    f.valid = total < 1e300 && box[3] > 0 && box[4] > 0;  // false for NaN and infinity
    return f;
}

struct Polygon {
    double x[8], y[8];
    int size;
};

// Keep the part of a convex polygon where sign * coordinate <= limit (Sutherland and Hodgman, CACM 17, 1974).
PCDET_HD void clip(Polygon& p, bool along_y, double sign, double limit) {
    Polygon kept;
    kept.size = 0;
    for (int i = 0; i < p.size; ++i) {
        const int next = i + 1 == p.size ? 0 : i + 1;
        const double here = limit - sign * (along_y ? p.y[i] : p.x[i]);
        const double there = limit - sign * (along_y ? p.y[next] : p.x[next]);
        if (here >= 0 && kept.size < 8) {
            kept.x[kept.size] = p.x[i];
            kept.y[kept.size++] = p.y[i];
        }
        if ((here >= 0) != (there >= 0) && kept.size < 8) {
            const double share = here / (here - there);
            kept.x[kept.size] = p.x[i] + (p.x[next] - p.x[i]) * share;
            kept.y[kept.size++] = p.y[i] + (p.y[next] - p.y[i]) * share;
        }
    }
    p = kept;
}

// Area shared by two footprints: b's rectangle in a's frame, clipped at a's four sides.
PCDET_HD double shared_area(const Footprint& a, const Footprint& b) {
    if (!a.valid || !b.valid) return 0;
    const double dx = b.x - a.x, dy = b.y - a.y, reach = a.radius + b.radius;
    if (dx * dx + dy * dy >= reach * reach) return 0;
    const double x = dx * a.cos + dy * a.sin, y = dy * a.cos - dx * a.sin;
    const double c = b.cos * a.cos + b.sin * a.sin, s = b.sin * a.cos - b.cos * a.sin;
    const double ux = c * b.half_x, uy = s * b.half_x, vx = -s * b.half_y, vy = c * b.half_y;
    Polygon p;
    p.size = 4;
    p.x[0] = x + ux + vx, p.y[0] = y + uy + vy;
    p.x[1] = x - ux + vx, p.y[1] = y - uy + vy;
    p.x[2] = x - ux - vx, p.y[2] = y - uy - vy;
    p.x[3] = x + ux - vx, p.y[3] = y + uy - vy;
    clip(p, false, 1, a.half_x);
    clip(p, false, -1, a.half_x);
    clip(p, true, 1, a.half_y);
    clip(p, true, -1, a.half_y);
    double twice = 0;
    for (int i = 0; i < p.size; ++i) {
        const int next = i + 1 == p.size ? 0 : i + 1;
        twice += p.x[i] * p.y[next] - p.x[next] * p.y[i];
    }
    const double area = 0.5 * fabs(twice);
    // Boxes that only touch share no area: what is left there is rounding.
    return area > 1e-10 * (a.area < b.area ? a.area : b.area) ? area : 0;
}

PCDET_HD double iou_bev(const Footprint& a, const Footprint& b) {
    const double shared = shared_area(a, b);
    return shared > 0 ? fmin(shared / (a.area + b.area - shared), 1.0) : 0;
}

PCDET_HD double iou_3d(const Footprint& a, const Footprint& b) {
    const double height = fmin(a.z_high, b.z_high) - fmax(a.z_low, b.z_low);
    const double height_a = a.z_high - a.z_low, height_b = b.z_high - b.z_low;
    if (!(height > 0) || !(height_a > 0) || !(height_b > 0)) return 0;
    const double shared = shared_area(a, b) * height;
    return shared > 0 ? fmin(shared / (a.area * height_a + b.area * height_b - shared), 1.0) : 0;
}

// Heading left out: the rectangles (x, y, dx, dy).
PCDET_HD double iou_axis_aligned(const Footprint& a, const Footprint& b) {
    if (!a.valid || !b.valid) return 0;
    const double w = fmin(a.x + a.half_x, b.x + b.half_x) - fmax(a.x - a.half_x, b.x - b.half_x);
    const double h = fmin(a.y + a.half_y, b.y + b.half_y) - fmax(a.y - a.half_y, b.y - b.half_y);
    if (w <= 0 || h <= 0) return 0;
    return w * h / (a.area + b.area - w * h);
}

}  // namespace pcdet
