// Sequences of many channels, [batch, row, time] with any strides; and on the CPU, copies of blocks of rows with those of
// one step beside each other, as vectors want them.
#pragma once

#include <cstring>

#include "common.h"

namespace pcdet {

// Three-dimensional data [batch, row, time] with any strides; reversed in time by pointing at the last step.
template <typename T>
struct SeriesView {
    T* data;
    int64_t batch, row, time;

    PCDET_HD SeriesView at(int64_t b, int64_t r, int64_t t) const {
        return {data + b * batch + r * row + t * time, batch, row, time};
    }
    PCDET_HD T& operator()(int64_t r, int64_t t) const { return data[r * row + t * time]; }
};

template <typename T>
SeriesView<T> series_view(T* data, const int64_t* strides, int64_t length, bool reverse) {
    if (!reverse || data == nullptr) return {data, strides[0], strides[1], strides[2]};
    return {data + (length - 1) * strides[2], strides[0], strides[1], -strides[2]};
}

#if !defined(__CUDACC__)

constexpr int kLanes = 16;  // rows of a block

template <typename T>
using Lanes = T[kLanes];

// Rows that lie beside each other in memory are copied as vectors.
template <typename T>
inline __attribute__((always_inline)) void load(SeriesView<const T> from, int rows, int steps, Lanes<T>* to) {
    if (from.row == 1 && rows == kLanes) {
        for (int t = 0; t < steps; ++t) std::memcpy(to[t], from.data + t * from.time, sizeof(Lanes<T>));
        return;
    }
    for (int w = 0; w < kLanes; ++w)
        for (int t = 0; t < steps; ++t) to[t][w] = w < rows ? from(w, t) : T(0);
}

template <typename T>
inline __attribute__((always_inline)) void store(const Lanes<T>* from, int rows, int steps, SeriesView<T> to) {
    if (to.row == 1 && rows == kLanes) {
        for (int t = 0; t < steps; ++t) std::memcpy(to.data + t * to.time, from[t], sizeof(Lanes<T>));
        return;
    }
    for (int w = 0; w < rows; ++w)
        for (int t = 0; t < steps; ++t) to(w, t) = from[t][w];
}

// The rows of some steps, those of a step beside each other; where they already lie so, they are not copied.
template <typename T>
struct Steps {
    const T* data;
    int64_t stride;

    const T* operator[](int t) const { return data + t * stride; }
};

template <typename T>
inline __attribute__((always_inline)) Steps<T> steps_of(SeriesView<const T> from, int rows, int steps, Lanes<T>* room) {
    if (from.row == 1 && rows == kLanes) return {from.data, from.time};
    load(from, rows, steps, room);
    return {room[0], kLanes};
}

template <typename T>
void load_lanes(const T* from, int rows, Lanes<T>& to) {
    for (int w = 0; w < kLanes; ++w) to[w] = from != nullptr && w < rows ? from[w] : T(0);
}

#endif

}  // namespace pcdet
