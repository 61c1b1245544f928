"""Trains and measures the arms of an ablation, each run in a process of its own, and writes what is known of them.

The command is tools/ablate.py.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from filelock import FileLock, Timeout

import train
import val
from models.attention import Adapter
from models.backend import load_checkpoint
from models.insert import parse_attention
from models.registry import lacks
from models.yolo import Model
from tools.ablate_report import Ablation, as_csv, as_figure, as_html, as_markdown, classes_as_csv, progress
from tools.costs import PairedTimer, inference, machine, peak_bytes, training_step
from tools.explain import explain
from utils import cli, user_blocks
from utils.boxes import check_image_size, round_up
from utils.data.dataset_yaml import load_dataset_yaml
from utils.device import select_device
from utils.files import atomic_write, read_yaml, write_yaml
from utils.log import LOGGER

ROUNDS = 9  # of the timing


class Arm(NamedTuple):
    """A network that is compared: the YAML and the attention that train.py is given."""

    name: str
    cfg: str
    attention: str

    def model(self, nc: int | None = None, channels: int = 3) -> Model:
        """Builds the network for nc classes (None: those of the YAML) and images of so many channels."""
        return Model(self.cfg, channels, nc, insert=parse_attention(self.attention))


@dataclass(frozen=True)
class Plan:
    """What an ablation does: its options, checked, and what follows from them."""

    opt: argparse.Namespace  # of ablate.py; `trained` are those of train.py
    arms: list[Arm]
    splits: list[str]  # that every run is measured on
    size: int  # longer side in pixels of the images that every arm sees
    nc: int
    channels: int
    names: list[str]  # of the classes

    @property
    def runs(self) -> list[tuple[Arm, int]]:
        """Returns every arm and seed, seed by seed, so that at any time the complete seeds are pairs."""
        return [(arm, seed) for seed in range(self.opt.seeds) for arm in self.arms]

    def results(self) -> dict[tuple[str, int], dict]:
        """Returns the results of the runs that are done, by arm and seed."""
        files = {(arm.name, seed): result_file(self.opt.out, arm.name, seed) for arm, seed in self.runs}
        return {run: json.loads(file.read_text(encoding="utf-8")) for run, file in files.items() if file.exists()}

    def all_done(self) -> bool:
        """Returns whether every run has a result."""
        return len(self.results()) == len(self.runs)


def make_plan(opt: argparse.Namespace) -> Plan:
    """Returns the plan of checked options; ValueError for arms that do not fit the data, the images or each other."""
    data = load_dataset_yaml(opt.data)
    splits = [split for split in ("val", "test") if data[split]]
    load_dataset_yaml(opt.data, ("train", *splits))  # or test would be missed after the first training
    arms = make_arms(opt.cfg, opt.attention, opt.out, controls=not opt.no_matched)
    models = {arm.name: arm.model() for arm in arms}
    if opt.trained.weights:
        for name, model in models.items():
            if rough := {type(layer).__name__ for layer in model.model if lacks(layer, "start_as_identity")}:
                LOGGER.warning(
                    f"the arm {name}: {', '.join(rough)} has no start_as_identity(), so it changes what the trained "
                    "layers know, and this arm begins behind the others"
                )
    multiples = {name: model.image_multiple for name, model in models.items()}
    frames = {name: round_up(opt.trained.imgsz, multiple) for name, multiple in multiples.items()}
    smallest, largest = (choose(frames, key=frames.get) for choose in (min, max))
    if frames[smallest] != frames[largest]:
        raise ValueError(
            f"--imgsz {opt.trained.imgsz} would be {frames[smallest]} pixels for the arm {smallest} and "
            f"{frames[largest]} for {largest}; give a multiple of {math.lcm(*multiples.values())}, so that all arms "
            "see the same images"
        )
    single = opt.trained.single_cls
    return Plan(
        opt=opt, arms=arms, splits=splits, size=check_image_size(opt.trained.imgsz, max(multiples.values())),
        nc=1 if single else data["nc"], channels=data["channels"], names=["item"] if single else data["names"],
    )  # fmt: skip


# --- the arms ---------------------------------------------------------------------------------------------------------

PLAIN, CONSTANT = "plain=", "Scale"  # the arm of plain layers as large as an arm; the block of learnt constants


def make_arms(cfg: str, attention: str, out: Path, controls: bool = True) -> list[Arm]:
    """Returns the arms that `attention` names, and unless it names them the controls of the largest.

    The controls are plain layers of as many parameters, whose YAML is written into `out`, and a learnt constant for
    each channel. An arm `plain=SE@P5` is the plain control of that arm.
    """
    names = ["".join(name.split()) for name in re.split(r",(?![^\[]*\])", attention)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--attention names {twice[0]!r} twice")
    if len(names) < 2 or not all(names):
        raise ValueError(f"--attention must name at least two arms, such as none,SE@P5,SOCA@P5, got {attention!r}")
    arms = [_plain(cfg, name, out) if name.startswith(PLAIN) else Arm(name, cfg, _insertion(name)) for name in names]
    if None in arms:
        raise ValueError(
            f"{names[arms.index(None)]}: plain layers in those places have more parameters than that arm adds"
        )
    sizes = {arm: parameters(arm.model()) for arm in arms if arm.attention}
    if not controls or not sizes:  # arm.model() also finds what is wrong with an arm before work starts
        return arms
    largest = max(sizes, key=sizes.get)
    if not any(name.startswith(PLAIN) for name in names):
        if plain := _plain(cfg, PLAIN + largest.name, out):
            arms.append(plain)
        else:
            LOGGER.warning(
                f"the arm {PLAIN}{largest.name} is left out: plain layers have more parameters than {largest.name} adds"
            )
    if not any(is_constant(arm) for arm in arms):
        places = dict.fromkeys(place for row in parse_attention(largest.attention) for place in row["after"].split("+"))
        name = f"{CONSTANT}@{'+'.join(places)}"
        arms.append(Arm(name, cfg, name))
    return arms


def _insertion(name: str) -> str:
    return "" if name == "none" else name


def is_constant(arm: Arm) -> bool:
    """Returns whether an arm has learnt constants in the place of gates, and nothing else."""
    rows = parse_attention(arm.attention)
    return bool(rows) and all(row["module"] == CONSTANT for row in rows)


def _plain(cfg: str, name: str, out: Path) -> Arm | None:
    """Returns the arm of plain layers that `plain=ARM` names, its YAML written; None where ARM adds too little."""
    like = name.removeprefix(PLAIN)
    arm = Arm(like, cfg, _insertion(like))
    plain = matched_yaml(arm, parameters(arm.model()) - parameters(Model(cfg)))
    if not plain:
        return None
    write_yaml(out / f"{name}.yaml", plain)
    return Arm(name, str(out / f"{name}.yaml"), "")


def parameters(model: Model) -> int:
    """Returns the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def matched_yaml(arm: Arm, more: int) -> dict | None:
    """Returns a plain YAML with `Adapter` blocks in the arm's places that have `more` parameters, up to the rounding of
    a width; None where their biases alone are more.

    A block of C channels and hidden width C / r has C + C / r (2 C + 1) parameters; r is the same for all.
    """
    rows = [{"after": row["after"], "module": "Adapter"} for row in parse_attention(arm.attention)]
    widths = [layer.up.out_channels for layer in Model(arm.cfg, insert=rows).model if isinstance(layer, Adapter)]
    if more <= sum(widths):
        return None
    reduction = sum(C * (2 * C + 1) for C in widths) / (more - sum(widths))
    return Model(arm.cfg, insert=[{**row, "args": [None, reduction]} for row in rows]).yaml


