"""Checks a data set: what is wrong with it, why that matters, and what to do. It only reads, and changes no file.

python tools/doctor.py my.yaml
python tools/doctor.py my.yaml --html report.html      # a page with the worst findings drawn
python tools/doctor.py my.yaml --json --strict         # for a program: exit status 1 where there is a fault

A fault is wrong for every task (a line that cannot be read, an image in train and in val); a hint is for you to judge.
The data set may be in any format that train.py reads, but for tar shards, which tools/convert.py unpacks.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.doctor_report import as_html, as_json, as_text
from utils import cli
from utils.data.checks import FAULT, KINDS, Finding, examine
from utils.data.contents import Contents, read_contents
from utils.data.dataset_yaml import SPLITS, open_source
from utils.data.formats.shards import ShardSplit
from utils.files import ROOT, atomic_write, read_yaml
from utils.training.autoanchor import GOOD_RECALL, anchor_fit

ANCHOR_THRESHOLD = 4.0  # factor by which a side of a box and of its anchor may differ, as the default hyp files say


def make_parser() -> argparse.ArgumentParser:
    """States the options of doctor.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set YAML, or any other source that train.py reads")
    parser.add_argument(
        "--imgsz", "--img", type=int, default=640, help="training size in pixels (default: %(default)s)"
    )
    parser.add_argument("--cfg", default=ROOT / "models/yolov5s.yaml", help="model YAML whose anchors are compared")
    parser.add_argument("--json", action="store_true", help="print all findings as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with the worst findings drawn")
    parser.add_argument("--strict", action="store_true", help="exit status 1 where there is a fault")
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    return make_parser().parse_args(argv)


def diagnose(data: dict, image_size: int, anchors: np.ndarray) -> tuple[Contents, list[Finding]]:
    """Reads and examines the data set of a loaded YAML. anchors: (k, 2) width, height in pixels."""
    contents = read_contents(data)

    def recall(sides: np.ndarray) -> float:
        return anchor_fit(sides, anchors, ANCHOR_THRESHOLD).recall

    return contents, examine(contents, image_size, recall, GOOD_RECALL)


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    cli.check_range("--imgsz", options.imgsz, 32)
    data = open_source(options.data)
    anchors = read_yaml(options.cfg).get("anchors")
    if not isinstance(anchors, list):
        raise ValueError(f"{options.cfg}: anchors must be lists of numbers, got {anchors!r}; give another --cfg")
    for split in SPLITS:
        if isinstance(data[split], ShardSplit):
            raise ValueError(
                f"{options.data}: {split} is packed in tar shards; unpack it with tools/convert.py --to yolo and give "
                "the YAML that it writes"
            )
    contents, findings = diagnose(data, options.imgsz, np.array(anchors, float).reshape(-1, 2))
    print(as_json(contents, findings)) if options.json else cli.say(as_text(contents, findings))
    if options.html:
        with atomic_write(options.html, "w") as file:
            file.write(as_html(contents, findings, f"{Path(options.data).name}: what the doctor found"))
    if options.strict and any(KINDS[finding.kind].severity == FAULT for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, parse_options(), "doctor")
