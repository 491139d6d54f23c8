"""Finding places again: an index of descriptors, and scan context, the classical descriptor to compare with."""

from pcdet_ext.places.index import Matches, PlaceIndex

__all__ = ["Matches", "PlaceIndex"]
