"""Validation: one measured pass of a detector over a labelled split, and its tables, files and charts."""

import copy
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from models.backend import Backend, find_weights, frame_size
from utils import cli, user_blocks
from utils.class_names import difference
from utils.data.dataset_yaml import SPLITS, load_dataset_yaml
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions
from utils.device import select_device
from utils.evaluation import coco
from utils.evaluation import report as writers
from utils.evaluation.charts import plot_study
from utils.evaluation.errors import explain_errors, worst_images
from utils.evaluation.evaluator import EvaluatedBatch, Evaluation, EvaluationSettings, evaluate, log_evaluation
from utils.evaluation.numbers import write_numbers
from utils.files import atomic_write, increment_path
from utils.log import LOGGER

STUDY_SIZES = range(256, 1536 + 128, 128)  # pixels


class Results(NamedTuple):
    """What a validation returns; it unpacks as v6.1's result."""

    numbers: tuple[float, ...]  # P, R, mAP50, mAP50-95, box loss, objectness loss, class loss
    maps: np.ndarray  # (nc,) mAP50-95 of each class
    milliseconds: tuple[float, ...]  # per image: pre-processing, inference, NMS


@dataclass(frozen=True)
class Setup:
    """Everything that one pass works on."""

    model: torch.nn.Module
    loader: Iterable  # with its dataset
    data: dict  # of the data set YAML
    split: str
    names: list[str]
    device: torch.device
    dtype: torch.dtype
    save_dir: Path
    stem: str  # file name of the weights, without suffix
    imgsz: int
    autocast: torch.dtype | None = None


def validate(
    opt: cli.Options,
    model: torch.nn.Module | None = None,
    dataloader: Iterable | None = None,
    save_dir: Path = Path(),
    plots: bool = True,
    callbacks: Any = None,
    compute_loss: Callable | None = None,
) -> Results:
    """Measures a detector on a split. `opt` holds the options of val.py; see `val.run` for the others."""
    _check_options(opt)
    setup = _load_setup(opt) if model is None else _of_training(opt, model, dataloader, save_dir)
    if callbacks is not None:
        callbacks.run("on_val_start")
    result = evaluate(
        setup.model.eval(), setup.loader, setup.names, setup.device, setup.dtype, _settings(opt), compute_loss,
        setup.autocast, _observers(opt, setup, plots, callbacks),
    )  # fmt: skip
    measured = _report(opt, setup, result)
    times = ", ".join(f"{ms:.1f} ms {step}" for step, ms in result.speed.items())
    LOGGER.info(f"per image at {setup.imgsz} px, batch {opt.batch_size}: {times}")
    if plots:
        _write_numbers(opt, setup, result, measured)
        writers.write_figures(result, setup.save_dir)
        if callbacks is not None:
            callbacks.run("on_val_end")
    if "page" in opt.report:
        _write_page(opt, setup, result)
    LOGGER.info(f"results in {setup.save_dir}")
    return _returned(result, measured, opt.metrics == "coco")


def _check_options(opt: cli.Options) -> None:
    if opt.metrics == "coco":
        coco.find_package()
    if opt.conf_thres > 0.001 and opt.task != "speed":
        LOGGER.warning(
            f"--conf-thres {opt.conf_thres} cuts the precision-recall curve short; use 0.001 to measure mAP as usual"
        )


def _settings(opt: cli.Options) -> EvaluationSettings:
    return EvaluationSettings(
        conf_thres=opt.conf_thres, iou_thres=opt.iou_thres, single_cls=opt.single_cls, augment=opt.augment,
        hybrid=opt.save_hybrid, count_every_image=opt.matrix == "full",
    )  # fmt: skip


def _split(opt: cli.Options) -> str:
    return opt.task if opt.task in SPLITS else "val"


