"""Shows what attention did with a picture: one page, from one or two trained detectors.

python tools/attend.py photo.jpg --weights runs/train/exp/weights/best.pt
python tools/attend.py photo.jpg --weights soca.pt se.pt --html soca_beside_se.html

For each block with a gate (SOCA, SE, ECA, CBAM, CoordAttention, SimAM, GCT; also inside LSRAG and NLRG), in any place:
its gate per channel; the channels it raises and lowers most, with their maps; where in the picture lies what it
favours; Grad-CAM of the detections with the gate and without; for SOCA the spectrum of the channels' covariance, and
how far five Newton-Schulz steps are from its root. And the detections themselves, with and without.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli

WITHOUT = {"mean": "its mean over the channels", "one": "1, as if the block were not there"}


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", help="image file")
    parser.add_argument("--weights", nargs="+", required=True, metavar="FILE", help="one .pt file, or two to compare")
    parser.add_argument("--html", type=Path, default=Path("attend.html"), help="page to write (default: %(default)s)")
    parser.add_argument("--imgsz", "--img", type=int, default=640, help="longer side in pixels (default: %(default)s)")
    parser.add_argument("--conf-thres", type=float, default=0.25, help="lowest confidence (default: %(default)s)")
    parser.add_argument("--iou-thres", type=float, default=0.45, help="overlap at which NMS drops the weaker box")
    parser.add_argument("--without", choices=list(WITHOUT), default="mean",
        help="what stands for a gate where it is left out: mean, its mean over the channels, so that the layers behind "
        "see a map as loud as they know it; one, as if the block were not there (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--detections",
        type=int,
        default=4,
        metavar="N",
        help="explain N detections, the most confident of each class first (default: %(default)s)",
    )
    parser.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: a GPU if there is one)")
    return parser.parse_args(argv)


OPTIONS = parse_options() if __name__ == "__main__" else None  # answers --help before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402

from models.attention_view import (  # noqa: E402
    Activation,
    class_activation,
    gate_of_statistic,
    gated_blocks,
    spectrum,
    trace_detections,
    view_blocks,
    without_gates,
)
from models.backend import find_weights, load_model  # noqa: E402
from models.common import SE, SOCA  # noqa: E402
from tools.attend_report import Block, Explained, Finding, as_html, as_text  # noqa: E402
from utils.boxes import check_image_size  # noqa: E402
from utils.data.images import read_image  # noqa: E402
from utils.data.letterbox import letterbox, to_input  # noqa: E402
from utils.device import select_device  # noqa: E402
from utils.files import atomic_write  # noqa: E402


def explain(model: torch.nn.Module, title: str, picture: np.ndarray, size: int, options) -> Explained:
    """Everything the page says of one model and a BGR picture (H, W, 3)."""
    stride = model.image_multiple
    device = next(model.parameters()).device
    image = to_input(picture, size, stride)[0].to(device).float() / 255
    limits = {"conf_thres": options.conf_thres, "iou_thres": options.iou_thres}
    found = trace_detections(model, image, **limits)
    rows, classes = found.rows.tolist(), found.boxes[:, 5].int().tolist()
    shown = classes_in_turn(classes)[: options.detections]
    explained = [rows[i] for i in shown], [classes[i] for i in shown]
    with_gate = class_activation(model, image, *explained)
    with without_gates(model, options.without):
        without = trace_detections(model, image, **limits)
        without_gate = class_activation(model, image, *explained)
        scores = score_rows(model, image, rows, classes)
    boxes = found.boxes.cpu().numpy()
    findings = [Finding(box, int(stride), score) for box, stride, score in zip(boxes, found.strides, scores)]
    return Explained(
        title, list(model.names), letterbox(picture, size, stride=stride)[0], findings, without.boxes.cpu().numpy(),
        shown, [_block(model, name, view, with_gate, without_gate) for name, view in view_blocks(model, image).items()],
    )  # fmt: skip


def classes_in_turn(classes: list[int]) -> list[int]:
    """Places in a list of classes: the first of each class, then the second of each, ..."""
    seen = [classes[:i].count(label) for i, label in enumerate(classes)]
    return sorted(range(len(classes)), key=seen.__getitem__)


@torch.no_grad()
def score_rows(model: torch.nn.Module, image: torch.Tensor, rows: list[int], classes: list[int]) -> list[float]:
    """Objectness times class score of rows of the decoded output."""
    decoded = model(image)[0][0]
    return [float(decoded[row, 4] * decoded[row, 5 + label]) for row, label in zip(rows, classes)]


def _block(model, name: str, view, with_gate: Activation, without_gate: Activation) -> Block:
    block = gated_blocks(model)[name]
    measured = spectrum(view.maps) if isinstance(block, SOCA) else None
    still = gate_of_statistic(block, np.zeros(len(view.gate))) if isinstance(block, SOCA | SE) else None
    return Block(
        name, view.maps, view.gate, [(a[name], b[name]) for a, b in zip(with_gate.maps, without_gate.maps)],
        still, measured, gate_of_statistic(block, measured.s_root) if measured else None,
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """The command."""
    cli.check_range("--imgsz", options.imgsz, 32)
    cli.check_range("--conf-thres", options.conf_thres, 0, 1)
    cli.check_range("--iou-thres", options.iou_thres, 0, 1)
    cli.check_range("--detections", options.detections, 0)
    if len(options.weights) > 2:
        raise ValueError(f"--weights takes one file, or two to compare, got {len(options.weights)}")
    if not options.html.parent.is_dir() or options.html.is_dir():
        raise ValueError(f"--html: {options.html} cannot be written; name a file in a folder that is there")
    picture = read_image(options.picture)
    device = select_device(options.device)
    told = []
    for file in options.weights:
        model = load_model(find_weights(file), device).requires_grad_(False)
        if not gated_blocks(model):
            raise ValueError(
                f"{file} has no attention with a gate, so there is nothing to show. Train one with "
                f"--attention SOCA@P5, or look at its layers with detect.py --visualize"
            )
        size = check_image_size(options.imgsz, model.image_multiple)
        told.append(explain(model, file, picture, size, options))
    print("\n\n".join(as_text(one) for one in told))
    with atomic_write(options.html, "w") as file:
        file.write(as_html(told, Path(options.picture).name, WITHOUT[options.without], options.conf_thres))
    print(f"\n{options.html}: the page")


if __name__ == "__main__":
    cli.run(main, OPTIONS, "attend.py")
