"""Compare this library with numeric cases of published implementations; exit 1 unless all are there and pass.

pcdet reproduce FOLDER --grads
pcdet reproduce CASE.json --json out.json
"""

from __future__ import annotations

import argparse

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "cases", nargs="+", type=path, metavar="CASE", help="case files (.json or .npz), or folders of cases"
    )
    parser.add_argument("--grads", action="store_true", help="compare gradients too")
    parser.add_argument("--json", type=path, metavar="FILE", help="write the reports to this file")


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.conformance.reproduce import all_pass, reproduce, summary, write_json

    missing = [case for case in options.cases if not case.exists()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file or folder")
    reports = reproduce(options.cases, options.grads, show=lambda report: print(report.line(), flush=True))
    print(summary(reports))
    if options.json:
        write_json(reports, options.json)
    return 0 if all_pass(reports) else 1
