#!/usr/bin/env python3
"""Official metrics for result files of any codebase.

evaluate.py kitti --ground-truth training/label_2 --results DIR [classes=[Car,Forklift] overlap={Forklift: 0.5}]
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pcdet_ext.config import ConfigError, from_plain
from pcdet_ext.data.formats import BENCHMARKS
from pcdet_ext.files import DataError, atomic_write


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 2 when the files cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS.names())
    parser.add_argument("--ground-truth", required=True, help="labels (kitti: a folder of label files)")
    parser.add_argument("--results", required=True, help="results; they say which frames count")
    parser.add_argument("--classes", nargs="+", help="classes to measure (default: the benchmark's)")
    parser.add_argument("--json", type=Path, help="write all numbers and curves here")
    parser.add_argument("options", nargs="*", metavar="key=value", help="further options of the benchmark")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s")
    given = {"name": options.benchmark, "ground_truth": options.ground_truth, "results": options.results}
    given |= {"classes": options.classes} if options.classes else {}
    try:
        result = BENCHMARKS.build(from_plain(given, "evaluate", options.options))
        if options.json:
            with atomic_write(options.json) as temporary:
                temporary.write_text(json.dumps(result.to_json()), encoding="utf-8")
    except (ConfigError, DataError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(result.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