def _load_setup(opt: cli.Options) -> Setup:
    """Reads and checks everything, and only then makes the run's folder."""
    split = _split(opt)
    user_blocks.use(opt.blocks)
    device = select_device(opt.device, opt.batch_size)
    weights = [find_weights(file, cli.fetches(opt.download, "weights")) for file in opt.weights or [cli.WEIGHTS]]
    model = Backend(weights, device, opt.half and device.type == "cuda", opt.dnn, opt.data, opt.trust_weights)
    model.check_use(opt.conf_thres, opt.iou_thres, opt.augment)
    imgsz = frame_size(model, opt.imgsz)
    rect = model.fixed is None and opt.task != "benchmark"  # else frames of one size, with the padding of a square
    if opt.data == cli.DATA:
        _check_number_of_classes(model, load_dataset_yaml(opt.data, ())["names"], weights, opt)  # before it is drawn
    data = load_dataset_yaml(opt.data, (split,), cli.fetches(opt.download, "data"), opt.download_to)
    names = ["item"] if opt.single_cls else data["names"]
    _check_classes(model, names, weights, opt)
    options = LoaderOptions(
        image_size=imgsz if rect else max(np.atleast_1d(imgsz).tolist()), batch_size=opt.batch_size,
        stride=model.stride, single_cls=opt.single_cls, pad=opt.pad if rect and opt.task != "speed" else 0.0, rect=rect,
        workers=opt.workers, nc=len(names), prefix=f"{split}: ", channels=_channels(model, data, weights, opt.data),
        fix_labels=opt.fix_labels,
    )  # fmt: skip
    loader, _ = create_dataloader(data[split], options)
    save_dir = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
    return Setup(
        model=model, loader=loader, data=data, split=split, names=names, device=device, dtype=model.dtype,
        save_dir=save_dir, stem=weights[0].stem, imgsz=imgsz,
    )  # fmt: skip


def _of_training(opt: cli.Options, model: torch.nn.Module, loader: Iterable, save_dir: Path) -> Setup:
    """Does the same for a model in training, whose data set and loader are given."""
    parameter = next(model.parameters())
    mixed = opt.half and parameter.device.type == "cuda" and parameter.dtype == torch.float32
    return Setup(
        model=model, loader=loader, data=opt.data, split=_split(opt),
        names=["item"] if opt.single_cls else opt.data["names"], device=parameter.device, dtype=parameter.dtype,
        save_dir=save_dir, stem="", imgsz=opt.imgsz, autocast=torch.float16 if mixed else None,
    )  # fmt: skip


def _check_number_of_classes(model: Backend, names: list[str], weights: list[Path], opt: cli.Options) -> None:
    nc, data_file = len(model.names), opt.data
    if nc != len(names) and not opt.single_cls:
        if "data" in opt.given:
            fix = "; validate with the data set that the weights were trained on"
        else:
            fix = ", the data set where none is given; name the data set that the weights were trained on: --data FILE"
            fix += " (official weights: --data data/coco.yaml)" if nc == 80 else ""
        raise ValueError(f"{weights[0]} has {nc} class{'es' * (nc != 1)}, but {data_file} has {len(names)}{fix}")


def _check_classes(model: Backend, names: list[str], weights: list[Path], opt: cli.Options) -> None:
    _check_number_of_classes(model, names, weights, opt)
    if not opt.single_cls and (words := difference(model.names, names, weights[0], opt.data)):
        LOGGER.warning(
            f"the classes are named {words}; classes are compared by number, "
            "so the metrics are wrong unless both names mean the same"
        )


def _channels(model: Backend, data: dict, weights: list[Path], data_file: str) -> int:
    """Returns the channels to read, those of the weights: colour and grey are read as each other."""
    said = data["channels"]
    if said not in (model.channels, 3) and not {said, model.channels} <= {1, 3}:
        raise ValueError(
            f"{weights[0]} takes images of {model.channels} channels, but {data_file} says channels: {said}; validate "
            "with the data set that the weights were trained on"
        )
    return model.channels