# --- one run, in a process of its own ---------------------------------------------------------------------------------


def folder_of(out: Path, arm: str, seed: int) -> Path:
    """Returns the folder of a run: its training, log and weights."""
    return out / "runs" / f"{arm}-seed{seed}"


def result_file(out: Path, arm: str, seed: int) -> Path:
    """Returns the file of a run's measures, which stays valid without the run's folder."""
    return out / "results" / f"{arm}-seed{seed}.json"


def move_results(out: Path) -> None:
    """Moves the results of runs that lie in the runs' own folders, where earlier versions had them."""
    for file in (out / "runs").glob("*/result.json"):
        (out / "results").mkdir(exist_ok=True)
        file.rename(out / "results" / f"{file.parent.name}.json")


def do_run(plan: Plan, arm: Arm, seed: int) -> None:
    """Trains and measures one run, unless it is done or another process does it; output goes to log.txt in its folder.

    This process holds the lock, so it lasts as long as the training even if the program that started it ends.
    """
    opt, folder = plan.opt, folder_of(plan.opt.out, arm.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(folder / "lock", timeout=0):
        done = result_file(opt.out, arm.name, seed)
        if done.exists():
            return
        with open(folder / "log.txt", "a") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
        last = folder / "weights/last.pt"
        user_blocks.use(opt.trained.blocks)
        if not finished(last):
            go_on = ["--resume", str(last), *(["--blocks", *opt.trained.blocks] if opt.trained.blocks else [])]
            anew = ["--cfg", arm.cfg, "--attention", arm.attention, "--data", opt.data, "--seed", str(seed), *opt.rest]
            anew += ["--project", str(folder.parent), "--name", folder.name, "--exist-ok"]
            cli.run(train.main, train.parse_opt(argv=go_on if last.exists() else anew), "train")
        result = {"arm": arm.name, "seed": seed, **measure_run(folder, plan)}
        done.parent.mkdir(exist_ok=True)
        with atomic_write(done, "w") as file:
            json.dump(result, file, indent=1)
        if opt.drop_weights:
            shutil.rmtree(folder / "weights")


def finished(last: Path) -> bool:
    """Returns whether there is a last.pt whose training is complete."""
    return last.exists() and load_checkpoint(last)["training"]["state"]["finished"]


def measure_run(folder: Path, plan: Plan) -> dict:
    """Returns all that is kept of a run: P, R, mAP50 and mAP50-95 of the weights after the last epoch for each split,
    mAP50-95 of the classes, and how they came about. It names no path of this machine.
    """
    last = folder / "weights/last.pt"
    opt = read_yaml(folder / "opt.yaml")
    state = load_checkpoint(last)["training"]["state"]
    figures, classes = {}, {}
    for split in plan.splits:
        results, maps, _ = val.run(
            plan.opt.data, last, 2 * opt["batch_size"], opt["imgsz"], task=split, device=opt["device"],
            workers=opt["workers"], single_cls=opt["single_cls"], half=False, plots=False, project=folder, name=split,
            exist_ok=True, blocks=plan.opt.trained.blocks,
        )  # fmt: skip
        figures[split] = list(map(float, results[:4]))
        classes[split] = dict(zip(plan.names, map(float, maps)))
    on_gpu = torch.cuda.is_available() and opt["device"] != "cpu"
    where = {
        name for name in opt if name in ("project", "name", "save_dir", "data", "cfg")
    }  # what differs between runs
    return {
        **figures, "classes": classes, "epochs": state["epoch"] + 1, "seconds": state["seconds"],
        "device": torch.cuda.get_device_name() if on_gpu else "cpu", "torch": torch.__version__,
        "machine": machine(select_device("" if on_gpu else "cpu")),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__},
        "settings": {name: portable(value) for name, value in opt.items() if name not in where},
        "hyp": read_yaml(folder / "hyp.yaml"),
    }  # fmt: skip


