"""Measure a trained detector on a labelled data set.

    python val.py --weights runs/train/exp/weights/best.pt --data data/shapes.yaml --img 640

    python val.py --weights best.pt --data data/shapes.yaml --metrics coco --report sizes errors

Results, curves, the confusion matrix and sample pictures go to runs/val/exp. `--task speed` measures time rather than
accuracy; `--task study` measures at image sizes from 256 to 1536 and draws mAP over time.
"""

import argparse
from pathlib import Path

from utils import cli

SPLITS = ("train", "val", "test")
REPORTS = ("sizes", "errors")
STUDY_SIZES = range(256, 1536 + 128, 128)  # pixels


def parse_opt(known: bool = False) -> argparse.Namespace:
    """The command line; with `known` its defaults."""
    parser = argparse.ArgumentParser(description="Measure a trained detector on a labelled data set.")
    parser.add_argument("--data", default=cli.DATA, help="data set YAML (default: %(default)s)")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=cli.WEIGHTS,
        help=".pt file, or one that export.py wrote; several .pt make an ensemble",
    )
    parser.add_argument("--download", action="store_true", help="fetch official weights that are not there")
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time (default: %(default)s)")
    parser.add_argument("--imgsz", "--img", "--img-size", type=int, default=640, help="longer side in pixels")
    parser.add_argument("--conf-thres", type=float, default=0.001, help="lowest confidence that counts")
    parser.add_argument("--iou-thres", type=float, default=0.6, help="overlap at which NMS drops the weaker box")
    parser.add_argument(
        "--task", default="val", choices=(*SPLITS, "speed", "study"), help="split of the data set; or speed: the time "
        "each weight file takes; study: mAP and time at 256 to 1536 pixels, as text files and a chart in this folder",
    )  # fmt: skip
    parser.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: a GPU if there is one)")
    parser.add_argument("--workers", type=int, default=8, help="most processes that read images")
    parser.add_argument("--single-cls", action="store_true", help="count every object as the same class")
    parser.add_argument("--augment", action="store_true", help="test-time augmentation: three sizes, one mirrored")
    parser.add_argument("--verbose", action="store_true", help="a row per class, however many there are")
    parser.add_argument("--save-txt", action="store_true", help="write predictions as label files")
    parser.add_argument("--save-hybrid", action="store_true", help="write labels and predictions together")
    parser.add_argument("--save-conf", action="store_true", help="add the confidence to the label files")
    parser.add_argument("--save-json", action="store_true", help="write predictions as COCO JSON")
    parser.add_argument("--half", action="store_true", help="float16 on CUDA")
    parser.add_argument("--dnn", action="store_true", help="run an ONNX file by OpenCV")
    _add_reports(parser)
    cli.add_run_folder(parser, "runs/val")
    return cli.parse(parser, known)


