"""Augmentation of training samples: each one a deterministic core that takes the drawn numbers, and a random shell."""

from __future__ import annotations

from pcdet_ext.config import Registry

AUGMENTATIONS = Registry("augmentation")
