"""Compares attention blocks on a data set: every arm is trained by the same recipe and with the same seeds, in pairs.

    python tools/ablate.py --cfg yolov5n.yaml --attention none,SE@P5,SOCA@P5,SOCA@P3+P4+P5 --data my.yaml --seeds 5 \\
        --weights yolov5n.pt --img 320 --epochs 15

Options that are not listed below go to train.py unchanged, the same for every arm: nothing is tuned. All arms are
compared with the first. One more arm is added, plain=ARM: it has `Adapter` blocks in the places of the largest arm, and
as many parameters as that, but no attention. An Adapter sees one position at a time and gates nothing, so where this
arm gains as much, the gain comes from the parameters and not from attention (--no-matched leaves this arm out).

Runs go seed by seed, so that at any time the complete seeds are pairs. The same command continues a stopped ablation:
finished runs are kept, and an interrupted run continues bit for bit. More arms or seeds may be added then.

Several processes can share the runs of one --out folder; each run is claimed by a lock, which its process releases when
it ends:

    CUDA_VISIBLE_DEVICES=0 python tools/ablate.py ... --out runs/ablation &
    CUDA_VISIBLE_DEVICES=1 python tools/ablate.py ... --out runs/ablation    # or on another machine with that folder

After each run runs.csv, table.md, figure.png and report.html are written there. At the end the arms are timed in turn,
in one process, and the times are kept in costs.json.
"""

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli

if TYPE_CHECKING:
    from tools.ablate_runs import Arm

RESERVED = ("seed", "project", "name", "exist_ok", "resume", "evolve", "cfg", "attention", "data")  # set for each run


def make_parser() -> argparse.ArgumentParser:
    """States the options of ablate.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cfg", required=True, help="model YAML without attention")
    parser.add_argument(
        "--attention", required=True, metavar="ARMS",
        help="arms separated by commas, such as none,SE@P5; all are compared with the first",
    )  # fmt: skip
    parser.add_argument("--data", default=cli.DATA, help="data set YAML (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=cli.whole(1), default=5, metavar="N", help="train with seeds 0 to N - 1 (default: %(default)s)"
    )
    parser.add_argument("--no-matched", action="store_true", help="leave out the arm of plain layers")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of runs (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="only write the report of the runs that are done")
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line; those for train.py are in `rest`."""
    parser = make_parser()
    opt, opt.rest = parser.parse_known_args(argv)
    cli.check(parser, opt)
    return opt


def check(opt: argparse.Namespace) -> tuple[list["Arm"], list[str]]:
    """Returns the arms and the splits to measure on; sets `opt.trained` to the options of train.py.

    Raises ValueError, before anything is trained, for options that cannot work.
    """
    import train
    from tools.ablate_runs import make_arms
    from utils.data.dataset_yaml import load_dataset_yaml
    from utils.files import read_yaml, write_yaml

    opt.trained = train.parse_opt(argv=opt.rest)
    if taken := opt.trained.given & set(RESERVED):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(taken))
        raise ValueError(f"{flags} cannot be passed on to train.py: ablate.py sets it for each run")
    train.check_options(opt.trained)
    splits = [split for split in ("val", "test") if load_dataset_yaml(opt.data)[split]]
    opt.out.mkdir(parents=True, exist_ok=True)
    recipe = {"cfg": opt.cfg, "data": opt.data, "train": opt.rest}
    file = opt.out / "recipe.yaml"
    if file.exists() and (before := read_yaml(file)) != recipe:
        raise ValueError(f"{opt.out} holds runs of another recipe, {before}, not {recipe}; choose another --out")
    write_yaml(file, recipe)
    return make_arms(opt.cfg, opt.attention, None if opt.no_matched else opt.out), splits


def main(opt: argparse.Namespace) -> None:
    """Runs the command line."""
    from filelock import FileLock, Timeout

    from tools.ablate_report import progress
    from tools.ablate_runs import all_done, do_runs, report, time_arms
    from utils.files import atomic_write
    from utils.log import LOGGER

    arms, splits = check(opt)
    failed = []
    if not opt.report:
        with cli.stopped_by_signals():
            failed = do_runs(opt, arms, splits)
        with suppress(Timeout), FileLock(opt.out / "costs.lock", timeout=0):
            if all_done(opt, arms):
                costs = time_arms(opt, arms)
                with atomic_write(opt.out / "costs.json", "w") as file:
                    json.dump(costs, file, indent=1)
    ablation = report(opt, arms, splits)
    LOGGER.info(f"{progress(ablation)} See {opt.out / 'report.html'}")
    if failed:
        raise ValueError(f"runs that failed: {len(failed)}; see log.txt in their folders: {', '.join(failed)}")


if __name__ == "__main__":
    cli.run(main, parse_options, "ablate.py")