def _observers(opt: cli.Options, setup: Setup, plots: bool, callbacks: Any) -> list[Callable]:
    observers = [writers.MosaicWriter(setup.save_dir, setup.names, setup.loader)] if plots else []
    if opt.save_txt or opt.save_hybrid:
        folder = setup.save_dir / "labels"
        folder.mkdir(exist_ok=True)
        observers.append(writers.text_writer(folder, setup.loader.dataset.image_files, opt.save_conf))
    if callbacks is not None:
        observers.append(_hook_caller(callbacks, setup.names))
    return observers


def _hook_caller(callbacks: Any, names: list[str]) -> Callable:
    """Returns an observer that calls v6.1's hooks."""

    def call(batch: EvaluatedBatch) -> None:
        for image, path, boxes, native in zip(batch.images, batch.paths, batch.detections, batch.native):
            if len(boxes):
                callbacks.run("on_val_image_end", boxes, native, path, names, image)
        callbacks.run("on_val_batch_end")

    return call


def _returned(result: Evaluation, measured: coco.CocoMetrics | None, per_class: bool) -> Results:
    """Returns the result, with COCO's mAP where it was measured, as v6.1 does after its COCO evaluation."""
    numbers, maps = list(result.results), result.metrics.map_per_class(len(result.names))
    if measured:
        numbers[2:4] = np.nan_to_num([measured.statistics["AP50"], measured.statistics["AP"]]).tolist()
        if per_class:
            maps = np.where(np.isnan(measured.class_ap), numbers[3], measured.class_ap)
    return Results(numbers=tuple(numbers), maps=maps, milliseconds=tuple(result.speed.values()))


def _settings_shown(opt: cli.Options, setup: Setup) -> dict[str, Any]:
    """Returns the options as they may be stored; `data` as text, which is the content of a YAML in a Python call."""
    settings = cli.without_secrets(vars(opt))
    return settings if isinstance(opt.data, str) else {**settings, "data": str(setup.data.get("path", ""))}


def _write_page(opt: cli.Options, setup: Setup, result: Evaluation) -> None:
    from utils.evaluation.run_page import About, write_run_page

    options = _settings_shown(opt, setup)
    data = {"data set": options["data"], "split": setup.split, "images": f"{result.images:,}"}
    data |= {"objects": f"{result.labels_per_class.sum():,}", "classes": len(result.names)}
    about = About(
        title=f"Validation {setup.save_dir.name}: {setup.stem or 'a model'} on {Path(options['data']).name}",
        given={name: value for name, value in options.items() if name in opt.given}, options=options, data=data,
        facts={f"ms per image: {', '.join(result.speed)}": ", ".join(f"{ms:.1f}" for ms in result.speed.values())},
    )  # fmt: skip
    LOGGER.info(f"page of the run: {write_run_page(setup.save_dir, about, result)}")


def _write_numbers(opt: cli.Options, setup: Setup, result: Evaluation, measured: coco.CocoMetrics | None) -> None:
    settings = _settings_shown(opt, setup)
    about = {"command": "val", "split": setup.split, "image_size": setup.imgsz, "settings": settings}
    write_numbers(result, setup.save_dir, about, measured and measured.statistics, opt.latex)


# --- tables, errors, COCO ---------------------------------------------------------------------------------------------


def _report(opt: cli.Options, setup: Setup, result: Evaluation) -> coco.CocoMetrics | None:
    """Prints the tables and writes the JSON that were asked for; returns COCO's numbers where they were measured."""
    every_class = opt.verbose or len(setup.names) < 50
    log_evaluation(result, every_class)
    if "sizes" in opt.report:
        LOGGER.info(writers.size_table(result))
    if "errors" in opt.report:
        _explain_errors(result, opt.report_images, setup.save_dir)
    only_time = opt.task == "speed"
    save_json = opt.save_json or (str(opt.data).endswith("coco.yaml") and not only_time)
    if not save_json and opt.metrics != "coco":
        return None
    truth, is_coco = _truth(setup, opt.single_cls)
    if save_json:
        _write_json(setup.save_dir / f"{setup.stem}_predictions.json", result, truth)
    measured = _measure_coco(result, truth, opt.metrics == "coco", is_coco)
    if measured:
        LOGGER.info(writers.coco_table(measured, truth, result.names, every_class))
        LOGGER.info(writers.COCO_AND_V61)
        if not is_coco and not only_time:
            coco.write_truth(setup.save_dir / "ground_truth.json", truth, result.boxes, result.names)
    return measured