def portable(value: Any) -> Any:
    """Returns an option without the folder of a file that it names; lists item by item."""
    if isinstance(value, list):
        return [portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and ("/" in value or "\\" in value) else value


# --- all runs ---------------------------------------------------------------------------------------------------------


def do_runs(plan: Plan) -> list[str]:
    """Does the runs that no process has done or is doing, seed by seed; returns the names of the failed runs."""
    failed, opt = [], plan.opt
    for arm, seed in plan.runs:
        folder = folder_of(opt.out, arm.name, seed)
        if result_file(opt.out, arm.name, seed).exists():
            continue
        LOGGER.info(f"{arm.name}, seed {seed}: see {folder / 'log.txt'}")
        process = multiprocessing.get_context("spawn").Process(target=do_run, args=(plan, arm, seed))
        process.start()
        try:
            process.join()
        finally:  # also when a signal stops this program
            process.terminate()
            process.join()
        if process.exitcode:
            failed.append(folder.name)
            LOGGER.warning(f"{folder.name} ended with status {process.exitcode}: {last_line(folder / 'log.txt')}")
        LOGGER.info(progress(report(plan)))
    return failed


def last_line(path: Path) -> str:
    """Returns the last line of a log."""
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "no output"


# --- cost and report --------------------------------------------------------------------------------------------------


@cache
def cost_of(arm: Arm, size: int, nc: int, channels: int) -> dict[str, float]:
    """Returns the number of parameters and the FLOPs of an arm for images of size x size pixels."""
    model = arm.model(nc, channels)
    return {"parameters": parameters(model), "flops": sum(line.flops for line in explain(model, size))}


def time_arms(plan: Plan) -> dict:
    """Times the arms in turn: fused inference of one image, and a training step with its peak of memory."""
    device, batch, size = select_device(plan.opt.trained.device), max(plan.opt.trained.batch_size, 1), plan.size
    timer = PairedTimer(device, ROUNDS, cpu_seconds=device.type == "cpu" and torch.get_num_threads() == 1)
    steps, answers, costs = {}, {}, {}
    for arm in plan.arms:
        torch.manual_seed(0)
        steps[arm.name] = training_step(arm.model(plan.nc, plan.channels), device, batch, size)
        answers[arm.name] = inference(arm.model(plan.nc, plan.channels), device, size)
        steps[arm.name]()  # the first step creates the state of the optimizer
        costs[arm.name] = {"memory": peak_bytes(steps[arm.name], device)}
    for key, forms, times in (("inference", answers, 5), ("step", steps, 1)):
        for name, seconds in timer(forms, times).items():
            costs[name][key] = seconds
    clock = "CPU seconds" if timer.cpu_seconds else "wall clock"
    about = f"{machine(device)}, medians in turn, {clock}; batch 1 fused, and batch {batch}, {size} px"
    return {"machine": about, "costs": costs}


def timed(out: Path, arms: list[Arm]) -> dict | None:
    """Returns the content of costs.json, if it has all the arms."""
    file = out / "costs.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"costs": {}}
    return content if content["costs"].keys() >= {arm.name for arm in arms} else None


def looks_at_test(plan: Plan) -> int:
    """Returns how often results of test were shown, this time included where every run is done.

    looks.json has the arms and seeds of each time; the same ones are shown again without being counted again.
    """
    file, now = plan.opt.out / "looks.json", {"arms": [arm.name for arm in plan.arms], "seeds": plan.opt.seeds}
    locks = plan.opt.out / "runs"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / "looks.lock"):
        looks = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        if plan.all_done() and now not in looks:
            looks.append(now)
            with atomic_write(file, "w") as output:
                json.dump(looks, output, indent=1)
    return len(looks)


