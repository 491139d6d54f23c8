"""Files that were taken for checkpoints: the error says what they are."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pcdet_ext
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.file_kinds import kind_of


def saved(content: object) -> bytes:
    """What torch writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    """A zip archive with files of some names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def tensors(count: int) -> bytes:
    """A safetensors file after its specification, with numbers in float32."""
    offsets = {f"w{i}": {"dtype": "F32", "shape": [25], "data_offsets": [100 * i, 100 * i + 100]} for i in range(count)}
    header = json.dumps({"__metadata__": {"format": "pt"}, **offsets}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(100 * count)


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.bin"))
    return buffer.getvalue()


WEIGHT = torch.zeros(1000)
KINDS = {
    "empty.ckpt": (b"", "an empty file"),
    "text.ckpt": (b"hello world\nand more", "a text \\('hello world'\\)"),
    "page.ckpt": (b"<!DOCTYPE html><html>", "a web page"),
    "lfs.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
    "a.npz": (zipped("a.npy", "b.npy"), "arrays of NumPy"),
    "a.zip": (zipped("a.txt", "b.npy"), "a zip archive of 2 files"),
    "script.pt": (zipped("m/constants.pkl", "m/data.pkl"), "a program of TorchScript"),
    "cut.pth": (saved({"w": WEIGHT})[:2000], "damaged or cut short"),
    "a.tar": (tarred(), "a tar archive"),
    "a.gz": (b"\x1f\x8b\x08\x00", "packed with gzip"),
    "a.safetensors": (tensors(3), "a safetensors file with 3 tensors, and no configuration"),
    "cut.safetensors": (tensors(3)[:-1], "a safetensors file that is cut short"),
    "shorter.safetensors": (tensors(3)[:60], "a safetensors file that is cut short"),
    "a.onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX model"),
    "demo.yaml": (b"_base_: demo.yaml\n", "a configuration, of which pcdet_ext.build"),
    "a.pkl": (pickle.dumps({"a": 1}), "a pickle that torch did not write"),
}
ORIGINS = [
    ({"model_state": {"vfe.w": WEIGHT}, "epoch": 3}, "one of OpenPCDet or a code base built on it"),
    ({"meta": {}, "state_dict": {"pts_bbox_head.w": WEIGHT}}, "one of mmdetection3d or another code base"),
    ({"state_dict": {}, "pytorch-lightning_version": "2.0"}, "one of Lightning"),
    ({"backbone.w": WEIGHT, "head.w": WEIGHT}, "2 parameters by name, without the configuration"),
    ([1, 2], "a list"),
    ({"a": 1}, "a mapping with 'a'"),
    ({}, "a mapping with nothing in it"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", KINDS)
def test_what_a_file_is_instead_of_a_checkpoint_is_said(tmp_path: Path, name: str) -> None:
    content, kind = KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: damaged or no checkpoint: [^\n]*; it is [^\n]*{kind}"):
        pcdet_ext.load(tmp_path / name)


@pytest.mark.parametrize(("content", "whose"), ORIGINS)
def test_whose_checkpoint_it_is_and_what_to_do_is_said(tmp_path: Path, content: object, whose: str) -> None:
    (tmp_path / "other.pth").write_bytes(saved(content))
    with pytest.raises(CheckpointError, match=rf"not a checkpoint of this library, but {whose}.*`pcdet convert "):
        pcdet_ext.load(tmp_path / "other.pth")


def test_a_file_that_is_not_there_has_no_kind(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "none") == ""
    assert kind_of(tmp_path) == ""


@given(st.binary(max_size=60), st.sampled_from([b"", b"PK\x03\x04", b"\x80", b"\x10" + bytes(7) + b"{"]))
def test_any_bytes_have_a_kind_or_none(tmp_path_factory: pytest.TempPathFactory, rest: bytes, first: bytes) -> None:
    path = tmp_path_factory.mktemp("kinds") / "a.bin"
    path.write_bytes(first + rest)
    assert isinstance(kind_of(path), str)
