"""Compare this library with numeric cases of published implementations.

A case is `<case>.json` (system, kind, config, tolerances) beside `<case>.npz` (arrays `in.*`, `param.*`, `out.*`,
`mid.*`, `probe.*`, `grad.*`). A *runner* builds our modules from the case and returns what they computed under the same
keys; every `out.*` (and on request every `grad.*`) of the case must be there and agree. What a case expects beside its
arrays, under "expected" (texts, nested numbers) and in the file that `config.results_file` names, is held against what
a runner returns under the key "expected".
"""

from __future__ import annotations

import json
import math
import operator
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce, wraps
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pcdet_ext.conformance.ranked import Ranked, settled
from pcdet_ext.interop.settings import every_setting_counts


@dataclass(frozen=True)
class Masked:
    """A value that is compared only where `where` (bool, the same shape) holds.

    Only for what the case itself marks as not comparable, in one of its `mid.*` arrays.
    """

    value: torch.Tensor
    where: torch.Tensor


Value = torch.Tensor | np.ndarray | float | int | Masked | Ranked | Mapping[str, Any]
Values = Mapping[str, Value]
Runner = Callable[["Case", bool], Values]

OF_FILES = "case.json"  # a case whose inputs and results are files of their own in its folder
SUMS = {"grad_rowsum.": 1, "grad_colsum.": 0}  # prefixes of sums of large gradients, and the axis they go over
GRADIENT_NORMS = "mid.grad_l2"  # of every parameter; compared where a runner gives them

_RUNNERS: dict[tuple[str, str, str | None], Runner] = {}


@dataclass(frozen=True)
class Case:
    """One numeric case. `tensors(prefix)` gives its arrays with the prefix cut off."""

    path: Path
    system: str
    kind: str
    config: dict[str, Any]
    meta: dict[str, Any] = field(repr=False)
    arrays: dict[str, np.ndarray] = field(repr=False)

    @staticmethod
    def read(path: Path) -> Case:
        """Read `<case>.json` and the npz beside it (no pickled objects); `case.json` describes files, not arrays."""
        meta = json.loads(path.read_text(encoding="utf-8"))
        arrays = {}
        if path.name != OF_FILES:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
                arrays = dict(archive.items())
        return Case(
            path,
            meta.get("system", path.parent.name),
            meta.get("kind", path.stem.split("_")[0]),
            meta.get("config", {}),
            meta,
            arrays,
        )

    def expected(self) -> dict[str, Any]:
        """What is expected beside the arrays; the content of the results file is under "results_file"."""
        found = dict(self.meta.get("expected", {}))
        if "results_file" in self.config:
            path = self.path.parent / self.config["results_file"]
            found["results_file"] = json.loads(path.read_text(encoding="utf-8"))
        tracks = self.path.with_name("tracking_result.json")
        if self.path.name == OF_FILES and tracks.exists():
            found["tracking_result"] = json.loads(tracks.read_text(encoding="utf-8"))
        return found

    def tensor(self, key: str) -> torch.Tensor:
        """One array as a tensor."""
        return torch.from_numpy(np.array(self.arrays[key]))

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """All arrays under `prefix.`, as tensors, without the prefix."""
        start = prefix + "."
        return {k[len(start) :]: self.tensor(k) for k in self.arrays if k.startswith(start)}

    def inputs(self, prefix: str) -> Mapping[str, torch.Tensor]:
        """The same, each read only when it is asked for, so that `every_input` knows which were."""
        return _Inputs(self, prefix + ".")


