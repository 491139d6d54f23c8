"""What is done for mmengine where there is no GPU, without mmengine."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from pcdet_ext.plugins import surroundings
from pcdet_ext.plugins.mmdet3d import environment


def test_processes_of_torchrun_need_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine sets the current device, and tells its wrapper of devices, both of which torch refuses without a GPU."""

    class MMDistributedDataParallel:
        def __init__(self, module: str, broadcast_buffers: bool = True) -> None:
            self.got = (module, broadcast_buffers)

    module = ModuleType("mmengine.model.wrappers.distributed")
    module.MMDistributedDataParallel = MMDistributedDataParallel
    followed: dict[str, Any] = {}
    monkeypatch.setattr(environment, "after_import", followed.__setitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "set_device", torch.cuda.set_device)  # is put back afterwards
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    environment._processes_without_cuda()
    assert not followed  # a single process
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    environment._processes_without_cuda()
    torch.cuda.set_device(1)
    followed["mmengine.model.wrappers.distributed"](module)
    assert MMDistributedDataParallel(module="m", device_ids=[1], broadcast_buffers=False).got == ("m", False)


def test_spconv_without_a_gpu_leaves_out_the_kernels_that_need_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    followed: dict[str, Any] = {}
    monkeypatch.setattr(surroundings, "after_import", followed.__setitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    surroundings.sparse_convolutions_without_cuda()
    assert not followed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    surroundings.sparse_convolutions_without_cuda()
    core = ModuleType("spconv.core")
    core.ALL_IMPGEMM_PARAMS, core.ALL_NATIVE_PARAMS = ["implicit"], ["native"]
    followed["spconv.core"](core)
    assert (core.ALL_IMPGEMM_PARAMS, core.ALL_NATIVE_PARAMS) == ([], ["native"])
    assert "spconv leaves out its implicit matrix products" in capsys.readouterr().err
