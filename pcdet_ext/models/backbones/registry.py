"""The registry of 3-D backbones, apart from them so that each can register itself."""

from pcdet_ext.config import Registry

BACKBONES = Registry("backbone")
