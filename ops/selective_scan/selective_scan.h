// Selective scan (Mamba, Gu & Dao, 2023): per channel, with state h of n numbers and step size delta,
//     h <- exp(delta A) h + delta u B,    y = C . h + D u,    out = y silu(z).
// The arithmetic of one step of one state, its adjoint, and of the gate; A is given times log2(e).
#pragma once

#include "series.h"
#include "vector_math.h"

namespace pcdet {

constexpr int kScanChunk = 32;  // steps between the states that the forward pass leaves for the backward pass

// T: a number, or a vector of them.
template <typename T>
PCDET_HD T scan_decay(T delta, T a_log2) {
    return exp2_of(delta * a_log2);
}

// What a step's adjoint gives: gradients of the step size, of delta * u, and of A.
template <typename T>
struct ScanAdjoint {
    T delta, input, a;
};

// g: gradient of the new state; decayed: decay * old state; a: A itself; b: B of the step.
template <typename T>
PCDET_HD ScanAdjoint<T> scan_adjoint(T g, T decayed, T delta, T a, T b) {
    const T through_decay = g * decayed;
    return {through_decay * a, g * b, through_decay * delta};
}

}  // namespace pcdet
