"""Waymo's `Objects` messages: predictions for its server, and ground truth, as its own tools write them (.bin).

The messages are described here (metrics.proto and label.proto of the Waymo Open Dataset, those fields that detection
needs); the package `protobuf` reads and writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.evaluation.waymo_boxes import Boxes, check_boxes, check_truth, joined
from pcdet_ext.evaluation.waymo_objects import TYPES
from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.structures import Array

AT_ONCE = 20_000  # objects of which messages are in memory
PACKAGE = "waymo.open_dataset"
BOX_FIELDS = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
# Fields of each message: (name, number, type). Types are those of protobuf, or messages of this table.
MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Box": (
        ("center_x", 1, "double"),
        ("center_y", 2, "double"),
        ("center_z", 3, "double"),
        ("width", 4, "double"),
        ("length", 5, "double"),
        ("height", 6, "double"),
        ("heading", 7, "double"),
    ),
    "Metadata": (("speed_x", 1, "double"), ("speed_y", 2, "double")),
    "Label": (
        ("box", 1, "Box"),
        ("metadata", 2, "Metadata"),
        ("type", 3, "int32"),  # an enumeration, which is written alike
        ("id", 4, "string"),
        ("detection_difficulty_level", 5, "int32"),
        ("num_lidar_points_in_box", 7, "int32"),
    ),
    "Object": (
        ("object", 1, "Label"),
        ("score", 2, "float"),
        ("overlap_with_nlz", 3, "bool"),
        ("context_name", 4, "string"),
        ("frame_timestamp_micros", 5, "int64"),
    ),
    "Objects": (("objects", 1, "repeated Object"),),
}
_OBJECTS_TAG = 0x0A  # field 1 of Objects, with its length


def read_objects(path: str | Path, scores: bool) -> Boxes:
    """The objects of a file. Raises DataError naming it where it is damaged, ImportError without protobuf.

    scores: whether the objects must have one, as predictions do. A message without any object is an empty file; as
    ground truth it is refused.
    """
    path = Path(path)
    _message_class("Objects")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    if not data and not scores:
        raise DataError(f"{path}: an empty file, without any object")
    parts = [_boxes(path, message, scores) for message in _messages(path, data)]
    found = joined(parts) if parts else Boxes.of([], np.zeros(0, np.int64), np.zeros((0, 7)))
    check_boxes(found, path)
    if not scores:
        check_truth(found, path)
    return found


def write_objects(path: str | Path, found: Boxes) -> None:
    """Write predictions as an `Objects` message. Raises ImportError without the package protobuf."""
    kind = _message_class("Objects")
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for start in range(0, len(found), AT_ONCE):
            message = kind()
            for row in range(start, min(start + AT_ONCE, len(found))):
                _fill(message.objects.add(), found, row)
            file.write(message.SerializeToString())  # messages one after the other are one message


def has_protobuf() -> bool:
    """Whether the package protobuf is there."""
    try:
        _message_class("Objects")
    except ImportError:
        return False
    return True


def _fill(message: Any, found: Boxes, row: int) -> None:
    message.context_name, message.frame_timestamp_micros = found.frames[row]
    message.score = float(found.score[row])
    label = message.object
    label.type = int(found.type[row])
    label.id = found.object_ids[row] or str(row)
    for name, value in zip(BOX_FIELDS, found.boxes[row].tolist(), strict=True):
        setattr(label.box, name, value)
    label.metadata.speed_x, label.metadata.speed_y = found.speed[row].tolist()


def _messages(path: Path, data: bytes) -> Iterator[Any]:
    """The objects in messages of a few thousand: one message of all would take many times the size of the file."""
    from google.protobuf.message import DecodeError

    kind = _message_class("Objects")
    view = memoryview(data)
    for start, end in _pieces(path, view):
        message = kind()
        try:
            message.ParseFromString(bytes(view[start:end]))
        except (DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: no Objects message, or damaged ({error})") from error
        yield message


def _pieces(path: Path, data: memoryview) -> Iterator[tuple[int, int]]:
    """Start and end of runs of objects in the serialised message."""
    start = position = count = 0
    while position < len(data):
        tag = data[position]
        if tag & 7 != 2:  # all fields of Objects are messages, written with their length
            raise DataError(f"{path}: no Objects message, or damaged (at byte {position})")
        length, body = _varint(path, data, position + 1)
        if body + length > len(data):
            raise DataError(f"{path}: cut short, the object at byte {position} ends after the file")
        position, count = body + length, count + (tag == _OBJECTS_TAG)
        if count == AT_ONCE:
            yield start, position
            start, count = position, 0
    if start < position:
        yield start, position


def _varint(path: Path, data: memoryview, position: int) -> tuple[int, int]:
    """A length in groups of 7 bits, and where what it is about begins."""
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
    raise DataError(f"{path}: no Objects message, or damaged (at byte {position})")


def _boxes(path: Path, message: Any, scores: bool) -> Boxes:
    objects = message.objects
    for i, item in enumerate(objects):
        if not item.object.HasField("box") or not item.context_name:
            raise DataError(f"{path}: object {i} of segment {item.context_name!r} lacks its box or the segment's name")
        if scores and not item.HasField("score"):
            raise DataError(f"{path}: object {i} of segment {item.context_name!r} has no score")
    labels = [item.object for item in objects]
    types = _column(labels, "type", np.int64)
    if len(types) and not np.isin(types, np.arange(len(TYPES))).all():
        raise DataError(f"{path}: types must be from 0 to {len(TYPES) - 1}, got {sorted(set(types.tolist()))}")
    boxes = np.array([[getattr(label.box, name) for name in BOX_FIELDS] for label in labels], np.float64).reshape(-1, 7)
    counts = [x.num_lidar_points_in_box if x.HasField("num_lidar_points_in_box") else -1 for x in labels]
    return Boxes.of(
        [(item.context_name, item.frame_timestamp_micros) for item in objects],
        types,
        boxes,
        score=np.array([item.score if item.HasField("score") else 1.0 for item in objects], np.float32),
        zone=_column(objects, "overlap_with_nlz", bool),
        difficulty=_column(labels, "detection_difficulty_level", np.int64),
        num_points=np.array(counts, np.int64),
        speed=np.array([[x.metadata.speed_x, x.metadata.speed_y] for x in labels], np.float64).reshape(-1, 2),
        object_ids=[label.id for label in labels],
    )


def _column(messages: Sequence[Any], name: str, dtype: type) -> Array:
    return np.array([getattr(message, name) for message in messages], dtype)


@lru_cache
def _message_class(name: str) -> Any:
    """The class of a message, made from `MESSAGES`."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise ImportError("Objects messages (.bin) need the package protobuf: pip install protobuf") from error
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="pcdet_ext/waymo_objects.proto", package=PACKAGE, syntax="proto2")
    for message, entries in MESSAGES.items():
        described = file.message_type.add(name=message)
        for entry, number, kind in entries:
            word = kind.rpartition(" ")[2]
            field = described.field.add(name=entry, number=number, label=kinds.LABEL_OPTIONAL)
            if kind.startswith("repeated"):
                field.label = kinds.LABEL_REPEATED
            if word in MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{word}"
            else:
                field.type = getattr(kinds, f"TYPE_{word.upper()}")
    pool = descriptor_pool.DescriptorPool()  # its own: nobody else's messages of these names are in the way
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
