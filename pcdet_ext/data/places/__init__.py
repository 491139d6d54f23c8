"""Place recognition: clouds of runs through the same streets, with the position where each was taken."""

from pcdet_ext.data.places.dataset import PlacesDataset
from pcdet_ext.data.places.files import Frame, read_frames, write_frames
from pcdet_ext.data.places.prepare import PlaceFrames

__all__ = ["Frame", "PlaceFrames", "PlacesDataset", "read_frames", "write_frames"]
