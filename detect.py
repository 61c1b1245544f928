"""Find objects in pictures.

    python detect.py --weights runs/train/exp/weights/best.pt --source photos/

Pictures with boxes go to runs/detect/exp.
"""

import argparse
from pathlib import Path

from utils import cli


def parse_opt(known: bool = False) -> argparse.Namespace:
    """The command line; with `known` its defaults."""
    naming = "Results are named as their pictures; where two share a name, it follows their folder's: cam1_7.jpg."
    parser = argparse.ArgumentParser(description=f"Find objects in pictures. {naming}")
    parser.add_argument("--weights", nargs="+", default=cli.WEIGHTS, help=".pt file; several make an ensemble")
    parser.add_argument("--download", action="store_true", help="fetch official weights that are not there")
    parser.add_argument("--source", default="data/images", help="image file, folder or glob (default: %(default)s)")
    parser.add_argument("--data", default=cli.DATA, help="data set YAML, for class names that the weights lack")
    parser.add_argument("--imgsz", "--img", "--img-size", type=int, nargs="+", default=[640], help="height, width")
    parser.add_argument("--conf-thres", type=float, default=0.25, help="lowest confidence shown (default: %(default)s)")
    parser.add_argument("--iou-thres", type=float, default=0.45, help="overlap at which NMS drops the weaker box")
    parser.add_argument("--max-det", type=int, default=1000, help="most boxes in a picture (default: %(default)s)")
    parser.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: a GPU if there is one)")
    parser.add_argument("--save-txt", action="store_true", help="write a label file per picture")
    parser.add_argument("--save-conf", action="store_true", help="add the confidence to the label files")
    parser.add_argument("--save-crop", action="store_true", help="write every box as a picture of its own")
    parser.add_argument("--nosave", action="store_true", help="write no pictures")
    parser.add_argument("--classes", nargs="+", type=int, help="numbers of the classes to show, such as 0 or 0 2 3")
    parser.add_argument("--agnostic-nms", action="store_true", help="boxes of different classes suppress each other")
    parser.add_argument("--augment", action="store_true", help="test-time augmentation: three sizes, one mirrored")
    parser.add_argument("--line-thickness", type=int, default=3, help="of boxes, in pixels (default: %(default)s)")
    parser.add_argument("--hide-labels", action="store_true", help="boxes without text")
    parser.add_argument("--hide-conf", action="store_true", help="text without confidence")
    parser.add_argument("--half", action="store_true", help="float16 on CUDA")
    cli.add_run_folder(parser, "runs/detect")
    return cli.parse(parser, known)


OPTIONS = parse_opt() if __name__ == "__main__" else None  # answers --help before torch is imported

import torch  # noqa: E402

from models.backend import Backend, find_weights  # noqa: E402
from utils.boxes import check_image_size, scale_boxes  # noqa: E402
from utils.device import Timer, select_device  # noqa: E402
from utils.evaluation.plots import Annotator, class_name, colors  # noqa: E402
from utils.files import increment_path  # noqa: E402
from utils.inference.nms import non_max_suppression  # noqa: E402
from utils.inference.outputs import (  # noqa: E402
    crop,
    result_stems,
    summary,
    write_crop,
    write_image,
    write_labels,
)
from utils.inference.sources import list_sources, read_sources, to_input  # noqa: E402
from utils.log import LOGGER  # noqa: E402