def _explain_errors(result: Evaluation, count: int, save_dir: Path) -> None:
    errors = explain_errors(result.boxes, result.metrics.best_confidence)
    LOGGER.info(errors.table())
    worst = worst_images(result.boxes, errors, count)
    if files := writers.draw_errors(save_dir / "errors", result.boxes, errors, worst, result.names):
        LOGGER.info(f"drawings of the images with the most errors: {len(files)} in {save_dir / 'errors'}")


def _truth(setup: Setup, single_cls: bool) -> tuple[coco.Truth, bool]:
    """Returns the labels as COCO's metric takes them, and whether they are COCO's own."""
    dataset, entry = setup.loader.dataset, setup.data[setup.split]
    truth = coco.truth_of(dataset, entry, setup.names, single_cls)
    if single_cls or not str(entry).endswith("coco/val2017.txt"):
        return truth, False
    official = Path(setup.data["path"]) / "annotations/instances_val2017.json"
    if official.is_file():
        return coco.official_truth(official, dataset.image_files, setup.names), True
    return replace(truth, categories=coco.COCO_CATEGORIES), False


def _write_json(file: Path, result: Evaluation, truth: coco.Truth) -> None:
    rows = coco.results(result.boxes, truth.image_ids, truth.categories)
    if rows:
        with atomic_write(file, "w") as f:
            json.dump(rows, f)
        LOGGER.info(f"{len(rows)} detection{'s' * (len(rows) > 1)} written to {file}")


def _measure_coco(result: Evaluation, truth: coco.Truth, asked: bool, is_coco: bool) -> coco.CocoMetrics | None:
    """Returns COCO's metric where it was asked for, or where the data set is COCO, as v6.1 does."""
    if not asked and not is_coco:
        return None
    try:
        return coco.measure(result.boxes, truth)
    except ValueError as error:
        if asked:
            raise
        LOGGER.warning(str(error))  # v6.1 goes on without it
        return None


# --- speed, study -----------------------------------------------------------------------------------------------------


def _changed(opt: cli.Options, **changes) -> cli.Options:
    """Returns a copy of the options with some of them replaced."""
    changed = copy.copy(opt)
    vars(changed).update(changes)
    return changed


def measure_speed(opt: cli.Options) -> None:
    """Measures the time that each weights file takes, with the thresholds of detect.py, and writes no JSON."""
    for weights in opt.weights:
        changes = {"weights": [weights], "conf_thres": 0.25, "iou_thres": 0.45, "half": True, "save_json": False}
        validate(_changed(opt, **changes), plots=False)


def study(opt: cli.Options) -> None:
    """Measures each weights file at each of STUDY_SIZES.

    Writes into the current folder study_<data>_<weights>.txt with a row of ten numbers per size (those of `Results`,
    without `maps`), study.zip of all study_*.txt there, and the chart study.png.
    """
    files = []
    for weights in opt.weights:
        rows = []
        for size in STUDY_SIZES:
            changes = {"weights": [weights], "imgsz": size, "half": True, "save_json": False}
            result = validate(_changed(opt, **changes), plots=False)
            rows.append((*result.numbers, *result.milliseconds))
        file = Path(f"study_{Path(opt.data).stem}_{Path(weights).stem}.txt")
        with atomic_write(file, "w") as f:
            np.savetxt(f, rows, fmt="%10.4g")
        files.append(file)
    with atomic_write("study.zip") as f, zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(Path().glob("study_*.txt")):
            archive.write(file)
    plot_study(files, "study.png", reference=Path(opt.data).stem == "coco")
    LOGGER.info(f"study: {', '.join(map(str, files))}, study.zip and study.png")
