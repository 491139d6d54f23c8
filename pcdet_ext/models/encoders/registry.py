"""The registry of encoders, apart from them so that each can register itself."""

from pcdet_ext.config import Registry

ENCODERS = Registry("encoder")