def run(
    weights=cli.WEIGHTS,
    source="data/images",
    data=cli.DATA,
    imgsz=(640, 640),
    conf_thres=0.25,
    iou_thres=0.45,
    max_det=1000,
    device="",
    save_txt=False,
    save_conf=False,
    save_crop=False,
    nosave=False,
    classes=None,
    agnostic_nms=False,
    augment=False,
    project="runs/detect",
    name="exp",
    exist_ok=False,
    line_thickness=3,
    hide_labels=False,
    hide_conf=False,
    half=False,
    download=False,
) -> Path:
    """Finds objects in the pictures of `source`, as the command line does, and returns the folder of results.

    Each result is named as its picture, see `result_stems` for pictures of the same name.
    """
    imgsz, classes = _check_options(imgsz, conf_thres, iou_thres, max_det, classes, line_thickness)
    files = list_sources(source)
    device = select_device(device)
    weights = [find_weights(w, download) for w in (weights if isinstance(weights, list | tuple) else [weights])]
    model = Backend(weights, device, half).eval()
    names = model.names
    if wrong := [c for c in classes or () if not 0 <= c < len(names)]:
        raise ValueError(f"--classes: {weights[0]} has classes 0 to {len(names) - 1}, got {wrong}")
    size = check_image_size(imgsz, model.stride)
    stems = dict(zip(files, result_stems(files)))
    save_dir, seen = None, 0
    timers = [Timer(device) for _ in range(3)]

    for path, image in read_sources(files):
        if save_dir is None:  # only now is there something to save
            save_dir = increment_path(Path(project) / name, exist_ok, mkdir=True)
        with timers[0]:
            pixels, frame = to_input(image, size, model.stride)
            pixels = pixels.to(device).to(model.dtype) / 255
        with timers[1], torch.inference_mode():
            decoded = model(pixels, augment=augment)[0]
        with timers[2]:
            boxes = non_max_suppression(decoded, conf_thres, iou_thres, classes, agnostic_nms, max_det=max_det)[0]
        # whole pixels, as the pictures and label files of v6.1 have them
        boxes = torch.cat((scale_boxes(boxes[:, :4], frame, image.shape[:2]).round(), boxes[:, 4:]), 1).cpu()
        seen += 1
        found = f"{frame[0]}x{frame[1]} {summary(boxes, names)}, {timers[1].last:.3f} s"
        LOGGER.info(f"{seen}/{len(files)} {path}: {found}")

        if save_txt:
            (save_dir / "labels").mkdir(exist_ok=True)
            write_labels(save_dir / "labels" / f"{stems[path]}.txt", boxes.flip(0), image.shape[:2], save_conf)
        if save_crop:
            for box in boxes.flip(0):
                picture = crop(image, box[:4])
                if picture.size:
                    write_crop(save_dir / "crops", names[int(box[5])], stems[path], picture)
        if not nosave:
            drawn = draw(image, boxes, names, line_thickness, hide_labels, hide_conf)
            write_image(save_dir / f"{stems[path]}{path.suffix}", drawn)

    times = ", ".join(f"{1000 * t.total / seen:.1f} ms {what}" for t, what in zip(timers, ("read", "network", "NMS")))
    LOGGER.info(f"{seen} pictures, per picture: {times}; results in {save_dir}")
    return save_dir


def _check_options(
    imgsz, conf_thres, iou_thres, max_det, classes, line_thickness
) -> tuple[list[int], list[int] | None]:
    """The frame (height, width) and the classes as lists; ValueError for a number that makes no sense."""
    cli.check_range("--conf-thres", conf_thres, 0, 1)
    cli.check_range("--iou-thres", iou_thres, 0, 1)
    cli.check_range("--max-det", max_det, 1)
    cli.check_range("--line-thickness", line_thickness, 0)
    sides = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sides) not in (1, 2):
        raise ValueError(f"--imgsz takes one number, or height and width, got {sides}")
    return (sides * 2)[:2], [classes] if isinstance(classes, int) else classes


def draw(image, boxes, names, line_thickness=3, hide_labels=False, hide_conf=False):
    """A BGR picture (H, W, 3) with boxes (n, 6) drawn, the most confident on top."""
    annotator = Annotator(image, line_thickness, example="".join(names))
    for *box, confidence, c in boxes.flip(0).tolist():
        text = "" if hide_labels else class_name(names, int(c)) + ("" if hide_conf else f" {confidence:.2f}")
        annotator.box_label(box, text, colors(int(c), bgr=True))
    return annotator.result()


def main(opt: argparse.Namespace) -> None:
    """The command line."""
    LOGGER.info(cli.describe("detect", opt))
    run(**vars(opt))


if __name__ == "__main__":
    cli.run(main, OPTIONS, "detect")
