"""Measure a trained detector on a labelled data set.

    python val.py --weights runs/train/exp/weights/best.pt --data data/shapes.yaml --img 640

Results, curves, the confusion matrix and sample pictures go to runs/val/exp.
"""

import argparse
from pathlib import Path

from utils import cli


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
    parser.add_argument("--task", default="val", choices=("train", "val", "test"), help="split of the data set")
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
    cli.add_run_folder(parser, "runs/val")
    return cli.parse(parser, known)


OPTIONS = parse_opt() if __name__ == "__main__" else None  # answers --help before torch is imported

import json  # noqa: E402

import torch  # noqa: E402

from models.backend import Backend, find_weights, frame_size  # noqa: E402
from utils.data.dataset_yaml import load_dataset_yaml  # noqa: E402
from utils.data.loader import create_dataloader  # noqa: E402
from utils.device import select_device  # noqa: E402
from utils.evaluation.evaluator import evaluate, log_evaluation  # noqa: E402
from utils.evaluation.report import (  # noqa: E402
    COCO_CATEGORIES,
    json_collector,
    picture_writer,
    text_writer,
    write_figures,
)
from utils.files import atomic_write, increment_path  # noqa: E402
from utils.log import LOGGER  # noqa: E402


def run(
    data,
    weights=cli.WEIGHTS,
    batch_size=32,
    imgsz=640,
    conf_thres=0.001,
    iou_thres=0.6,
    task="val",
    device="",
    workers=8,
    single_cls=False,
    augment=False,
    verbose=False,
    save_txt=False,
    save_hybrid=False,
    save_conf=False,
    save_json=False,
    project="runs/val",
    name="exp",
    exist_ok=False,
    half=True,
    plots=True,
    download=False,
    dnn=False,
) -> tuple[tuple[float, ...], "torch.Tensor", tuple[float, ...]]:
    """Measures a detector, as the command line does. Half precision is the default here, on CUDA only, as in v6.1.

    Returns:
        (P, R, mAP50, mAP50-95, 0, 0, 0), mAP50-95 per class (nc,), and milliseconds per image of pre-processing,
        inference and NMS.
    """
    _check_options(batch_size, workers, conf_thres, iou_thres)
    device = select_device(device, batch_size)
    weights = [find_weights(w, download) for w in (weights if isinstance(weights, list | tuple) else [weights])]
    model = Backend(weights, device, half and device.type == "cuda", dnn, data).eval()
    model.warn_of_suppression(conf_thres, iou_thres)
    imgsz = frame_size(model, imgsz)
    rect = model.fixed is None  # else frames of the one size, with the padding of a square
    data_file, data = data, load_dataset_yaml(data, (task,), download)
    names = ["item"] if single_cls else data["names"]
    _check_classes(model, names, weights, single_cls, data_file)

    loader, dataset = create_dataloader(
        data[task], imgsz if rect else max(imgsz), batch_size, model.stride, single_cls, pad=0.5 if rect else 0.0,
        rect=rect, workers=workers, nc=len(names), prefix=f"{task}: ", channels=data["channels"],
    )  # fmt: skip
    save_dir = increment_path(Path(project) / name, exist_ok, mkdir=True)
    observers = [picture_writer(save_dir, names)] if plots else []
    predictions = []
    if save_txt or save_hybrid:
        (save_dir / "labels").mkdir(exist_ok=True)
        observers.append(text_writer(save_dir / "labels", dataset.image_files, save_conf))
    if save_json or str(data_file).endswith("coco.yaml"):
        is_coco = str(data[task]).endswith("coco/val2017.txt")
        observers.append(json_collector(predictions, COCO_CATEGORIES if is_coco else range(len(names))))

    result = evaluate(
        model, loader, names, device, model.dtype, conf_thres, iou_thres,
        single_cls=single_cls, augment=augment, hybrid=save_hybrid, observers=observers,
    )  # fmt: skip
    log_evaluation(result, verbose or len(names) < 50)
    times = ", ".join(f"{ms:.1f} ms {what}" for what, ms in result.speed.items())
    LOGGER.info(f"per image at {imgsz} px, batch {batch_size}: {times}")
    if predictions:
        file = save_dir / f"{weights[0].stem}_predictions.json"
        with atomic_write(file, "w") as f:
            json.dump(predictions, f)
        LOGGER.info(f"{len(predictions)} predictions written to {file}")
    if plots:
        write_figures(result, save_dir)
    LOGGER.info(f"results in {save_dir}")
    return result.results, result.metrics.map_per_class(len(names)), tuple(result.speed.values())


def _check_options(batch_size: int, workers: int, conf_thres: float, iou_thres: float) -> None:
    cli.check_range("--batch-size", batch_size, 1)
    cli.check_range("--workers", workers, 0)
    cli.check_range("--conf-thres", conf_thres, 0, 1)
    cli.check_range("--iou-thres", iou_thres, 0, 1)
    if conf_thres > 0.001:
        LOGGER.warning(f"--conf-thres {conf_thres} cuts the precision-recall curve short; 0.001 gives the usual mAP")


def _check_classes(model: Backend, names: list[str], weights: list[Path], single_cls: bool, data_file: str) -> None:
    nc = len(model.names)
    if nc != len(names) and not single_cls:
        raise ValueError(
            f"{weights[0]} knows {nc} classes, but {data_file} has {len(names)}; "
            "validate with the data set that the weights were trained on"
        )


def main(opt: argparse.Namespace) -> None:
    """The command line."""
    LOGGER.info(cli.describe("val", opt))
    run(**vars(opt))


if __name__ == "__main__":
    cli.run(main, OPTIONS, "val")
