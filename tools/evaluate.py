#!/usr/bin/env python3
"""Official metrics for result files of any codebase.

evaluate.py kitti --ground-truth training/label_2 --results DIR [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    kitti = commands.add_parser("kitti", help="KITTI object detection: bbox, aos, bev, 3d")
    kitti.add_argument("--ground-truth", type=Path, required=True, help="folder of label files")
    kitti.add_argument(
        "--results", type=Path, required=True, help="folder of result files; they say which frames count"
    )
    kitti.add_argument("--classes", nargs="+", default=["Car", "Pedestrian", "Cyclist"])
    kitti.add_argument("--json", type=Path, help="write all numbers and curves here")
    options = parser.parse_args()
    from pcdet_ext.evaluation.kitti import evaluate_folders
    from pcdet_ext.files import DataError, atomic_write

    try:
        result = evaluate_folders(options.ground_truth, options.results, options.classes)
        if options.json:
            with atomic_write(options.json) as temporary:
                temporary.write_text(json.dumps(result.to_json()), encoding="utf-8")
    except (ValueError, DataError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(result.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
