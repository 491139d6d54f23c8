"""Which frames show the same place, by the distance between the positions at which they were taken."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from pcdet_ext.structures import Array


def pairs_within(xy: Array, radius: float) -> Array:
    """int64 [K, 2]: pairs of rows i < j of positions [N, 2] that are at most `radius` metres apart."""
    return np.asarray(cKDTree(xy).query_pairs(radius, output_type="ndarray"), np.int64).reshape(-1, 2)


def neighbours(xy: Array, radius: float) -> list[Array]:
    """For each of N positions [N, 2]: int64 [K], the other rows at most `radius` metres away, ascending."""
    pairs = pairs_within(xy, radius)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    return np.split(both[:, 1], np.searchsorted(both[:, 0], np.arange(1, len(xy))))


def order_in_pairs(partners: list[Array], rng: np.random.Generator) -> Array:
    """An order of an epoch in which each two neighbours are a frame and one that shows the same place, int64 [2 K].

    Frames come in random order; the partner of each is drawn from those that were not used yet, or when all were, from
    all of its partners. So a frame occurs once or, as a partner, more often; one without partners is left out
    (Komorowski, "Improving Point Cloud Based Place Recognition with Ranking-based Loss and Large Batch Training",
    ICPR 2022). Batches of an even size then hold whole pairs. Raises ValueError where no frame has a partner.
    """
    unused = np.ones(len(partners), bool)
    pairs: list[tuple[int, int]] = []
    for frame in rng.permutation(len(partners)).tolist():
        if not unused[frame] or not len(partners[frame]):
            continue
        unused[frame] = False
        free = partners[frame][unused[partners[frame]]]
        partner = int(rng.choice(free if len(free) else partners[frame]))
        unused[partner] = False
        pairs.append((frame, partner))
    if not pairs:
        raise ValueError("no frame shows the place of another one: is the positive radius too small?")
    return rng.permutation(np.array(pairs, np.int64)).reshape(-1)
