"""The layouts of simulated data: what each can be asked for, and that the command line follows what is registered."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pcdet_ext.cli.command import main
from pcdet_ext.data.simulation import Made
from pcdet_ext.data.simulation.layouts import OPTIONS, SIMULATIONS, Simulation, options


def test_every_option_has_a_meaning_and_a_default() -> None:
    for layout in SIMULATIONS.names():
        parameters = inspect.signature(SIMULATIONS.get(layout)).parameters
        assert set(parameters) <= set(OPTIONS)
        assert [name for name, p in parameters.items() if p.default is p.empty] == ["frames"]
    assert [option.name for option in options()] == list(OPTIONS)


@pytest.mark.parametrize(
    ("layout", "scans"),
    [("kitti", 3), ("nuscenes", 42), ("waymo", 6), ("semantickitti", 6), ("argoverse2", 6), ("once", 6)],
)
def test_the_number_of_scans_is_known_before(layout: str, scans: int) -> None:
    given = {} if layout == "kitti" else {"scenes": 2}
    assert SIMULATIONS.get(layout)(3, **given).scans == scans


@pytest.fixture
def strange() -> Iterator[list[dict[str, Any]]]:
    """A layout of somebody else's, with what it was asked for."""
    asked: list[dict[str, Any]] = []

    def write(out: Path, progress: Any, **given: Any) -> Path:
        asked.append(given)
        list(progress(iter([Made(1, 0.0)])))
        return out

    def strange(frames: int, beams: int = 7) -> Simulation:
        return Simulation(frames, partial(write, frames=frames, beams=beams))

    SIMULATIONS.register(strange)
    yield asked
    SIMULATIONS._entries.pop("strange")


def test_the_command_line_knows_what_is_registered(
    strange: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", "--format", "strange", "--out", str(tmp_path / "out"), "--frames", "1", "--seed", "5"]
    assert main(command) == 0
    assert main([*command, "--beams", "3"]) == 0
    common = {"frames": 1, "seed": 5, "val_fraction": 0.2, "workers": 2}
    assert strange == [{**common, "beams": 7}, {**common, "beams": 3}]
    assert main([*command, "--scenes", "2"]) == 2
    assert (
        "--scenes is for argoverse2, nuscenes, once, places, semantickitti and waymo, not for strange"
        in capsys.readouterr().err
    )
