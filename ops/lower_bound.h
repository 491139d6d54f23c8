// Search in sorted arrays on CUDA.
#pragma once

#include "common.h"

namespace pcdet {

// The first place from `begin` to `end` - 1 whose value is not below `wanted`, or `end`.
PCDET_HD int64_t lower_bound(const int64_t* values, int64_t begin, int64_t end, int64_t wanted) {
    while (begin < end) {
        const int64_t middle = begin + ((end - begin) >> 1);
        if (values[middle] < wanted) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return begin;
}

}  // namespace pcdet
