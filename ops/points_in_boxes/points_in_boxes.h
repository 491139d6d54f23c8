// Whether a point lies in an upright box that is turned about z.
#pragma once

#include "common.h"

#include <cmath>

namespace pcdet {

template <typename T>
struct BoxFrame {
    T x, y, z, half_x, half_y, half_z, cos, sin;
};

// The margin widens the box along and across its heading, not in height. A box with a number that is not finite, with a
// negative size, holds nothing, whatever the margin: its half sizes are NaN.
template <typename T>
PCDET_HD BoxFrame<T> box_frame(const T* box, T margin) {
    const double heading = static_cast<double>(box[6]);
    const double extent = fabs(static_cast<double>(box[0])) + fabs(static_cast<double>(box[1])) +
                          fabs(static_cast<double>(box[2])) + static_cast<double>(box[3]) + static_cast<double>(box[4]) +
                          static_cast<double>(box[5]);
    const bool usable = extent < 1e100 && fabs(heading) < 1e300 && box[3] >= 0 && box[4] >= 0 && box[5] >= 0;
    const T half = static_cast<T>(usable ? 0.5 : NAN);
    return {box[0], box[1], box[2], box[3] * half + margin, box[4] * half + margin, box[5] * half,
            static_cast<T>(::cos(heading)), static_cast<T>(::sin(heading))};
}

template <typename T>
PCDET_HD bool holds(const BoxFrame<T>& f, T px, T py, T pz) {
    const T dx = px - f.x, dy = py - f.y, dz = pz - f.z;
    const T along = dx * f.cos + dy * f.sin, across = dy * f.cos - dx * f.sin;
    return (dz <= f.half_z) & (-dz <= f.half_z) & (along < f.half_x) & (-along < f.half_x) & (across < f.half_y) &
           (-across < f.half_y);
}

}  // namespace pcdet
