"""This library, as it is loaded ("") or by what `Detector.optimize` makes of it ("optimized")."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import pcdet_ext
from pcdet_ext.structures import PointBatch
from pointpillars_peers.worker import Boxes, Maps


class Peer:
    """The detector of ours.ckpt."""

    def __init__(self, folder: Path, option: str) -> None:
        self.detector = pcdet_ext.load(folder / "ours.ckpt", device="cpu", optimize=option == "optimized")
        model = self.detector.model
        self.stages = {"pillars and their encoder": model.encoder, "2-D backbone": model.bev_backbone}
        self.versions = {"pcdet_ext": pcdet_ext.__version__}

    def detect(self, points: np.ndarray) -> Boxes:
        found = self.detector.detect(points)
        boxes = found.boxes - found.boxes[:, 5:6] / 2 * (np.arange(found.boxes.shape[1]) == 2)
        return Boxes(boxes.astype(np.float32), found.scores, found.labels)

    @torch.inference_mode()
    def maps(self, points: np.ndarray) -> Maps:
        output = self.detector.model(PointBatch.from_points([torch.from_numpy(points)]))
        rows, columns = output.map_size
        flat = (output.logits, output.codes, output.directions)
        logits = output.logits[0].reshape(rows, columns, -1).numpy()
        return Maps(logits, [each[0].numel() // (rows * columns) for each in flat])
