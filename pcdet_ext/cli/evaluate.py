"""Official metrics for result files of any code base.

pcdet evaluate kitti --ground-truth training/label_2 --results DIR --json out.json
pcdet evaluate kitti --ground-truth … --results … 'classes=[Car, Forklift]' 'overlap={Forklift: 0.5}'
"""

from __future__ import annotations

import argparse
import json

from pcdet_ext.cli.arguments import path

GROUND_TRUTH = """the labels. kitti: a folder of label files; nuscenes and nuscenes_tracking: a folder with the released
tables, or a JSON file; argoverse2: a split as it is released, or a Feather file; waymo: a folder of Parquet
components, a Parquet file, or an Objects message (.bin); once: the data folder; semantickitti: a folder with
sequences/NN/labels/*.label; custom: a folder of one's own data; kitti_tracking: a folder with SEQUENCE.txt or
label_02/SEQUENCE.txt, and the list of sequences evaluate_tracking.seqmap*; bev_map: a file .npz with gt, or
a folder of such; motion: as nuscenes; planning: a file .npz with gt_ego_fut_trajs and the rest; occupancy: Occ3D's
folder of SCENE/TOKEN/labels.npz, or a file .npz with semantics"""
RESULTS = """the results. kitti and custom: a folder of result files, which also say which frames count; nuscenes and
nuscenes_tracking: a submission in JSON; argoverse2: a submission in Feather; waymo: Parquet, or an
Objects message (.bin); once: a list in JSON or a pickle; semantickitti: a folder with
sequences/NN/predictions/*.label; kitti_tracking: a folder with SEQUENCE.txt or data/SEQUENCE.txt; motion: a
submission whose boxes have trajs; bev_map and planning: a file .npz with pred, for maps also a folder; occupancy: a
folder of TOKEN.npz with pred, or a file"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pcdet_ext.data.formats import BENCHMARKS

    parser.add_argument("benchmark", choices=BENCHMARKS.names(), help="whose metrics")
    parser.add_argument("--ground-truth", type=path, required=True, help=GROUND_TRUTH)
    parser.add_argument("--results", type=path, required=True, help=RESULTS)
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="classes to measure (default: the benchmark's)")
    parser.add_argument("--json", type=path, help="write all numbers and curves here")
    parser.add_argument("--plots", type=path, metavar="DIR", help="folder for diagrams, as precision over recall")
    parser.add_argument("options", nargs="*", metavar="key=value", help="further options of the benchmark")


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.config import from_plain
    from pcdet_ext.data.formats import BENCHMARKS
    from pcdet_ext.files import atomic_write, check_output_file, check_output_folder

    if options.json:
        check_output_file(options.json, [options.ground_truth, options.results])
    if options.plots:
        check_output_folder(options.plots)
    given = {"name": options.benchmark, "ground_truth": str(options.ground_truth), "results": str(options.results)}
    given |= {"classes": options.classes} if options.classes else {}
    result = BENCHMARKS.build(from_plain(given, "command line", options.options))
    if options.json:
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(result.to_json()), encoding="utf-8")
    if options.plots:
        from pcdet_ext.visualization.plots import write_plots

        write_plots(result, options.plots)
    print(result.table())
    return 0
