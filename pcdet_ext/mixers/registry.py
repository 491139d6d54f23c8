"""The registry of mixers, apart from them so that each can register itself."""

from pcdet_ext.config import Registry

MIXERS = Registry("mixer")
