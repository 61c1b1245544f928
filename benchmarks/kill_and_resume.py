"""Kills trainings and resumes them until they are done, and compares the results with an undisturbed training.

    python benchmarks/kill_and_resume.py                 # 20 kills, a few minutes
    python benchmarks/kill_and_resume.py --kills 5

Every third kill happens while a checkpoint is written, after a random fraction of its bytes, and the others at random
times. Each resume uses another number of workers. After each kill last.pt must be whole, where there is one. At the end
of each training weights, average, optimizer, random state and results.csv must equal the undisturbed ones, bit for bit.
Exits non-zero where anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models.backend import load_checkpoint
from utils import checkpoint
from utils.data import shapes
from utils.files import write_yaml

EPOCHS = 6
MAY_DIFFER = ("resume", "workers", "name", "exist_ok")  # options


def child(arguments: list[str], strike: tuple[int, float] | None) -> None:
    """Runs train.py; strike = (n, fraction) kills it in the n-th write of a checkpoint, after that fraction."""
    import train

    if strike:
        number, fraction = strike
        real, writes = checkpoint.torch.save, []

        def save(content, file):
            writes.append(1)
            if len(writes) < number:
                return real(content, file)
            with tempfile.TemporaryFile() as whole:
                real(content, whole)
                size = whole.tell()
                whole.seek(0)
                file.write(whole.read(int(size * fraction)))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.torch.save = save
    sys.argv[1:] = arguments
    train.main(train.parse_opt())


def start(arguments: list[str], log: Path, strike: tuple[int, float] | None = None) -> subprocess.Popen:
    """Starts `child` in another process, which appends its output to a log."""
    inject = [f"{strike[0]}:{strike[1]}"] if strike else ["-"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *inject, *arguments]
    return subprocess.Popen(command, stdout=log.open("a"), stderr=subprocess.STDOUT, env=environment, cwd=log.parent)


def small_data(folder: Path) -> Path:
    """Draws a data set of 24 train and 8 val images, and returns its YAML."""
    shapes.write_dataset(folder / "shapes", {"train": 24, "val": 8})
    content = {"path": str(folder / "shapes"), "train": "images/train", "val": "images/val"}
    write_yaml(folder / "small.yaml", {**content, "nc": len(shapes.NAMES), "names": list(shapes.NAMES)})
    return folder / "small.yaml"


def differences(a: object, b: object, place: str = "") -> list[str]:
    """Returns the places where two nested containers of tensors and plain values differ."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [place]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{place}: keys"]
        return [d for k in a if k not in (*MAY_DIFFER, "seconds") for d in differences(a[k], b[k], f"{place}/{k}")]
    if isinstance(a, list | tuple):
        return [d for i, (p, q) in enumerate(zip(a, b, strict=True)) for d in differences(p, q, f"{place}/{i}")]
    return [] if a == b else [f"{place}: {a} and {b}"]


def compare(alone: Path, killed: Path) -> list[str]:
    """Returns the places where two finished runs differ."""
    found = []
    for name in ("last.pt", "best.pt"):
        a, b = (load_checkpoint(run / "weights" / name) for run in (alone, killed))
        found += differences(a["model"].state_dict(), b["model"].state_dict(), f"{name} model")
        found += differences(a.get("training", {}), b.get("training", {}), f"{name} training")
    if (alone / "results.csv").read_bytes() != (killed / "results.csv").read_bytes():
        found.append("results.csv")
    return found


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Kill trainings, resume them, and compare them with an undisturbed one."
    )
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times (default: %(default)s)")
    opt = parser.parse_args()
    rng = random.Random(opt.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    usual = [
        "--cfg", "models/SOCA-n.yaml", "--weights", "", "--data", str(small_data(folder)), "--imgsz", "64",
        "--batch-size", "8", "--epochs", str(EPOCHS), "--optimizer", "AdamW", "--multi-scale", "--device", "cpu",
        "--project", str(folder),
    ]  # fmt: skip
    begin = time.time()
    process = start([*usual, "--workers", "0", "--name", "alone"], folder / "alone.log")
    if process.wait():
        sys.exit((folder / "alone.log").read_text())
    length = time.time() - begin
    print(f"undisturbed: {length:.0f} s; logs and runs in {folder}")

    kills = inside = number = failures = 0
    while kills < opt.kills:
        name = f"killed{number}"
        log, last = folder / f"{name}.log", folder / name / "weights/last.pt"
        arguments = [*usual, "--name", name]
        while True:
            strike = (rng.randint(2, 5), rng.random()) if kills % 3 == 0 else None
            begin = time.time()
            process = start([*arguments, "--workers", str(rng.choice([0, 1, 2]))], log, strike)
            try:
                code = process.wait(None if strike or kills >= opt.kills else rng.uniform(0.2, 0.9) * length)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code == 0:
                length = min(length, time.time() - begin)
                break
            if code != -signal.SIGKILL:
                sys.exit(f"ended with {code}:\n{log.read_text()[-3000:]}")
            kills, inside = kills + 1, inside + bool(strike)
            leftovers = len(list((folder / name).glob("weights/.*.part")))
            state = load_checkpoint(last)["training"]["state"] if last.exists() else {"epoch": None, "finished": False}
            where = "inside a write" if strike else "at random"
            print(f"kill {kills}: {where}; last.pt whole, epoch {state['epoch']}; {leftovers} partial files beside it")
            if state["finished"]:
                break
            arguments = ["--resume", str(last)] if last.exists() else [*usual, "--name", name, "--exist-ok"]
        found = compare(folder / "alone", folder / name)
        print(f"{name}: done, {'identical' if not found else f'DIFFERS: {found[:5]}'}")
        failures += bool(found)
        number += 1
    print(f"{kills} kills, {inside} of them inside a write, {number} trainings, {failures} differ from the undisturbed")
    return int(failures > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        where = sys.argv[2]
        child(sys.argv[3:], None if where == "-" else (int(where.split(":")[0]), float(where.split(":")[1])))
    else:
        sys.exit(main())
