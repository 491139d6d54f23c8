"""Find objects with an exported detector; needs numpy and onnxruntime alone: `onnx_infer.py MODEL.onnx FRAME.bin …`.

MODEL.onnx is what `pcdet export` wrote. A frame is a file of float32 points whose columns begin with the model's
(--columns says how many a point has in the file, by default as many as the model reads), or a .npy array [N, columns].
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime


def read_points(path: Path, columns: int, used: int) -> np.ndarray:
    """Points float32 [N, used] of a file."""
    points = np.load(path) if path.suffix == ".npy" else np.fromfile(path, np.float32).reshape(-1, columns)
    if points.ndim != 2 or points.shape[1] < used:
        raise SystemExit(f"{path}: needs points [N, {used} or more], got {list(points.shape)}")
    return np.ascontiguousarray(points[:, :used], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("frames", type=Path, nargs="+")
    parser.add_argument("--columns", type=int, help="columns of a point in a .bin file")
    parser.add_argument("--score", type=float, default=0.3, help="leave out boxes with a lower score (default 0.3)")
    options = parser.parse_args()
    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    used = len(about["point_features"])
    for path in options.frames:
        points = read_points(path, options.columns or used, used)
        boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"points": points})
        print(f"{path}: {len(points)} points")
        for box, score, label in zip(boxes, scores, labels, strict=True):
            if score >= options.score:
                x, y, z, dx, dy, dz, heading = box[:7]
                size = f"{dx:.2f} x {dy:.2f} x {dz:.2f} m"
                print(
                    f"  {about['classes'][label]} {score:.2f} at ({x:.2f}, {y:.2f}, {z:.2f}), {size}, {heading:.2f} rad"
                )


if __name__ == "__main__":
    main()
