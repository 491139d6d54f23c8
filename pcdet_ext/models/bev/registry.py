"""The registry of 2-D backbones on bird's-eye-view maps, apart from them so that each can register itself."""

from pcdet_ext.config import Registry

BEV_BACKBONES = Registry("BEV backbone")
