"""Place recognition: networks that give each cloud a descriptor, and losses on descriptors."""

from pcdet_ext.models.places.losses import LOSSES, BatchHardTriplet, TruncatedSmoothAP
from pcdet_ext.models.places.octree import OctreePlaceRecognizer
from pcdet_ext.models.places.recognizer import PlaceModel, PlaceRecognizer

__all__ = [
    "LOSSES",
    "BatchHardTriplet",
    "OctreePlaceRecognizer",
    "PlaceModel",
    "PlaceRecognizer",
    "TruncatedSmoothAP",
]
