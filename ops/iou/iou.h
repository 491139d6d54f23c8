// Overlap of upright boxes that are turned about z. All arithmetic is float64 and relative to the first box, so nothing
// is lost far from the origin, and boxes that coincide overlap by exactly their area.
#pragma once

#include "common.h"

#include <cmath>

namespace pcdet {

struct Footprint {
    double x, y, half_x, half_y, cos, sin, area, radius, z_low, z_high;
    bool flat;    // place and size in the plane are finite, the size is positive, the height is not negative
    bool turned;  // and the heading is finite too
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
    // False for NaN and infinity; products of sizes stay finite.
    f.flat = fabs(f.x) + fabs(f.y) + f.half_x + f.half_y < 1e100 && f.half_x > 0 && f.half_y > 0 && !(box[5] < 0);
    f.turned = f.flat && fabs(static_cast<double>(box[6])) < 1e300;
    return f;
}

PCDET_HD double clamped(double value, double limit) {
    const double low = value < -limit ? -limit : value;
    return low > limit ? limit : low;
}

// What an edge from (x0, y0) to (x1, y1) adds to the integral of clamp(y) - level over clamp(x), limits half_x and half_y.
// slope: dy / dx of the edge, anything where dx is 0.
PCDET_HD double clamped_integral(double x0, double y0, double x1, double y1, double slope, double half_x, double half_y,
                                 double level) {
    const double from = clamped(x0, half_x), to = clamped(x1, half_x);
    const double start = y0 + (from - x0) * slope, end = y1 + (to - x1) * slope;
    const double c0 = clamped(start, half_y), c1 = clamped(end, half_y);
    // The edge runs outside at c0, between c0 and c1, and outside at c1: three shares of one sign, so nothing cancels.
    const bool flat = c0 == c1;
    const double sum = (c0 - start) * (c0 - level) + (c1 - c0) * (0.5 * (c0 + c1) - level) + (end - c1) * (c1 - level);
    return (to - from) * ((flat ? c0 - level : sum) / (flat ? 1 : end - start));
}

// Area shared by the rectangle |x| < half_x, |y| < half_y and one with its centre at (x, y), turned by (c, s) = (cos, sin)
// and of half sizes bx, by: Green's theorem on the second one's edges. The shared height above x is clamp(upper edge)
// - clamp(lower edge), so the area is the integral of clamp(y) over clamp(x) around it. Without branches: it runs on vectors.
PCDET_HD double clipped_area(double half_x, double half_y, double x, double y, double c, double s, double bx, double by) {
    const double ux = c * bx, uy = s * bx, vx = -s * by, vy = c * by;
    const double along = s / (c != 0 ? c : 1), across = -c / (s != 0 ? s : 1);
    const double x0 = x + ux + vx, y0 = y + uy + vy, x1 = x - ux + vx, y1 = y - uy + vy;
    const double x2 = x - ux - vx, y2 = y - uy - vy, x3 = x + ux - vx, y3 = y + uy - vy;
    const double level = clamped(y, half_y);  // any level gives the same area; one near b keeps rounding small
    const double total = clamped_integral(x0, y0, x1, y1, along, half_x, half_y, level) +
                         clamped_integral(x1, y1, x2, y2, across, half_x, half_y, level) +
                         clamped_integral(x2, y2, x3, y3, along, half_x, half_y, level) +
                         clamped_integral(x3, y3, x0, y0, across, half_x, half_y, level);
    return -total;
}

// Area shared by two footprints with finite fields: the second, given by them, seen from the first.
PCDET_HD double shared_area(const Footprint& a, double x, double y, double half_x, double half_y, double cos, double sin,
                            double area) {
    const double dx = x - a.x, dy = y - a.y;
    const double c = cos * a.cos + sin * a.sin, s = sin * a.cos - cos * a.sin;
    const double shared = clipped_area(a.half_x, a.half_y, dx * a.cos + dy * a.sin, dy * a.cos - dx * a.sin, c, s, half_x,
                                       half_y);
    const double most = a.area < area ? a.area : area;
    const double bounded = shared < most ? shared : most;
    // Boxes that only touch share no area: what is left there is rounding.
    return shared > 1e-10 * most ? bounded : 0;
}

PCDET_HD double shared_area(const Footprint& a, const Footprint& b) {
    if (!a.turned || !b.turned) return 0;
    const double dx = b.x - a.x, dy = b.y - a.y, reach = a.radius + b.radius;
    if (dx * dx + dy * dy >= reach * reach) return 0;
    return shared_area(a, b.x, b.y, b.half_x, b.half_y, b.cos, b.sin, b.area);
}

// Intersection over union of footprints that share an area.
PCDET_HD double iou_bev_of(double shared, const Footprint& a, const Footprint& b) {
    return shared > 0 ? shared / (a.area + b.area - shared) : 0;
}

// Intersection over union of the volumes of boxes whose footprints share an area.
PCDET_HD double iou_3d_of(double shared, const Footprint& a, const Footprint& b) {
    const double height = fmin(a.z_high, b.z_high) - fmax(a.z_low, b.z_low);
    const double height_a = a.z_high - a.z_low, height_b = b.z_high - b.z_low;
    if (!(height > 0 && height_a > 0 && height_b > 0) || !(height_a + height_b < 1e100)) return 0;
    const double volume = shared * height;
    return volume > 0 ? fmin(volume / (a.area * height_a + b.area * height_b - volume), 1.0) : 0;
}

constexpr int kBev = 0, kVolume = 1, kArea = 2;

// The overlap of one of these kinds of footprints that share an area.
PCDET_HD double overlap_of(double shared, const Footprint& a, const Footprint& b, int kind) {
    return kind == kArea ? shared : kind == kVolume ? iou_3d_of(shared, a, b) : iou_bev_of(shared, a, b);
}

PCDET_HD double overlap(const Footprint& a, const Footprint& b, int kind) {
    return overlap_of(shared_area(a, b), a, b, kind);
}

// Heading left out: the rectangles (x, y, dx, dy).
PCDET_HD double iou_axis_aligned(const Footprint& a, const Footprint& b) {
    if (!a.flat || !b.flat) return 0;
    const double w = fmin(a.x + a.half_x, b.x + b.half_x) - fmax(a.x - a.half_x, b.x - b.half_x);
    const double h = fmin(a.y + a.half_y, b.y + b.half_y) - fmax(a.y - a.half_y, b.y - b.half_y);
    if (w <= 0 || h <= 0) return 0;
    return w * h / (a.area + b.area - w * h);
}

}  // namespace pcdet
