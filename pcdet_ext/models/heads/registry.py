"""The registry of detection heads, apart from them so that each can register itself."""

from pcdet_ext.config import Registry

HEADS = Registry("head")
