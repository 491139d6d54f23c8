"""ONNX functions, in ONNX's textual form, for what repeats a step: suppression and scans along sequences."""

from __future__ import annotations

# Which boxes stay, bool [K], where box first[q] removes second[q] if it stays. Repeats "a box stays unless one that
# stays removes it" from all boxes staying until nothing changes: after k steps the marks of the first k boxes are
# right, mostly after a few steps those of all.
KEEP_GREEDILY = """
keep_greedily (first, second, scores) => (alive) {
    shape = Shape (scores)
    all = ConstantOfShape <value: tensor = int32[1] {1}> (shape)
    none = ConstantOfShape <value: tensor = int32[1] {0}> (shape)
    one = Constant <value: tensor = int32 {1}> ()
    zero = Constant <value: tensor = int32 {0}> ()
    axis = Constant <value: tensor = int64[1] {1}> ()
    column = Unsqueeze (second, axis)
    yes = Constant <value: tensor = bool {1}> ()
    size = Size (scores)
    more = Constant <value: tensor = int64 {1}> ()
    limit = Add (size, more)
    marks = Loop (limit, yes, all) <body = step (int64 number, bool on, int32[?] now) => (bool again, int32[?] then) {
        staying = Gather <axis: int = 0> (now, first)
        removed = ScatterND <reduction: string = "max"> (none, column, staying)
        then = Sub (one, removed)
        same = Equal (now, then)
        different = Not (same)
        counted = Cast <to: int = 6> (different)
        changes = ReduceSum <keepdims: int = 0> (counted)
        again = Greater (changes, zero)
    }>
    alive = Cast <to: int = 9> (marks)
}
"""

# Rows of boxes [K, 7], best first, that stay; at most `most` [1] of them. Round by round the best boxes that still wait
# are compared with each other; those of them that stay remove what they overlap from the others that wait. So a box is
# compared with those that stay, not with all, and what would come after `most` boxes is not looked at.
SUPPRESS = """
suppress_KIND (boxes, threshold, most) => (rows) {
    block = Constant <value: tensor = int64[1] {32}> ()
    zero = Constant <value: tensor = int64[1] {0}> ()
    end = Constant <value: tensor = int64[1] {9223372036854775807}> ()
    start = Constant <value: tensor = int64 {0}> ()
    step = Constant <value: tensor = int64 {1}> ()
    column = Constant <value: tensor = int64[1] {1}> ()
    shape = Shape <start: int = 0, end: int = 1> (boxes)
    number = Squeeze (shape)
    places = Range (start, number, step)
    none = Slice (places, zero, zero)
    any = Greater (number, start)
    left, found = Loop (number, any, places, none) <body = round
        (int64 count, bool on, int64[?] waiting, int64[?] kept) => (bool again, int64[?] rest, int64[?] then) {
            best = Slice (waiting, zero, block)
            others = Slice (waiting, block, end)
            best_boxes = Gather <axis: int = 0> (boxes, best)
            better, worse = pcdet_ext.functions.overlapping_KIND (best_boxes, best, best_boxes, best, threshold)
            alive = pcdet_ext.functions.keep_greedily (better, worse, best)
            stay = Compress <axis: int = 0> (best, alive)
            stay_boxes = Gather <axis: int = 0> (boxes, stay)
            other_boxes = Gather <axis: int = 0> (boxes, others)
            by, removed = pcdet_ext.functions.overlapping_KIND (stay_boxes, stay, other_boxes, others, threshold)
            size = Shape (others)
            all = ConstantOfShape <value: tensor = bool[1] {1}> (size)
            removed_column = Unsqueeze (removed, column)
            length = Shape (removed)
            no = ConstantOfShape <value: tensor = bool[1] {0}> (length)
            remain = ScatterND (all, removed_column, no)
            rest = Compress <axis: int = 0> (others, remain)
            then = Concat <axis: int = 0> (kept, stay)
            waits = Size (rest)
            some = Greater (waits, start)
            length_then = Shape (then)
            few = Less (length_then, most)
            fewer = Squeeze (few)
            again = And (some, fewer)
        }
    >
    rows = Slice (found, zero, most)
}
"""

# h ← exp(Δ A) h + Δ u B, y = C·h; u, delta: [G, E, L]; A: [E, N]; B, C: [G, N, L]; y: [G, E, L].
SELECTIVE_SCAN = """
NAME (u, delta, A, B, C) => (y) {
    outer = Shape <start: int = 0, end: int = 2> (u)
    width = Shape <start: int = 1, end: int = 2> (A)
    size = Concat <axis: int = 0> (outer, width)
    state = ConstantOfShape <value: tensor = float[1] {0}> (size)
    behind = Constant <value: tensor = int64[1] {3}> ()
    before = Constant <value: tensor = int64[1] {2}> ()
    delta_first = Transpose <perm: ints = [2, 0, 1]> (delta)
    steps = Unsqueeze (delta_first, behind)
    taken = Mul (delta, u)
    taken_first = Transpose <perm: ints = [2, 0, 1]> (taken)
    inputs = Unsqueeze (taken_first, behind)
    B_first = Transpose <perm: ints = [2, 0, 1]> (B)
    writes = Unsqueeze (B_first, before)
    C_first = Transpose <perm: ints = [2, 0, 1]> (C)
    reads = Unsqueeze (C_first, behind)
    last, seen = Scan <
        num_scan_inputs: int = 4, scan_input_directions: ints = [WAY, WAY, WAY, WAY],
        scan_output_directions: ints = [WAY],
        body = step (float[?, ?, ?] h, float[?, ?, 1] d, float[?, ?, 1] x, float[?, 1, ?] b, float[?, ?, 1] c)
            => (float[?, ?, ?] then, float[?, ?, 1] out) {
            rate = Mul (d, A)
            share = Exp (rate)
            kept = Mul (share, h)
            new = Mul (x, b)
            then = Add (kept, new)
            out = MatMul (then, c)
        }
    > (state, steps, inputs, writes, reads)
    flat = Squeeze (seen, behind)
    y = Transpose <perm: ints = [1, 2, 0]> (flat)
}
"""

