"""The registry of complete models, apart from them so that each can register itself."""

from pcdet_ext.config import Registry

DETECTORS = Registry("detector")