def report(plan: Plan) -> Ablation:
    """Writes CSV, table, figure and page of the runs so far; results of test when all runs are done."""
    opt, names = plan.opt, [arm.name for arm in plan.arms]
    looks = looks_at_test(plan) if "test" in plan.splits else None
    costs = {arm.name: cost_of(arm, plan.size, plan.nc, plan.channels) for arm in plan.arms}
    times = timed(opt.out, plan.arms)
    if times:
        costs = {name: {**costs[name], **times["costs"][name]} for name in names}
    ablation = Ablation(
        title=f"Attention in {Path(opt.cfg).stem} on {Path(opt.data).stem}", arms=names,
        controls=[arm.name for arm in plan.arms if arm.name.startswith(PLAIN) or is_constant(arm)],
        seeds=list(range(opt.seeds)), splits=plan.splits if plan.all_done() else ["val"], results=plan.results(),
        costs=costs, machine=times["machine"] if times else "", command=command(opt), looks=looks,
    )  # fmt: skip
    figure = as_figure(ablation)
    for name, content in (
        ("runs.csv", as_csv(ablation)),
        ("classes.csv", classes_as_csv(ablation)),
        ("table.md", as_markdown(ablation)),
        ("figure.png", figure),
        ("report.html", as_html(ablation, figure)),
    ):
        with atomic_write(opt.out / name) as output:
            output.write(content if isinstance(content, bytes) else content.encode())
    return ablation


def command(opt: argparse.Namespace) -> str:
    """Returns the command line that goes on with the ablation, as it was given."""
    words = ["--cfg", opt.cfg, "--attention", opt.attention, "--data", opt.data]
    words += ["--seeds", str(opt.seeds), *["--no-matched"] * opt.no_matched, *["--drop-weights"] * opt.drop_weights]
    return "python tools/ablate.py " + shlex.join([*words, "--out", str(opt.out), *opt.rest])
