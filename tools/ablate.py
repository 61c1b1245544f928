"""Compares attention blocks on a data set: every arm is trained by the same recipe and with the same seeds, in pairs.

    python tools/ablate.py --cfg yolov5n.yaml --attention none,SE@P5,SOCA@P5,SOCA@P3+P4+P5 --data my.yaml --seeds 5 \\
        --weights yolov5n.pt --img 320 --epochs 15

An arm is `none`, or blocks as train.py's --attention takes them: "SE[8]@P5" with arguments, "SE@P3&SOCA@P5" for two.
Options that are not listed below go to train.py unchanged, the same for every arm: nothing is tuned. (So does --blocks
FILE, with blocks of your own.) All arms are compared with the first, and with two controls in the places of the largest
arm, which are added unless an arm is one:

    plain=ARM    `Adapter` blocks: as many parameters as ARM, but no attention, since they see one position at a time
                 and gate nothing. Where this arm gains as much, the gain comes from the parameters.
    Scale@...    a learnt constant for each channel. Where this arm gains as much, no image has to be looked at.

Runs go seed by seed, so that at any time the complete seeds are pairs. The same command continues a stopped ablation:
finished runs are kept, and an interrupted run continues bit for bit. More arms or seeds may be added then.

Several processes can share the runs of one --out folder; each run is claimed by a lock, which its process releases when
it ends:

    CUDA_VISIBLE_DEVICES=0 python tools/ablate.py ... --out runs/ablation &
    CUDA_VISIBLE_DEVICES=1 python tools/ablate.py ... --out runs/ablation    # or on another machine with that folder

results/ has a small JSON of every finished run: its measures, settings and versions, without weights or paths. The
folder runs/ beside it, with weights and logs, may be deleted; the command goes on from the rest, on any machine.

After each run runs.csv, classes.csv, table.md, figure.png and report.html are written there. Choose on val: test is
measured with every run, and shown when all of them are done; looks.json counts how often. At the end the arms are timed
in turn, in one process, and the times are kept in costs.json.
"""

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli, user_blocks

if TYPE_CHECKING:
    from tools.ablate_runs import Plan

RESERVED = ("seed", "project", "name", "exist_ok", "resume", "evolve", "cfg", "attention", "data")  # set for each run


def make_parser() -> argparse.ArgumentParser:
    """States the options of ablate.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cfg", required=True, help="model YAML without attention")
    parser.add_argument(
        "--attention", "--arms", required=True, metavar="ARMS",
        help='arms separated by commas, such as "none,SE[8]@P5,SOCA@P5"; all are compared with the first',
    )  # fmt: skip
    parser.add_argument("--data", default=cli.DATA, help=cli.DATA_HELP)
    parser.add_argument(
        "--seeds", type=cli.whole(1), default=5, metavar="N", help="train with seeds 0 to N - 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--no-matched", action="store_true", help="add no controls: no plain layers, no learnt constants"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of runs (default: %(default)s)")
    parser.add_argument(
        "--drop-weights", action="store_true", help="delete the weights of each run when it is measured"
    )
    parser.add_argument("--report", action="store_true", help="only write the report of the runs that are done")
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line; those for train.py are in `rest`."""
    parser = make_parser()
    opt, opt.rest = parser.parse_known_args(argv)
    cli.check(parser, opt)
    return opt


def check(opt: argparse.Namespace) -> "Plan":
    """Returns what is to be done; sets `opt.trained` to the options of train.py.

    Raises ValueError, before anything is trained, for options that cannot work.
    """
    import train
    from tools.ablate_runs import make_plan, move_results, portable
    from utils.files import read_yaml, write_yaml

    opt.trained = train.parse_opt(argv=opt.rest)
    if taken := opt.trained.given & set(RESERVED):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(taken))
        raise ValueError(f"{flags} cannot be passed on to train.py: ablate.py sets it for each run")
    train.check_options(opt.trained)
    user_blocks.use(opt.trained.blocks)
    opt.out.mkdir(parents=True, exist_ok=True)
    plan = make_plan(opt)
    recipe = {"cfg": opt.cfg, "data": opt.data, "classes": plan.names, "train": opt.rest}
    recipe = {key: portable(value) for key, value in recipe.items()}  # the folder may move to another machine
    file = opt.out / "recipe.yaml"
    before = {key: portable(value) for key, value in read_yaml(file).items()} if file.exists() else recipe
    if any(before.get(key, value) != value for key, value in recipe.items()):
        raise ValueError(f"{opt.out} holds runs of another recipe, {before}, not {recipe}; choose another --out")
    write_yaml(file, recipe)
    move_results(opt.out)
    return plan


def main(opt: argparse.Namespace) -> None:
    """Runs the command line."""
    from filelock import FileLock, Timeout

    from tools.ablate_report import progress
    from tools.ablate_runs import do_runs, report, time_arms
    from utils.files import atomic_write
    from utils.log import LOGGER

    plan, failed = check(opt), []
    if not opt.report:
        with cli.stopped_by_signals():
            failed = do_runs(plan)
        with suppress(Timeout), FileLock(opt.out / "runs/costs.lock", timeout=0):
            if plan.all_done():
                costs = time_arms(plan)
                with atomic_write(opt.out / "costs.json", "w") as file:
                    json.dump(costs, file, indent=1)
    LOGGER.info(f"{progress(report(plan))} See {opt.out / 'report.html'}")
    if failed:
        raise ValueError(f"runs that failed: {len(failed)}; see log.txt in their folders: {', '.join(failed)}")


if __name__ == "__main__":
    cli.run(main, parse_options, "ablate.py")