def _add_reports(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics", default="v6.1", choices=("v6.1", "coco"), help="whose mAP (default: %(default)s; coco needs a "
        "package: pip install faster-coco-eval)",
    )  # fmt: skip
    parser.add_argument(
        "--report", nargs="+", default=[], choices=REPORTS, help="metrics of small, medium and large objects apart; "
        "what kinds of errors cost how much, with pictures of the worst images",
    )  # fmt: skip
    parser.add_argument("--report-images", type=int, default=12, metavar="N", help="how many of them (%(default)s)")
    parser.add_argument(
        "--matrix", default="full", choices=("full", "v6.1"),
        help="the confusion matrix counts all images, or leaves out what v6.1 leaves out (default: %(default)s)",
    )  # fmt: skip


OPTIONS = parse_opt() if __name__ == "__main__" else None  # answers --help before torch is imported

import json  # noqa: E402
import zipfile  # noqa: E402
from collections.abc import Callable, Iterable  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from models.backend import Backend, find_weights, frame_size  # noqa: E402
from utils.data.dataset_yaml import load_dataset_yaml  # noqa: E402
from utils.data.loader import create_dataloader  # noqa: E402
from utils.data.options import LoaderOptions  # noqa: E402
from utils.device import select_device  # noqa: E402
from utils.evaluation import coco  # noqa: E402
from utils.evaluation import report as writers  # noqa: E402
from utils.evaluation.errors import explain_errors, worst_images  # noqa: E402
from utils.evaluation.evaluator import Evaluation, evaluate, log_evaluation  # noqa: E402
from utils.evaluation.plots import plot_study  # noqa: E402
from utils.files import atomic_write, increment_path  # noqa: E402
from utils.log import LOGGER  # noqa: E402

Results = tuple[tuple[float, ...], np.ndarray, tuple[float, ...]]


def run(
    data, weights=None, batch_size=32, imgsz=640, conf_thres=0.001, iou_thres=0.6, task="val", device="", workers=8,
    single_cls=False, augment=False, verbose=False, save_txt=False, save_hybrid=False, save_conf=False, save_json=False,
    project="runs/val", name="exp", exist_ok=False, half=True, dnn=False, model=None, dataloader=None,
    save_dir=Path(""), plots=True, callbacks=None, compute_loss=None, *,
    download=False, metrics="v6.1", report=(), report_images=12, matrix="full",
) -> Results:  # fmt: skip
    """Measures a detector, as the command line does. Half precision is the default here, on CUDA only, as in v6.1.

    model:        a detector in training, left in eval mode; then `data` is the mapping that `load_dataset_yaml`
                  returns, `dataloader` gives the batches, and results go to `save_dir`.
    callbacks:    an object whose `run(name, *arguments)` is called with v6.1's on_val_start, on_val_image_end,
                  on_val_batch_end and on_val_end.
    compute_loss: (raw, targets) -> (total, items).
    task:         a split, or "speed", "study" (the val split), or "benchmark" (the same in square frames).

    Returns:
        (P, R, mAP50, mAP50-95, box loss, objectness loss, class loss), mAP50-95 per class (nc,), and milliseconds per
        image of pre-processing, inference and NMS.
    """
    opt = argparse.Namespace(**locals())
    _check_options(opt)
    job = _load(opt) if model is None else _of_training(opt)
    if callbacks is not None:
        callbacks.run("on_val_start")
    result = evaluate(
        job.model.eval(), job.loader, job.names, job.device, job.dtype, conf_thres, iou_thres,
        single_cls=single_cls, augment=augment, hybrid=save_hybrid, observers=_observers(opt, job),
        compute_loss=compute_loss, autocast=job.autocast, count_every_image=matrix == "full",
    )  # fmt: skip
    measured = _report(opt, job, result)
    times = ", ".join(f"{ms:.1f} ms {what}" for what, ms in result.speed.items())
    LOGGER.info(f"per image at {job.imgsz} px, batch {batch_size}: {times}")
    if plots:
        writers.write_figures(result, job.save_dir)
        if callbacks is not None:
            callbacks.run("on_val_end")
    LOGGER.info(f"results in {job.save_dir}")
    return _returned(result, measured, metrics == "coco")


@dataclass
class Job:
    """What is measured with what."""

    model: torch.nn.Module
    loader: Iterable  # with its dataset
    data: dict  # of the data set YAML
    split: str
    names: list[str]
    device: torch.device
    dtype: torch.dtype
    save_dir: Path
    stem: str  # of the weights
    imgsz: int
    autocast: torch.dtype | None = None


def _load(opt: argparse.Namespace) -> Job:
    """Reads and checks everything, and only then makes the run's folder."""
    split = opt.task if opt.task in SPLITS else "val"
    device = select_device(opt.device, opt.batch_size)
    weights = cli.WEIGHTS if opt.weights is None else opt.weights
    weights = [find_weights(w, opt.download) for w in (weights if isinstance(weights, list | tuple) else [weights])]
    model = Backend(weights, device, opt.half and device.type == "cuda", opt.dnn, opt.data)
    model.check_use(opt.conf_thres, opt.iou_thres, opt.augment)
    imgsz = frame_size(model, opt.imgsz)
    rect = model.fixed is None and opt.task != "benchmark"  # else frames of one size, with the padding of a square
    data = load_dataset_yaml(opt.data, (split,), opt.download)
    names = ["item"] if opt.single_cls else data["names"]
    _check_classes(model, names, weights, opt.single_cls, opt.data)
    options = LoaderOptions(
        image_size=imgsz if rect else max(np.atleast_1d(imgsz).tolist()),
        batch_size=opt.batch_size,
        stride=model.stride,
        single_cls=opt.single_cls,
        pad=0.5 if rect and opt.task != "speed" else 0.0,
        rect=rect,
        workers=opt.workers,
        nc=len(names),
        prefix=f"{split}: ",
        channels=data["channels"],
    )
    loader, _ = create_dataloader(data[split], options)
    save_dir = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
    return Job(model, loader, data, split, names, device, model.dtype, save_dir, weights[0].stem, imgsz)


def _of_training(opt: argparse.Namespace) -> Job:
    parameter = next(opt.model.parameters())
    names = ["item"] if opt.single_cls else opt.data["names"]
    mixed = opt.half and parameter.device.type == "cuda" and parameter.dtype == torch.float32
    return Job(
        opt.model, opt.dataloader, opt.data, opt.task if opt.task in SPLITS else "val", names, parameter.device,
        parameter.dtype, Path(opt.save_dir), "", opt.imgsz, torch.float16 if mixed else None,
    )  # fmt: skip


def _observers(opt: argparse.Namespace, job: Job) -> list[Callable]:
    observers = [writers.picture_writer(job.save_dir, job.names)] if opt.plots else []
    if opt.save_txt or opt.save_hybrid:
        (job.save_dir / "labels").mkdir(exist_ok=True)
        observers.append(writers.text_writer(job.save_dir / "labels", job.loader.dataset.image_files, opt.save_conf))
    if opt.callbacks is not None:
        observers.append(_caller(opt.callbacks, job.names))
    return observers


def _report(opt: argparse.Namespace, job: Job, result: Evaluation) -> coco.CocoMetrics | None:
    """Prints the tables and writes the JSON that were asked for; COCO's numbers where they were measured."""
    every_class = opt.verbose or len(job.names) < 50
    log_evaluation(result, every_class)
    if "sizes" in opt.report:
        LOGGER.info(writers.size_table(result))
    if "errors" in opt.report:
        _explain_errors(result, opt.report_images, job.save_dir)
    save_json = opt.save_json or str(opt.data).endswith("coco.yaml")
    if not save_json and opt.metrics != "coco":
        return None
    truth, is_coco = _truth(job, opt.single_cls)
    if save_json:
        _write_json(job.save_dir / f"{job.stem}_predictions.json", result, truth)
    return _measure_coco(result, truth, opt.metrics == "coco", is_coco, job.save_dir, every_class)


def _returned(result: Evaluation, measured: coco.CocoMetrics | None, per_class: bool) -> Results:
    """What `run` returns; COCO's mAP where it was measured, as v6.1 does after its COCO evaluation."""
    numbers, maps = list(result.results), result.metrics.map_per_class(len(result.names))
    if measured:
        numbers[2:4] = np.nan_to_num([measured.statistics["AP50"], measured.statistics["AP"]]).tolist()
        if per_class:
            maps = np.where(np.isnan(measured.class_ap), numbers[3], measured.class_ap)
    return tuple(numbers), maps, tuple(result.speed.values())


def _check_options(opt: argparse.Namespace) -> None:
    cli.check_range("--batch-size", opt.batch_size, 1)
    cli.check_range("--workers", opt.workers, 0)
    cli.check_range("--conf-thres", opt.conf_thres, 0, 1)
    cli.check_range("--iou-thres", opt.iou_thres, 0, 1)
    cli.check_range("--report-images", opt.report_images, 0)
    choices = [("--task", opt.task, (*SPLITS, "speed", "study", "benchmark"))]
    choices += [("--metrics", opt.metrics, ("v6.1", "coco")), ("--matrix", opt.matrix, ("full", "v6.1"))]
    for flag, value, known in [*choices, *(("--report", name, REPORTS) for name in opt.report)]:
        if value not in known:
            raise ValueError(f"{flag} must be one of {', '.join(known)}, got {value!r}")
    if opt.metrics == "coco":
        coco.find_package()
    if opt.conf_thres > 0.001 and opt.task != "speed":
        LOGGER.warning(
            f"--conf-thres {opt.conf_thres} cuts the precision-recall curve short; 0.001 gives the usual mAP"
        )


def _check_classes(model: Backend, names: list[str], weights: list[Path], single_cls: bool, data_file: str) -> None:
    nc = len(model.names)
    if nc != len(names) and not single_cls:
        raise ValueError(
            f"{weights[0]} knows {nc} classes, but {data_file} has {len(names)}; "
            "validate with the data set that the weights were trained on"
        )


def _caller(callbacks, names: list[str]):
    """An observer that calls v6.1's hooks."""

    def call(batch) -> None:
        for image, path, found, native in zip(batch.images, batch.paths, batch.found, batch.native):
            if len(found):
                callbacks.run("on_val_image_end", found, native, path, names, image)
        callbacks.run("on_val_batch_end")

    return call


# --- errors, COCO -----------------------------------------------------------------------------------------------------


def _explain_errors(result: Evaluation, count: int, save_dir: Path) -> None:
    found = explain_errors(result.boxes, result.metrics.best_confidence)
    LOGGER.info(found.table())
    worst = worst_images(result.boxes, found, count)
    if files := writers.draw_errors(save_dir / "errors", result.boxes, found, worst, result.names):
        LOGGER.info(f"the {len(files)} images with most errors are drawn in {save_dir / 'errors'}")


def _truth(job: Job, single_cls: bool) -> tuple[coco.Truth, bool]:
    """The labels as COCO's metric wants them, and whether they are COCO's own."""
    dataset, entry = job.loader.dataset, job.data[job.split]
    truth = coco.truth_of(dataset, entry, job.names, single_cls)
    if single_cls or not str(entry).endswith("coco/val2017.txt"):
        return truth, False
    official = Path(job.data["path"]) / "annotations/instances_val2017.json"
    if official.is_file():
        return coco.official_truth(official, dataset.image_files, job.names), True
    return replace(truth, categories=coco.COCO_CATEGORIES), False


def _write_json(file: Path, result: Evaluation, truth: coco.Truth) -> None:
    predictions = coco.results(result.boxes, truth.image_ids, truth.categories)
    if predictions:
        with atomic_write(file, "w") as f:
            json.dump(predictions, f)
        LOGGER.info(f"{len(predictions)} predictions written to {file}")


def _measure_coco(
    result: Evaluation, truth: coco.Truth, asked: bool, is_coco: bool, save_dir: Path, verbose: bool
) -> coco.CocoMetrics | None:
    """COCO's metric where it was asked for, or where the data set is COCO, as v6.1 does."""
    if not asked and not is_coco:
        return None
    try:
        measured = coco.measure(result.boxes, truth)
    except ValueError as error:
        if asked:
            raise
        LOGGER.warning(str(error))  # v6.1 goes on without it
        return None
    LOGGER.info(writers.coco_table(measured, truth, result.names, verbose))
    LOGGER.info(writers.WHY_THEY_DIFFER)
    if not is_coco:
        coco.write_truth(save_dir / "ground_truth.json", truth, result.boxes, result.names)
    return measured


# --- speed, study -----------------------------------------------------------------------------------------------------


def study(opt: argparse.Namespace) -> None:
    """mAP and time of each weight file at each of STUDY_SIZES: study_<data>_<weights>.txt in the current folder, one
    row of ten numbers (what `run` returns) for each size; then all study_*.txt as study.zip, and study.png."""
    files = []
    for weights in opt.weights if isinstance(opt.weights, list) else [opt.weights]:
        rows = []
        for size in STUDY_SIZES:
            options = {**vars(opt), "weights": [weights], "imgsz": size, "half": True, "save_json": False}
            numbers, _, times = run(**options, plots=False)
            rows.append((*numbers, *times))
        file = Path(f"study_{Path(opt.data).stem}_{Path(weights).stem}.txt")
        with atomic_write(file, "w") as f:
            np.savetxt(f, rows, fmt="%10.4g")
        files.append(file)
    with atomic_write("study.zip") as f, zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(Path().glob("study_*.txt")):
            archive.write(file)
    plot_study(files, "study.png", reference=Path(opt.data).stem == "coco")
    LOGGER.info(f"study: {', '.join(map(str, files))}, study.zip and study.png")


def main(opt: argparse.Namespace) -> None:
    """The command line."""
    LOGGER.info(cli.describe("val", opt))
    if opt.task == "speed":
        options = {**vars(opt), "conf_thres": 0.25, "iou_thres": 0.45, "half": True, "save_json": False}
        for weights in opt.weights if isinstance(opt.weights, list) else [opt.weights]:
            run(**{**options, "weights": [weights]}, plots=False)
    elif opt.task == "study":
        study(opt)
    else:
        run(**vars(opt))


if __name__ == "__main__":
    cli.run(main, OPTIONS, "val")
