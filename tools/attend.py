"""Shows what attention does with an image, or what it is worth on a split; for one or two trained detectors.

python tools/attend.py photo.jpg --weights runs/train/exp/weights/best.pt
python tools/attend.py photo.jpg --weights soca.pt se.pt --html soca_beside_se.html
python tools/attend.py --data my.yaml --weights runs/train/exp/weights/best.pt --img 320

For an image the page shows the detections with and without the gates, and for each block that has a gate (SOCA, SE and
others, also inside LSRAG and NLRG, and blocks of your own that define `gate(x)`), wherever it stands: the gate of each
channel; the channels with the highest and the lowest gates, with their maps; the regions of the image that the gate
raises and lowers; Grad-CAM of the detections with and without the gate; for SOCA the spectrum of the covariance of the
channels, and how far five Newton-Schulz steps are from its root.

With --data it gives mAP50 and mAP50-95 of a whole split with the gates as they are, with their means over the split,
with those of another image, and without: how much of mAP is owed to looking at each image.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli, user_blocks

if TYPE_CHECKING:
    import numpy as np

# what replaces a gate in the comparison, and how the page says it
WITHOUT = {"mean": "its mean over the channels", "one": "1, as if the block were not there"}


def make_parser() -> argparse.ArgumentParser:
    """States the options of attend.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", help="image file; or give --data")
    parser.add_argument("--data", default="", help="data set YAML, instead of an image: measure a whole split")
    parser.add_argument(
        "--task", default="val", choices=("train", "val", "test"), help="split of --data (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=cli.whole(1), default=32, help="images per batch of --data (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=cli.whole(0), default=8,
        help="maximum number of processes that read images of --data (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--weights", nargs="+", required=True, metavar="FILE", help="one .pt file, or two to compare")
    user_blocks.add(parser)
    parser.add_argument("--html", type=Path, default=Path("attend.html"), help="page to write (default: %(default)s)")
    parser.add_argument("--imgsz", "--img", type=cli.whole(32), default=640, help="longer side in pixels (%(default)s)")
    parser.add_argument("--conf-thres", type=cli.real(0, 1), default=0.25, help="minimum confidence (%(default)s)")
    parser.add_argument(
        "--iou-thres", type=cli.real(0, 1), default=0.45,
        help="NMS drops a box that overlaps a more confident one by more than this IoU (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--without", choices=list(WITHOUT), default="mean",
        help="what replaces a gate in the comparison. mean: its mean over the channels, so that later layers see a map "
        "of the usual size. one: 1, as if the block were not there (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--detections", type=cli.whole(0), default=4, metavar="N",
        help="explain N detections, the most confident of each class first (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: a GPU if there is one)")
    return parser


def main(opt: argparse.Namespace) -> None:
    """Runs the command line."""
    from models.attention_view import gated_blocks, without_gate
    from models.backend import find_weights, load_model
    from utils.boxes import check_image_size
    from utils.data.images import read_image
    from utils.device import select_device
    from utils.files import atomic_write

    if len(opt.weights) > 2:
        raise ValueError(f"--weights takes one file, or two to compare, got {len(opt.weights)}")
    if bool(opt.image) == bool(opt.data):
        raise ValueError(f"give {'either an image or --data, not both' if opt.data else 'an image, or --data my.yaml'}")
    if not opt.html.parent.is_dir() or opt.html.is_dir():
        raise ValueError(f"--html: {opt.html} cannot be written; name a file in a folder that exists")
    user_blocks.use(opt.blocks)
    image = read_image(opt.image) if opt.image else None
    device = select_device(opt.device)
    seen = []
    for file in opt.weights:
        model = load_model(find_weights(file), device).requires_grad_(False)
        if not gated_blocks(model):
            raise ValueError(
                f"{file} has no attention with a gate, so there is nothing to show; train a model with "
                f"--attention SOCA@P5, or see the maps of its layers with detect.py --visualize"
            )
        if others := without_gate(model):
            cli.say(f"{file}: not shown: {', '.join(others)}, which has no gate(x) (models/registry.py)")
        seen.append((model, file, check_image_size(opt.imgsz, model.image_multiple)))
    text, html = _of_split(opt, seen) if opt.data else _of_image(opt, seen, image)
    cli.say(text)
    with atomic_write(opt.html, "w") as output:
        output.write(html)
    cli.say(f"\nthe page is {opt.html}")


def _of_image(opt: argparse.Namespace, seen: list[tuple], image: "np.ndarray") -> tuple[str, str]:
    """Returns the text and the page about an image. seen: (model, file, image size) of each."""
    from tools.attend_measures import explain_image
    from tools.attend_report import as_html, as_text

    explained = [explain_image(model, file, image, size, opt) for model, file, size in seen]
    html = as_html(explained, Path(opt.image).name, WITHOUT[opt.without], opt.conf_thres)
    return "\n\n".join(map(as_text, explained)), html


def _of_split(opt: argparse.Namespace, seen: list[tuple]) -> tuple[str, str]:
    """Returns the text and the page about a split of --data. seen: (model, file, image size) of each."""
    from tools.attend_split import as_html, as_text, measure_split

    measured = [
        measure_split(model, file, opt.data, opt.task, size, opt.batch_size, opt.workers) for model, file, size in seen
    ]
    return "\n\n".join(map(as_text, measured)), as_html(measured, Path(opt.data).name, opt.task)


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(make_parser()), "attend.py")