class _Inputs(Mapping[str, torch.Tensor]):
    """The arrays of a case whose keys begin so, as tensors, without the beginning."""

    def __init__(self, case: Case, start: str) -> None:
        self._case, self._start = case, start

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._case.tensor(self._start + key)

    def __contains__(self, key: object) -> bool:
        return f"{self._start}{key}" in self._case.arrays

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self._start) for key in self._case.arrays if key.startswith(self._start))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Noted(dict[str, np.ndarray]):
    """Arrays by name that note which were read."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        self.read.add(key)
        return super().__getitem__(key)


@dataclass(frozen=True)
class Report:
    """How one case went: status "pass", "fail" or "not covered".

    worst: largest error in units of its tolerance, 1 being the limit; worst_key: the array it was seen in.
    """

    name: str
    kind: str
    status: str
    worst: float = math.nan
    worst_key: str = ""
    compared: int = 0
    message: str = ""

    def line(self) -> str:
        """One line for the terminal."""
        detail = self.message or f"{self.compared} arrays, worst {self.worst:.3g} of tolerance at {self.worst_key}"
        return f"{self.status:>11}  {self.name} ({self.kind}): {detail}"


def runs(system: str, kind: str, dataset: str | None = None) -> Callable[[Runner], Runner]:
    """Decorator: this function computes the outputs of cases of a kind.

    Args:
        system: the published system.
        kind: of the cases.
        dataset: only those whose configuration names this data set; others of the kind have runners of their own.
    """

    def register(runner: Runner) -> Runner:
        _RUNNERS[system, kind, dataset] = runner
        return runner

    return register


def every_setting(runner: Runner) -> Runner:
    """Decorator, below `runs`: each setting of a case must be read by the runner, or is refused by name."""

    @wraps(runner)
    def run(case: Case, grads: bool) -> Values:
        with every_setting_counts(case.config) as config:
            return runner(replace(case, config=cast("dict[str, Any]", config)), grads)

    return run


def every_input(runner: Runner) -> Runner:
    """Decorator, below `runs`: each array `in.*` of a case must be read by the runner, or is refused by name."""

    @wraps(runner)
    def run(case: Case, grads: bool) -> Values:
        arrays = _Noted(case.arrays)
        values = runner(replace(case, arrays=arrays), grads)
        unread = [key for key in arrays if key.startswith("in.") and key not in arrays.read]
        if unread:
            raise ValueError(f"{', '.join(unread)}: of no use to cases of the kind {case.kind!r} here")
        return values

    return run


def is_covered(system: str, kind: str, dataset: str | None = None) -> bool:
    """Whether a runner for cases is registered.

    Args:
        system: the published system.
        kind: of the cases.
        dataset: which their configuration names, or None.
    """
    return _runner(system, kind, dataset) is not None


def _runner(system: str, kind: str, dataset: str | None) -> Runner | None:
    return _RUNNERS.get((system, kind, dataset)) or _RUNNERS.get((system, kind, None))


def backward(outputs: Values, case: Case, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of Σ probe·out with respect to the inputs.

    Args:
        outputs: tensors by name.
        case: its `probe.<name>` belongs to out.<name>; one without probes has no gradients, and gives none.
        inputs: leaves by name ("in.x", "param.y"); those that the case has no gradient for are left out.

    Returns:
        Tensors under the keys "grad.in.x", ….
    """
    if not case.tensors("probe"):
        return {}
    terms = [(probe * _tensor(outputs, f"out.{name}")).sum() for name, probe in case.tensors("probe").items()]
    total = reduce(operator.add, terms)
    wanted = {k: t for k, t in inputs.items() if f"grad.{k}" in case.arrays}
    grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {
        f"grad.{k}": torch.zeros_like(t) if g is None else g for (k, t), g in zip(wanted.items(), grads, strict=True)
    }


def _tensor(values: Values, key: str) -> torch.Tensor:
    value = values[key]
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{key}: only a tensor has a gradient, got {type(value).__name__}")
    return value


def find_cases(path: Path) -> Iterator[Path]:
    """The case files that a path (a file or a folder) means, sorted."""
    if path.is_dir():
        for candidate in sorted(path.glob("*.json")):
            if candidate.with_suffix(".npz").exists() or candidate.name == OF_FILES:
                yield candidate
    elif path.suffix == ".npz":
        yield path.with_suffix(".json")
    else:
        yield path


def run_case(path: Path, grads: bool = False) -> Report:
    """Run one case and compare; an exception inside the run is a failure that carries its text."""
    case = Case.read(path)
    runner = _runner(case.system, case.kind, case.config.get("dataset"))
    name = f"{case.system}/{path.parent.name if path.name == OF_FILES else path.stem}"
    if runner is None:
        return Report(name, case.kind, "not covered", message="this library has no runner for the kind")
    try:
        values = runner(case, grads)
    except Exception as error:  # any failure of a module under test is the case's result, with its place
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        return Report(name, case.kind, "fail", message=" ".join(message.split())[:400])
    return compare(name, case, values, grads)


def compare(name: str, case: Case, values: Values, grads: bool) -> Report:
    """Hold computed values against those of a case.

    Args:
        name: what the report is called.
        case: with its `out.*` and `grad.*`.
        values: computed, by the same names.
        grads: whether gradients are compared, too.
    """
    prefixes = ("out.", "grad.", *SUMS) if grads else ("out.",)
    values = settled(_with_sums(case, values), case.arrays, lambda key: _out_tolerance(case.meta, key)[1])
    worst, worst_key, compared = -1.0, "", 0
    for key, expected in case.arrays.items():
        if not key.startswith(prefixes) and not (key == GRADIENT_NORMS and grads and key in values):
            continue
        if key not in values:
            return Report(name, case.kind, "fail", message=f"{key} was not computed")
        actual = values[key]
        if isinstance(actual, Masked):
            left_out = ~actual.where.numpy()
            actual = np.where(left_out, expected, actual.value.detach().numpy())
        actual = actual.detach().cpu().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
        if actual.shape != expected.shape:
            message = f"{key} has shape {actual.shape}, expected {expected.shape}"
            return Report(name, case.kind, "fail", message=message)
        is_grad = key.startswith("grad") or key == GRADIENT_NORMS
        error = _grad_error(case, actual, expected) if is_grad else _out_error(case, key, actual, expected)
        compared += 1
        if error > worst:
            worst, worst_key = error, key
    for key, error in _nested_errors(case, values):
        compared += 1
        if error > worst:
            worst, worst_key = error, key
    if compared == 0:
        return Report(name, case.kind, "fail", message="the case has nothing to compare")
    return Report(name, case.kind, "pass" if worst <= 1 else "fail", worst, worst_key, compared)


