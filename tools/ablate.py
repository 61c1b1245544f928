"""Compares attention blocks on a data set: every arm by the same recipe, with the same seeds, in pairs.

    python tools/ablate.py --cfg yolov5n.yaml --attention none,SE@P5,SOCA@P5,SOCA@P3+P4+P5 --data my.yaml --seeds 5 \\
        --weights yolov5n.pt --img 320 --epochs 15

Options that are not named below go to train.py as they are, the same for every arm: nothing is tuned. The first arm is
what the others are compared with. One more arm is added, plain=ARM: `Adapter` blocks in the places of the largest arm,
with as many parameters as that, but no attention. They see one position at a time and gate nothing, so a gain that they
share is owed to the parameters and not to attention (--no-matched leaves them out).

Runs go seed by seed, so that whenever it is stopped the complete seeds are pairs. The same command goes on: runs that
are done stay, a run that was cut short continues bit for bit. More arms or seeds may be named then.

Several processes share the runs of one --out folder, each run claimed by a lock that goes with its process:

    CUDA_VISIBLE_DEVICES=0 python tools/ablate.py ... --out runs/ablation &
    CUDA_VISIBLE_DEVICES=1 python tools/ablate.py ... --out runs/ablation    # or on another machine that has the folder

Written there after each run: runs.csv, table.md, figure.png and report.html. At the end the arms are timed in turn, in
one process, and the times kept in costs.json.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler is silent
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli

OURS = ("seed", "project", "name", "exist_ok", "resume", "evolve", "cfg", "attention", "data")  # not to be passed on


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is for train.py is in `rest`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cfg", required=True, help="model YAML without attention")
    parser.add_argument("--attention", required=True, metavar="ARMS", help="none,SE@P5,...: the first is the reference")
    parser.add_argument("--data", default=cli.DATA, help="data set YAML (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--no-matched", action="store_true", help="without the arm of plain layers")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="train nothing; write the report of what is there")
    opt, opt.rest = parser.parse_known_args(argv)
    return opt


OPTIONS = parse_options() if __name__ == "__main__" else None  # answers --help before torch is imported

import json  # noqa: E402
import multiprocessing  # noqa: E402
import shlex  # noqa: E402
from contextlib import suppress  # noqa: E402
from typing import NamedTuple  # noqa: E402

import torch  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402

import train  # noqa: E402
import val  # noqa: E402
from models.attention import Adapter  # noqa: E402
from models.backend import load_checkpoint  # noqa: E402
from models.insert import parse_attention  # noqa: E402
from models.yolo import Model  # noqa: E402
from tools.ablate_report import Ablation, as_csv, as_html, as_markdown, as_picture, how_far  # noqa: E402
from tools.costs import Timer, inference, machine, peak_bytes, training_step  # noqa: E402
from tools.explain import explain  # noqa: E402
from utils.boxes import check_image_size  # noqa: E402
from utils.data.dataset_yaml import load_dataset_yaml  # noqa: E402
from utils.device import select_device  # noqa: E402
from utils.files import atomic_write, read_yaml, write_yaml  # noqa: E402
from utils.log import LOGGER  # noqa: E402

ROUNDS = 9  # of the timing


class Arm(NamedTuple):
    """A network to be trained: what train.py is given."""

    name: str
    cfg: str
    attention: str

    def model(self, nc: int | None = None, channels: int = 3) -> Model:
        return Model(self.cfg, channels, nc, insert=parse_attention(self.attention))


# --- the arms ---------------------------------------------------------------------------------------------------------


def make_arms(cfg: str, attention: str, out: Path | None) -> list[Arm]:
    """The arms that are named, and into the folder `out` the one of plain layers, if given."""
    names = [name.strip() for name in attention.split(",")]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--attention names {twice[0]!r} twice")
    if len(names) < 2 or not all(names):
        raise ValueError(f"--attention takes two arms or more, such as none,SE@P5,SOCA@P5, got {attention!r}")
    arms = [Arm(name, cfg, "" if name == "none" else name) for name in names]
    sizes = {arm: parameters(arm.model()) for arm in arms}  # also finds what is wrong with an arm before work starts
    largest = max(arms, key=sizes.get)
    more = sizes[largest] - parameters(Model(cfg))
    if out and largest.attention:
        if plain := matched_yaml(largest, more):
            name = f"plain={largest.name}"
            write_yaml(out / f"{name}.yaml", plain)
            arms.append(Arm(name, str(out / f"{name}.yaml"), ""))
        else:
            LOGGER.warning(f"no plain layers are as small as {largest.name} ({more} parameters): that arm is left out")
    return arms


def parameters(model: Model) -> int:
    return sum(p.numel() for p in model.parameters())


def matched_yaml(arm: Arm, more: int) -> dict | None:
    """A plain YAML with `Adapter` blocks in the arm's places that have `more` parameters, to the nearest width.

    A block of C channels and hidden width C / r has C + C / r (2 C + 1) parameters; r is the same for all. None where
    even their biases are more.
    """
    rows = [{**row, "module": "Adapter"} for row in parse_attention(arm.attention)]
    widths = [layer.up.out_channels for layer in Model(arm.cfg, insert=rows).model if isinstance(layer, Adapter)]
    if more <= sum(widths):
        return None
    reduction = sum(C * (2 * C + 1) for C in widths) / (more - sum(widths))
    return Model(arm.cfg, insert=[{**row, "args": [None, reduction]} for row in rows]).yaml


# --- one run, in a process of its own ---------------------------------------------------------------------------------


def run_folder(out: Path, arm: str, seed: int) -> Path:
    return out / "runs" / f"{arm}-seed{seed}"


def do_run(out: Path, arm: Arm, seed: int, data: str, rest: list[str], splits: list[str]) -> None:
    """Trains and measures, unless it is done or another process is at it; output goes to log.txt in the run's folder.

    The lock is this process's: it stays as long as the training, whatever becomes of the program that started it.
    """
    folder = run_folder(out, arm.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(folder / "lock", timeout=0):
        if (folder / "result.json").exists():
            return
        with open(folder / "log.txt", "a") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
        last = folder / "weights/last.pt"
        if not finished(last):
            go_on = ["--resume", str(last)]
            anew = ["--cfg", arm.cfg, "--attention", arm.attention, "--data", data, "--seed", str(seed), *rest]
            anew += ["--project", str(folder.parent), "--name", folder.name, "--exist-ok"]
            cli.run(train.main, train.parse_opt(argv=go_on if last.exists() else anew), "train")
        result = measure(folder, data, splits)
        with atomic_write(folder / "result.json", "w") as file:
            json.dump({"arm": arm.name, "seed": seed, **result}, file, indent=1)


def finished(last: Path) -> bool:
    """Whether a last.pt is there and its training over."""
    return last.exists() and load_checkpoint(last)["training"]["state"]["finished"]


def measure(folder: Path, data: str, splits: list[str]) -> dict:
    """P, R, mAP50 and mAP50-95 of the weights after the last epoch, for each split."""
    last = folder / "weights/last.pt"
    opt = read_yaml(folder / "opt.yaml")
    state = load_checkpoint(last)["training"]["state"]
    figures = {}
    for split in splits:
        results, _, _ = val.run(
            data, last, 2 * opt["batch_size"], opt["imgsz"], task=split, device=opt["device"], workers=opt["workers"],
            single_cls=opt["single_cls"], half=False, plots=False, project=folder, name=split, exist_ok=True,
        )  # fmt: skip
        figures[split] = list(map(float, results[:4]))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and opt["device"] != "cpu" else "cpu"
    about = {"epochs": state["epoch"] + 1, "seconds": state["seconds"], "device": device, "torch": torch.__version__}
    return {**figures, **about}


# --- all runs ---------------------------------------------------------------------------------------------------------


def do_runs(opt: argparse.Namespace, arms: list[Arm], splits: list[str]) -> list[str]:
    """Does what nobody has done or is doing, seed by seed; returns the names of runs that failed."""
    failed = []
    for seed in range(opt.seeds):
        for arm in arms:
            folder = run_folder(opt.out, arm.name, seed)
            if (folder / "result.json").exists():
                continue
            LOGGER.info(f"{arm.name}, seed {seed}: see {folder / 'log.txt'}")
            work = (opt.out, arm, seed, opt.data, opt.rest, splits)
            process = multiprocessing.get_context("spawn").Process(target=do_run, args=work)
            process.start()
            try:
                process.join()
            finally:  # also where this program is told to stop
                process.terminate()
                process.join()
            if process.exitcode:
                failed.append(folder.name)
                LOGGER.warning(f"{folder.name} ended with status {process.exitcode}: {last_line(folder / 'log.txt')}")
            report(opt, arms, splits)
    return failed


def all_done(opt: argparse.Namespace, arms: list[Arm]) -> bool:
    return all((run_folder(opt.out, arm.name, s) / "result.json").exists() for arm in arms for s in range(opt.seeds))


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "no output"


def check(opt: argparse.Namespace) -> tuple[list[Arm], list[str]]:
    """The arms and the splits to measure on; ValueError for what cannot work, before anything is trained."""
    cli.check_range("--seeds", opt.seeds, 1)
    trained = train.parse_opt(argv=opt.rest)
    if taken := trained.given & set(OURS):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(taken))
        raise ValueError(f"{flags} is set for each run here and cannot be passed on to train.py")
    train.check_options(trained)
    opt.trained = trained
    splits = [split for split in ("val", "test") if load_dataset_yaml(opt.data)[split]]
    opt.out.mkdir(parents=True, exist_ok=True)
    recipe = {"cfg": opt.cfg, "data": opt.data, "train": opt.rest}
    file = opt.out / "recipe.yaml"
    if file.exists() and (before := read_yaml(file)) != recipe:
        raise ValueError(f"{opt.out} holds runs of another recipe, {before}, not {recipe}; name another --out")
    write_yaml(file, recipe)
    return make_arms(opt.cfg, opt.attention, None if opt.no_matched else opt.out), splits


# --- cost and report --------------------------------------------------------------------------------------------------


def sizes(opt: argparse.Namespace, arms: list[Arm]) -> dict[str, dict[str, float]]:
    """Parameters and FLOPs of each arm."""
    nc, channels = _shape(opt)
    found = {}
    for arm in arms:
        model = arm.model(nc, channels)
        lines = explain(model, check_image_size(opt.trained.imgsz, model.image_multiple))
        found[arm.name] = {"parameters": parameters(model), "flops": sum(line.flops for line in lines)}
    return found


def _shape(opt: argparse.Namespace) -> tuple[int, int]:
    data = load_dataset_yaml(opt.data)
    return 1 if opt.trained.single_cls else data["nc"], data["channels"]


def time_arms(opt: argparse.Namespace, arms: list[Arm]) -> dict:
    """Seconds of fused inference of one image and of a training step, and its peak of memory; arms in turn."""
    device, (nc, channels) = select_device(opt.trained.device), _shape(opt)
    size = check_image_size(opt.trained.imgsz, 64)
    timer = Timer(device, ROUNDS, cpu_seconds=device.type == "cpu" and torch.get_num_threads() == 1)
    steps, answers, costs = {}, {}, {}
    for arm in arms:
        torch.manual_seed(0)
        steps[arm.name] = training_step(arm.model(nc, channels), device, max(opt.trained.batch_size, 1), size)
        answers[arm.name] = inference(arm.model(nc, channels), device, size)
        steps[arm.name]()  # which makes the optimizer's state
        costs[arm.name] = {"memory": peak_bytes(steps[arm.name], device)}
    for key, forms, times in (("inference", answers, 5), ("step", steps, 1)):
        for name, seconds in timer(forms, times).items():
            costs[name][key] = seconds
    clock = "CPU seconds" if timer.now.__name__ == "process_time" else "wall clock"
    about = f"{machine(device)}, medians in turn, {clock}; batch 1 fused, and batch {opt.trained.batch_size}, {size} px"
    return {"machine": about, "costs": costs}


def timed(out: Path, arms: list[Arm]) -> dict | None:
    """What `time_arms` found before, if of all the arms."""
    file = out / "costs.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"costs": {}}
    return found if found["costs"].keys() >= {arm.name for arm in arms} else None


def report(opt: argparse.Namespace, arms: list[Arm], splits: list[str]) -> Ablation:
    """Writes CSV, table, picture and page of what is done so far."""
    seeds = list(range(opt.seeds))
    results = {}
    for arm in arms:
        for seed in seeds:
            file = run_folder(opt.out, arm.name, seed) / "result.json"
            if file.exists():
                results[arm.name, seed] = json.loads(file.read_text(encoding="utf-8"))
    names = [arm.name for arm in arms]
    costs, about = sizes(opt, arms), ""
    if times := timed(opt.out, arms):
        costs = {name: {**costs[name], **times["costs"][name]} for name in names}
        about = times["machine"]
    words = ["python", "tools/ablate.py", "--cfg", opt.cfg, "--attention", opt.attention, "--data", opt.data]
    words += ["--seeds", str(opt.seeds), *opt.rest]
    matched = next((name for name in names if name.startswith("plain=")), None)
    title = f"Attention in {Path(opt.cfg).stem} on {Path(opt.data).stem}"
    ablation = Ablation(title, names, matched, seeds, splits, results, costs, about, shlex.join(words))
    picture = as_picture(ablation)
    for name, content in (
        ("runs.csv", as_csv(ablation)),
        ("table.md", as_markdown(ablation)),
        ("figure.png", picture),
        ("report.html", as_html(ablation, picture)),
    ):
        with atomic_write(opt.out / name) as output:
            output.write(content if isinstance(content, bytes) else content.encode())
    return ablation


def main(opt: argparse.Namespace) -> None:
    """The command line."""
    arms, splits = check(opt)
    failed = []
    if not opt.report:
        with cli.stopped_by_signals():
            failed = do_runs(opt, arms, splits)
        with suppress(Timeout), FileLock(opt.out / "costs.lock", timeout=0):
            if all_done(opt, arms):
                with atomic_write(opt.out / "costs.json", "w") as file:
                    json.dump(time_arms(opt, arms), file, indent=1)
    ablation = report(opt, arms, splits)
    LOGGER.info(f"{how_far(ablation)} See {opt.out / 'report.html'}")
    if failed:
        raise ValueError(f"{len(failed)} runs failed, see log.txt in their folders: {', '.join(failed)}")


if __name__ == "__main__":
    cli.run(main, OPTIONS, "ablate.py")
