"""A device that is not there is one line on stderr and exit code 2, before data are read or anything is trained."""

from __future__ import annotations

import pytest
import torch

from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError
from pcdet_ext.inference import resolve_device

COMMANDS = (
    ["benchmark", "ops", "--only", "voxelize"],
    ["benchmark", "models", "kitti/pointpillars"],
    ["benchmark", "steps", "kitti/pointpillars", "data.root=nowhere"],
    ["benchmark", "registration", "nowhere", "nowhere.ckpt"],
    ["train", "kitti/pointpillars", "data.root=nowhere"],
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_cuda_without_cuda(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--device", "cuda"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "device 'cuda'" in line


def test_a_device_without_values_is_none() -> None:
    with pytest.raises(ConfigError, match="device 'meta' cannot be used: it holds no values"):
        resolve_device("meta")
