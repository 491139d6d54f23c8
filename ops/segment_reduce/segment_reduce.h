// The arithmetic of segment reductions on one value.
#pragma once

#include "common.h"

namespace pcdet {

enum Reduce : int32_t { kSum = 0, kMean = 1, kMax = 2, kMin = 3 };

// Whether a later value takes the place of the best one: NaN beats every number, a tie stays with the earlier value.
template <typename T>
PCDET_HD bool beats(T value, T best, bool is_max) {
    return (is_max ? !(value <= best) : !(value >= best)) & (best == best);
}

}  // namespace pcdet
