"""Settings of the cases of the one-cycle optimiser: each counts or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pcdet_ext.conformance.cases.openpcdet_training import one_cycle
from pcdet_ext.conformance.golden import Case

CASE = Path(__file__).resolve().parents[1] / "data" / "golden" / "openpcdet" / "adam_onecycle.json"


def test_an_optimiser_may_have_got_every_parameter() -> None:
    """As LION's does, which adds the parameters that the published one forgets."""
    case = Case.read(CASE)
    forgotten = case.tensor("param.mha.in_proj_weight")
    assert torch.equal(torch.as_tensor(one_cycle(case, False)["out.step2.mha.in_proj_weight"]), forgotten)
    case.config["_in_optimizer"] += ["mha.in_proj_weight", "mha.in_proj_bias"]
    assert not torch.equal(torch.as_tensor(one_cycle(case, False)["out.step2.mha.in_proj_weight"]), forgotten)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("optim", "AMSGRAD", True, "optim.AMSGRAD: the setting is not known here"),
        ("optim", "OPTIMIZER", "sgd", "OPTIMIZER: 'sgd' is not known here; known: 'adam_onecycle'"),
        (None, "warm_restarts", 2, "warm_restarts: the setting is not known here"),
        (None, "_in_optimizer", ["a.weight"], r"_in_optimizer: \['a.weight'\] is known neither"),
    ],
)
def test_settings_that_mean_another_training_are_refused(
    section: str | None, key: str, value: object, message: str
) -> None:
    case = Case.read(CASE)
    (case.config[section] if section else case.config)[key] = value
    with pytest.raises(ValueError, match=message):
        one_cycle(case, False)