def _with_sums(case: Case, values: Values) -> dict[str, Value]:
    """The values, and sums of the gradients that a case has the sums of only."""
    found = dict(values)
    for key in case.arrays:
        for prefix, axis in SUMS.items():
            gradient = values.get(f"grad.{key.removeprefix(prefix)}") if key.startswith(prefix) else None
            if isinstance(gradient, torch.Tensor):
                found[key] = gradient.flatten(1).sum(axis)
    return found


def _nested_errors(case: Case, values: Values) -> Iterator[tuple[str, float]]:
    """Errors of what a runner returned under "expected", by place; each of its keys must hold all that the case has."""
    own = values.get("expected")
    if not isinstance(own, Mapping):
        return
    expected = case.expected()
    for key, actual in own.items():
        yield from _leaf_errors(case, f"expected.{key}", actual, expected[key])


def _leaf_errors(case: Case, key: str, actual: Any, expected: Any) -> Iterator[tuple[str, float]]:
    if isinstance(expected, Mapping):
        same = isinstance(actual, Mapping) and sorted(actual) == sorted(expected)
        pairs = [(name, actual[name], expected[name]) for name in expected] if same else []
    elif isinstance(expected, list):
        same = isinstance(actual, list) and len(actual) == len(expected)
        pairs = list(zip(map(str, range(len(expected))), actual, expected, strict=True)) if same else []
    elif isinstance(expected, (str, bool)) or expected is None:
        same, pairs = actual == expected, []
    else:
        yield key, _out_error(case, key, np.asarray(actual, np.float64), np.asarray(expected, np.float64))
        return
    yield key, 0.0 if same else math.inf
    for name, ours, theirs in pairs:
        yield from _leaf_errors(case, f"{key}.{name}", ours, theirs)


def _out_error(case: Case, key: str, actual: np.ndarray, expected: np.ndarray) -> float:
    """Worst |a - b| / (atol + rtol |b|); integers and texts must be equal."""
    if expected.dtype.kind in "iubU":
        return 0.0 if np.array_equal(actual, expected) else math.inf
    rtol, atol = _out_tolerance(case.meta, key)
    size = np.abs(expected.astype(np.float64))
    return _ratio(np.asarray(actual, np.float64), expected.astype(np.float64), atol + rtol * size)


def _out_tolerance(meta: Mapping[str, Any], key: str) -> tuple[float, float]:
    """(rtol, atol) of an output: its own, that of its family ("pe_atol" for "out.pe0"), or the case's."""
    own = meta.get("tolerance_per_output", {}).get(key)
    tolerance = meta.get("tolerance", {})
    if tolerance.get("everything") == "exact":
        return 0.0, 0.0
    if own:
        return own["rtol"], own["atol"]
    name = key.removeprefix("out.")
    for field_name in tolerance:
        family = field_name.removesuffix("_atol")
        if field_name.endswith("_atol") and not family.startswith("grad") and name.startswith(family):
            return tolerance.get(f"{family}_rtol", tolerance.get("rtol", 0.0)), tolerance[field_name]
    return tolerance.get("rtol", 1e-4), tolerance.get("atol", 1e-5)


def _grad_error(case: Case, actual: np.ndarray, expected: np.ndarray) -> float:
    """Worst |a - b| over what the case allows a gradient."""
    size = np.abs(expected.astype(np.float64))
    bound = np.maximum(_grad_bound(case.meta, size), 1e-12)
    return _ratio(np.asarray(actual, np.float64), expected.astype(np.float64), bound)


def _grad_bound(meta: Mapping[str, Any], size: np.ndarray) -> np.ndarray:
    """Allowed difference for gradients of these absolute values, in the form in which the case states it."""
    own, general = meta.get("grad_tolerance") or {}, meta.get("tolerance", {})
    largest = float(size.max(initial=0.0))
    if "atol" in own:
        return own["atol"] + own["rtol"] * size
    if "grad_atol_rel_to_max" in general:
        least = max(general["grad_atol_rel_to_max"] * largest, general.get("grad_atol", 0.0))
        return least + general["grad_rtol"] * size
    share = own.get("rel_to_max", general.get("grad_max_abs_diff_over_max_abs_grad", 1e-3))
    return np.full(size.shape, share * largest)


def _ratio(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> float:
    if expected.size == 0:
        return 0.0
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        ratio = np.where(same, 0.0, np.abs(actual - expected) / bound)
    return float(np.nan_to_num(ratio, nan=math.inf).max())
