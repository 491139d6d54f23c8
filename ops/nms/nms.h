// Which box removes which.
#pragma once

#include "iou/iou.h"

namespace pcdet {

constexpr int kRotated = 0, kAxisAligned = 1, kCircle = 2;

// threshold: of the overlap, or for kCircle of the squared distance of centres.
PCDET_HD bool removes(const Footprint& a, const Footprint& b, int kind, double threshold) {
    if (kind == kCircle) {
        const double dx = a.x - b.x, dy = a.y - b.y;
        return dx * dx + dy * dy <= threshold;
    }
    return (kind == kAxisAligned ? iou_axis_aligned(a, b) : overlap(a, b, kBev)) > threshold;
}

}  // namespace pcdet
