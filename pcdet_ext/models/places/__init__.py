"""Place recognition: networks that give each cloud a descriptor, poolings, and losses on descriptors."""

from pcdet_ext.models.places.losses import LOSSES, BatchHardTriplet, TruncatedSmoothAP
from pcdet_ext.models.places.pooling import POOLINGS, AttentionPooling, GeMPooling
from pcdet_ext.models.places.recognizer import PlaceModel, PlaceRecognizer

__all__ = [
    "LOSSES",
    "POOLINGS",
    "AttentionPooling",
    "BatchHardTriplet",
    "GeMPooling",
    "PlaceModel",
    "PlaceRecognizer",
    "TruncatedSmoothAP",
]
