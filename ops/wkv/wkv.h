// The recurrence of RWKV-6 (Peng et al., "Eagle and Finch", 2024): per head, with a state S [key channel][value channel],
//     y_t = r_t^T (S + diag(u) k_t v_t^T),    S <- diag(e_t) S + k_t v_t^T,    e_t = exp(-exp(w_t)).
// The arithmetic of one entry of the state in a step, and of its adjoint.
#pragma once

#include "vector_math.h"

namespace pcdet {

constexpr int kWkvChunk = 32;  // steps between the states that the forward pass leaves for the backward pass

template <typename T>
PCDET_HD T wkv_decay(T w) {
    return exp_of(-exp_of(w));
}

// Take the entry's part of the output, then its decay and the new token. Value: a number, or a vector of value channels.
template <typename Value, typename T>
PCDET_HD void wkv_step(Value& state, Value& y, T r, T k, Value v, T decay) {
    y += r * state;
    state = decay * state + k * v;
}

// `grad` is the gradient of the state after the step, `state` the one before it; on return `grad` is that of the one
// before. Adds to the gradients of r, k and the decay (key channel), and of v (value channel).
template <typename T>
PCDET_HD void wkv_adjoint(T& grad, T state, T r, T k, T v, T decay, T dy, T& dr, T& dk, T& dv, T& ddecay) {
    dr += dy * state;
    dk += grad * v;
    dv += grad * k;
    ddecay += grad * state;
    grad = decay * grad + r * dy;
}

// Gradient of w from that of e = exp(-exp(w)).
template <typename T>
PCDET_HD T wkv_decay_slope(T w, T decay) {
    return -exp_of(w) * decay;
}

}  // namespace pcdet
