"""What surfaces send back: how bright they are, which echoes are lost, and what a sensor reports as intensity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdet_ext.data.simulation.raycast import Hits
from pcdet_ext.data.simulation.shapes import Material
from pcdet_ext.structures import Array

# Share of light that a surface sends back (mean) and its spread from one object to the next.
REFLECTIVITY = {
    Material.ASPHALT: (0.26, 0.03),
    Material.GRASS: (0.34, 0.05),
    Material.PAVEMENT: (0.33, 0.04),
    Material.PAINT: (0.35, 0.22),
    Material.GLASS: (0.08, 0.04),
    Material.RUBBER: (0.08, 0.03),
    Material.PLATE: (0.97, 0.02),
    Material.FOLIAGE: (0.34, 0.07),
    Material.BARK: (0.26, 0.05),
    Material.WALL: (0.33, 0.10),
    Material.METAL: (0.38, 0.15),
    Material.CLOTH: (0.30, 0.15),
    Material.SKIN: (0.45, 0.05),
    Material.FENCE: (0.38, 0.15),
    Material.MASONRY: (0.33, 0.10),
    Material.BIN: (0.38, 0.15),
}
# What a Velodyne HDL-64E reports of a surface: the median, and the deviation of its logarithm from point to point.
# Polished paint sends most light elsewhere, so that most points on cars have the intensity 0.
REPORTED = {
    Material.ASPHALT: (0.31, 0.22),
    Material.GRASS: (0.36, 0.25),
    Material.PAVEMENT: (0.34, 0.22),
    Material.PAINT: (0.085, 1.15),
    Material.GLASS: (0.02, 1.0),
    Material.RUBBER: (0.09, 0.8),
    Material.PLATE: (0.85, 0.5),
    Material.FOLIAGE: (0.31, 0.45),
    Material.BARK: (0.26, 0.4),
    Material.WALL: (0.36, 0.30),
    Material.METAL: (0.22, 0.8),
    Material.CLOTH: (0.25, 0.6),
    Material.SKIN: (0.30, 0.4),
    Material.FENCE: (0.22, 0.6),
    Material.MASONRY: (0.34, 0.30),
    Material.BIN: (0.22, 0.6),
}
THROUGH_GLASS = 0.5  # share of the beams on windows that do not come back


def intensities(found: Hits, paint: Array, rng: np.random.Generator) -> Array:
    """Intensity of what beams meet, by material and angle.

    Args:
        found: what they meet.
        paint: [B + 1], how bright the world and each body is.
        rng: what draws noise.

    Returns:
        [N] in [0, 0.99].
    """
    mean, spread = np.array([REFLECTIVITY[m] for m in Material])[found.material].T
    own = np.where(found.owner >= 0, paint[found.owner + 1], rng.normal(0, 0.5, len(found.owner)))
    base = mean + spread * own
    angled = base * (0.55 + 0.45 * found.cosine) + rng.normal(0, 0.03, len(base))
    return np.clip(np.round(angled, 2), 0.0, 0.99)


def returned(intensity: Array, found: Hits, dropout: float, rng: np.random.Generator) -> Array:
    """Which beams come back: some are lost at random, and some where the echo is weak (dark, grazing, far).

    Args:
        intensity: [N], of what the beams meet.
        found: what they meet.
        dropout: share that is lost at random.
        rng: what draws.

    Returns:
        bool [N].
    """
    echo = (0.05 + intensity) * (0.12 + found.cosine) / (1 + (found.distance / 38) ** 2)
    seen = 1 / (1 + np.exp(-(echo - 0.018) / 0.005))
    return rng.random(len(echo)) < seen * (1 - dropout)


@dataclass(frozen=True)
class LaserResponse:
    """How the lasers of a sensor report what they see. Every one is calibrated for itself, and none perfectly.

    gain: [H], factor of each laser; threshold: [H], what a laser reports as 0 although some light came back.
    """

    gain: Array
    threshold: Array

    @staticmethod
    def random(rng: np.random.Generator, lasers: int) -> LaserResponse:
        """Lasers with the spread of those of a Velodyne HDL-64E: of a few the intensity is 0 half of the time."""
        gain = np.exp(rng.normal(0, 0.18, lasers))
        threshold = rng.uniform(0.03, 0.11, lasers) + np.where(rng.random(lasers) < 0.08, 0.12, 0.0)
        return LaserResponse(gain, threshold)

    def report(self, found: Hits, row: Array, paint: Array, rng: np.random.Generator) -> Array:
        """The intensities of points.

        Args:
            found: what N beams meet.
            row: int [N], the laser of each.
            paint: [B + 1], how bright the world and each body is, in deviations.
            rng: what draws noise.

        Returns:
            [N] in [0, 0.99], in steps of 0.01.
        """
        median, spread = np.array([REPORTED[m] for m in Material])[found.material].T
        body = found.material == Material.PAINT
        own = np.where(body, 0.6, 0.2) * paint[np.where(found.owner >= 0, found.owner + 1, 0)]
        angled = np.where(body, 0.5 + 0.8 * found.cosine**2, 0.8 + 0.2 * found.cosine)
        light = median * np.exp(own + spread * rng.normal(0, 1, len(median))) * angled * self.gain[row]
        lost = light < self.threshold[row]
        lost |= rng.random(len(light)) < np.where(found.material == Material.FOLIAGE, 0.22, 0.05)
        return np.where(lost, 0.0, np.clip(np.round(light, 2), 0.0, 0.99))
