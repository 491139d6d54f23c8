"""Compare this library with numeric cases of published implementations; exit 1 unless all pass.

python tools/reproduce.py ../shared/golden/openpcdet --grads
python tools/reproduce.py ../shared/golden/openpcdet/vfe_pillar_b2.json --json out.json
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pcdet_ext.conformance.reproduce import all_pass, reproduce, summary, write_json


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 1 unless every case passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="CASE", help="case files (.json or .npz), or folders of cases")
    parser.add_argument("--grads", action="store_true", help="compare gradients too")
    parser.add_argument("--json", metavar="FILE", help="write the reports to this file")
    options = parser.parse_args(arguments)
    reports = reproduce(options.cases, options.grads, show=lambda report: print(report.line(), flush=True))
    print(summary(reports))
    if options.json:
        try:
            write_json(reports, options.json)
        except OSError as error:
            print(f"error: {options.json} cannot be written: {error}", file=sys.stderr)
            return 1
    return 0 if all_pass(reports) else 1


if __name__ == "__main__":
    sys.exit(main())
