"""The registry of poolings."""

from pcdet_ext.config import Registry

POOLINGS = Registry("pooling")
