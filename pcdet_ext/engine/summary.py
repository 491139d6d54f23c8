"""What a training says at its end."""

from __future__ import annotations

import shlex
from pathlib import Path

from pcdet_ext.engine.progress import Progress
from pcdet_ext.engine.run_folder import BEST, LAST


def summary(progress: Progress, folder: Path) -> str:
    """How long a training was, its best score, where the checkpoint lies, and the command that tests it."""
    lines = [f"trained for {progress.epoch} epochs, {progress.step} steps"]
    scored = progress.best is not None and (folder / BEST).exists()
    checkpoint = folder / (BEST if scored else LAST)
    if scored:
        epoch = f" after epoch {progress.best_epoch}" if progress.best_epoch is not None else ""
        lines.append(f"best score {progress.best:.4g}{epoch}: {checkpoint}")
    else:
        lines.append(f"never evaluated; the last weights: {checkpoint}")
    lines.append(f"to test it: pcdet test {shlex.quote(str(checkpoint))}")
    return "\n".join(lines)
