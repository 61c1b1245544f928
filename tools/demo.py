"""The main job on the embedded data set: train SOCA, validate it, detect with it. Five to six minutes on two cores.

python tools/demo.py                 (or: make demo)
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SIZE = "96"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train, validate and detect on the data set that the project draws.")
    parser.add_argument("--epochs", type=int, default=19, help="passes over the training images (default: %(default)s)")
    parser.add_argument("--project", default="runs/demo", help="folder of results (default: %(default)s)")
    opt = parser.parse_args()
    start = time.time()
    project = Path(opt.project).resolve()
    folder = project / time.strftime("%Y%m%d-%H%M%S")
    common = ["--project", str(folder), "--exist-ok"]

    step("1/3  training models/SOCA.yaml from scratch on drawn scenes of four shapes")
    verb(
        "train.py", "--cfg", "models/SOCA.yaml", "--weights", "", "--hyp", "data/hyps/hyp.demo.yaml",
        "--img", IMAGE_SIZE, "--epochs", str(opt.epochs), "--batch-size", "16", "--optimizer", "AdamW", "--cos-lr",
        "--noval", "--nosave", "--cache", "--workers", "1", "--name", "train", *common,
    )  # fmt: skip
    best = folder / "train" / "weights" / "best.pt"
    step("2/3  validating on scenes it never saw")
    verb("val.py", "--weights", str(best), "--task", "test", "--img", IMAGE_SIZE, "--name", "val", *common)
    step("3/3  detecting in data/images")
    verb("detect.py", "--weights", str(best), "--img", IMAGE_SIZE, "--name", "detect", *common)

    print(f"\ndone in {(time.time() - start) / 60:.1f} minutes. Look at:")
    for name, what in (
        ("detect", "pictures with the boxes that were found"),
        ("val/val_batch0_pred.jpg", "unseen scenes with predictions (labels beside it)"),
        ("train/results.png", "how training went"),
        ("train/weights/best.pt", "the trained detector"),
    ):
        print(f"  {folder / name}  {what}")


def verb(*arguments: str) -> None:
    """Runs a command of the project with this interpreter; ends the demo if it fails."""
    print("$ python " + " ".join(a or "''" for a in arguments), flush=True)
    # threads that spin while they wait make each other slow where the machine does other work too
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    if code := subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment).returncode:
        sys.exit(code)


def step(title: str) -> None:
    """Announces what comes next."""
    print(f"\n=== {title}", flush=True)


if __name__ == "__main__":
    main()
