"""Official checkpoints through the command: files of other code bases become ours, and others are refused by name."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import pcdet_ext
from pcdet_ext import config
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.cli.command import main
from pcdet_ext.interop import from_official
from pcdet_ext.interop.checkpoints import read_official

# One of each kind; that every published model fits is tested with each system.
MODELS = {
    "waymo/dsvt_voxel": ("dsvt", "dsvt_3D_1f_onestage.yaml"),
    "nuscenes/dsvt_pillar": ("dsvt", "dsvt_plain_1f_onestage_nusences.yaml"),
    "waymo/flatformer": ("flatformer", "flatformer_waymo_D1_2x_3class.py"),
    "waymo/scatterformer": ("scatterformer", "waymo_models/scatterformer.yaml"),
}


def published_state(shared: Path, system: str, model: str) -> dict[str, Tensor]:
    """Made-up parameters with the names and shapes of a published model."""
    manifest = json.loads((shared / "golden" / system / "manifest.json").read_text(encoding="utf-8"))
    entry = manifest[model]
    generator = torch.Generator().manual_seed(0)
    names = {name: shape for name, shape, *_ in entry["params"]}
    state = {}
    for name, shape in names.items():
        whole = name.endswith("num_batches_tracked") or name == "global_step"
        value = torch.rand(shape, generator=generator) * 0.1
        state[name] = torch.zeros(shape, dtype=torch.int64) if whole else value
    return state


@pytest.mark.parametrize("name", MODELS)
def test_published_checkpoints_become_ours(root: Path, shared: Path, tmp_path: Path, name: str) -> None:
    state = published_state(shared, *MODELS[name])
    extras = {"epoch": 24, "optimizer_state": None, "version": "pcdet+0.6", "best": np.float64(0.5)}
    key = "state_dict" if "flatformer" in name else "model_state"
    torch.save({key: state, **extras}, tmp_path / "official.pth")
    settings = root / "configs" / f"{name}.yaml"
    assert main(["convert", str(tmp_path / "official.pth"), str(settings), str(tmp_path / "ours.ckpt")]) == 0
    detector = pcdet_ext.load(tmp_path / "ours.ckpt", device="cpu")
    system, model = MODELS[name]
    manifest = json.loads((shared / "golden" / system / "manifest.json").read_text(encoding="utf-8"))
    direct = from_official(system, manifest[model]["config"], state).state_dict()
    ours = detector.model.state_dict()
    assert set(ours) == set(direct)
    assert all(torch.equal(ours[key], direct[key]) for key in direct)
    assert detector.classes == tuple(config.load(settings)["data"]["classes"])


def test_numbers_of_old_and_new_numpy_are_read(tmp_path: Path) -> None:
    new, old = tmp_path / "new.pth", tmp_path / "old.pth"
    torch.save({"model_state": {"vfe.w": torch.ones(2)}, "best": np.float64(0.5)}, new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for entry in source.infolist():
            target.writestr(entry, source.read(entry).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in old.read_bytes()
    for path in (new, old):
        assert read_official(path)["vfe.w"].tolist() == [1.0, 1.0]


def test_what_does_not_fit_is_refused_by_name(
    root: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official, out = tmp_path / "official.pth", tmp_path / "ours.ckpt"
    settings = str(root / "configs/waymo/dsvt_pillar.yaml")

    def refused(message: str, path: str = settings, code: int = 1) -> None:
        assert main(["convert", str(official), path, str(out)]) == code
        error = capsys.readouterr().err
        assert str(official) in error
        assert message in error
        assert not out.exists()

    refused("no such checkpoint", code=2)
    official.write_bytes(b"PK\x03\x04 cut short")
    refused("damaged")
    torch.save({"model_state": {}}, official)
    refused("holds no parameters")
    torch.save({"backbone_3d.weight": torch.zeros(1)}, official)
    refused("no parameters of a whole detector")
    torch.save({"model_state": {"vfe.w": torch.zeros(1)}, "code": Path("x")}, official)
    refused("more than tensors")
    state = published_state(shared, "dsvt", "dsvt_plain_1f_onestage.yaml")
    torch.save({"model_state": state}, official)
    refused("does not fit", str(root / "configs/waymo/scatterformer.yaml"))
    del state["dense_head.shared_conv.0.weight"]
    state["vfe.extra"] = torch.zeros(1)
    torch.save({"model_state": state}, official)
    refused("vfe.extra has no place")
    refused("head.shared_conv.0.weight is missing")


class Reaching:
    """Pickles as `getattr(owner, name)`."""

    def __init__(self, owner: object, name: str) -> None:
        self.call = (owner, name)

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, self.call


def test_logs_of_mmengine_are_read_and_give_nothing_but_their_own_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mmengine's Runner writes them: a log holds arrays, and functions of its class by name."""
    module = ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def mean(self) -> None:
            raise AssertionError("reading must not call it")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module.__name__, "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    log = HistoryBuffer()
    log.__dict__.update(history=np.arange(3.0), ways={"mean": HistoryBuffer.mean})
    torch.save({"state_dict": {"a": torch.ones(2)}, "message_hub": {"loss": log}}, tmp_path / "x.pth")
    assert read_official(tmp_path / "x.pth")["a"].tolist() == [1, 1]
    for owner, name in (("text", "upper"), (HistoryBuffer, "__subclasses__"), (np.ndarray, "tofile")):
        torch.save({"state_dict": {"a": torch.ones(2)}, "x": Reaching(owner, name)}, tmp_path / "y.pth")
        with pytest.raises(CheckpointError, match="tensors and plain values"):
            read_official(tmp_path / "y.pth")