# y = rᵀ (S + diag(u) k vᵀ), S ← diag(decay) S + k vᵀ; r, k, v, decay, y: [G, L, H, D]; u: [H, D].
WKV = """
NAME (r, k, v, decay, u) => (y) {
    outer = Shape <start: int = 0, end: int = 1> (r)
    inner = Shape <start: int = 2, end: int = 4> (r)
    width = Shape <start: int = 3, end: int = 4> (r)
    size = Concat <axis: int = 0> (outer, inner, width)
    state = ConstantOfShape <value: tensor = float[1] {0}> (size)
    column = Constant <value: tensor = int64[1] {4}> ()
    row = Constant <value: tensor = int64[1] {3}> ()
    two = Constant <value: tensor = int64[1] {2}> ()
    r_first = Transpose <perm: ints = [1, 0, 2, 3]> (r)
    reads = Unsqueeze (r_first, row)
    k_first = Transpose <perm: ints = [1, 0, 2, 3]> (k)
    keys = Unsqueeze (k_first, column)
    v_first = Transpose <perm: ints = [1, 0, 2, 3]> (v)
    values = Unsqueeze (v_first, row)
    decay_first = Transpose <perm: ints = [1, 0, 2, 3]> (decay)
    shares = Unsqueeze (decay_first, column)
    bonus = Unsqueeze (u, two)
    last, seen = Scan <
        num_scan_inputs: int = 4, scan_input_directions: ints = [WAY, WAY, WAY, WAY],
        scan_output_directions: ints = [WAY],
        body = step (float[?, ?, ?, ?] S, float[?, ?, 1, ?] a, float[?, ?, ?, 1] b, float[?, ?, 1, ?] c,
            float[?, ?, ?, 1] e) => (float[?, ?, ?, ?] then, float[?, ?, 1, ?] out) {
            new = Mul (b, c)
            own = Mul (bonus, new)
            known = Add (S, own)
            out = MatMul (a, known)
            kept = Mul (e, S)
            then = Add (kept, new)
        }
    > (state, reads, keys, values, shares)
    flat = Squeeze (seen, row)
    y = Transpose <perm: ints = [1, 0, 2, 3]> (flat)
}
"""


# Steps of `pcdet_ext.mixers.ttt.inner_steps`; state: [G, H, D + 1, D] here; scale: [H, 1, D]; eps: [1].
TTT_STEPS = """
ttt_steps (state, queries, keys, update, learn, offset, scale, eps) => (y) {
    axis = Constant <value: tensor = int64[1] {-1}> ()
    final, y = Scan <num_scan_inputs: int = 5, body = step (float[?, ?, ?, ?] now, float[?, ?, ?, ?] query,
        float[?, ?, ?, ?] key, float[?, ?, ?, ?] reads, float[?, ?, ?, ?] learns, float[?, ?, ?, ?] target)
        => (float[?, ?, ?, ?] then, float[?, ?, ?, ?] row) {
            z = MatMul (key, now)
            z_mean = ReduceMean (z, axis)
            centred = Sub (z, z_mean)
            squared = Mul (centred, centred)
            variance = ReduceMean (squared, axis)
            safe = Add (variance, eps)
            deviation = Sqrt (safe)
            normed = Div (centred, deviation)
            scaled = Mul (scale, normed)
            outer = Add (scaled, target)
            outer_mean = ReduceMean (outer, axis)
            without_mean = Sub (outer, outer_mean)
            along = Mul (outer, normed)
            along_mean = ReduceMean (along, axis)
            part = Mul (normed, along_mean)
            inner = Sub (without_mean, part)
            gradient = Div (inner, deviation)
            before = MatMul (query, now)
            learnt = MatMul (reads, gradient)
            row = Sub (before, learnt)
            change = MatMul (learns, gradient)
            then = Sub (now, change)
        }
    > (state, queries, keys, update, learn, offset)
}
"""


def _both_ways(name: str, text: str) -> dict[str, str]:
    """A scan from the first step on, and one from the last."""
    ways = {name: "0", f"{name}_reversed": "1"}
    return {each: text.replace("NAME", each).replace("WAY", way) for each, way in ways.items()}


FUNCTIONS = {
    "keep_greedily": KEEP_GREEDILY,
    **{f"suppress_{kind}": SUPPRESS.replace("KIND", kind) for kind in ("rotated", "circle")},
    "ttt_steps": TTT_STEPS,
    **_both_ways("selective_scan", SELECTIVE_SCAN),
    **_both_ways("wkv", WKV),
}
