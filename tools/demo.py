"""Trains SOCA on the data set that the project draws itself, validates it and detects with it.

It takes five to six minutes on two cores.

python tools/demo.py                 (or: make demo)
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli
from utils.files import ROOT, home
from utils.text import PACKAGE

IMAGE_SIZE = "96"


def make_parser() -> argparse.ArgumentParser:
    """States the options of demo.py."""
    parser = argparse.ArgumentParser(description="Train, validate and detect on the data set that the project draws.")
    parser.add_argument(
        "--epochs", type=cli.whole(1), default=19, help="passes over the training images (default: %(default)s)"
    )
    parser.add_argument("--project", default="runs/demo", help="folder of results (default: %(default)s)")
    return parser


def main(opt: argparse.Namespace) -> None:
    """Runs the command line."""
    start = time.time()
    project = Path(opt.project).resolve()
    folder = project / time.strftime("%Y%m%d-%H%M%S")
    common = ["--project", str(folder), "--exist-ok"]

    announce("1/3  training models/SOCA.yaml from scratch on drawn images of four shapes")
    verb(
        "train", "--cfg", "models/SOCA.yaml", "--weights", "", "--hyp", "data/hyps/hyp.demo.yaml",
        "--img", IMAGE_SIZE, "--epochs", str(opt.epochs), "--batch-size", "16", "--optimizer", "AdamW", "--cos-lr",
        "--noval", "--nosave", "--cache", "--workers", "1", "--name", "train", *common,
    )  # fmt: skip
    best = folder / "train" / "weights" / "best.pt"
    announce("2/3  validating on images that were not used in training")
    verb("val", "--weights", str(best), "--task", "test", "--img", IMAGE_SIZE, "--name", "val", *common)
    announce("3/3  detecting in data/images")
    verb("detect", "--weights", str(best), "--img", IMAGE_SIZE, "--name", "detect", *common)

    print(f"\ndone in {(time.time() - start) / 60:.1f} minutes. Look at:")
    for name, what in (
        ("detect", "images with the detections"),
        ("val/val_batch0_pred.jpg", "test images with the detections (beside it those with the labels)"),
        ("train/report.html", "the training on one page: curves, classes, errors"),
        ("train/weights/best.pt", "the trained detector"),
    ):
        print(f"  {folder / name}  {what}")


def verb(*arguments: str) -> None:
    """Runs a command of the project with this interpreter; ends the demo if it fails."""
    name, *options = arguments
    program = ["-m", f"{PACKAGE}commands.{name}"] if PACKAGE else [str(ROOT / f"{name}.py")]
    shown = f"yolov5-soca {name}" if PACKAGE else f"python {name}.py"
    print(" ".join(["$", shown, *(word or "''" for word in options)]), flush=True)
    # waiting threads must not spin: on a machine that does other work too they slow each other down
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    if code := subprocess.run([sys.executable, *program, *options], cwd=home(), env=environment).returncode:
        sys.exit(code)


def announce(title: str) -> None:
    """Prints the title of the next step."""
    print(f"\n=== {title}", flush=True)


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(make_parser()), "demo.py")
