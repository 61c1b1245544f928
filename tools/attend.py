"""Shows what attention does with an image: one page, for one or two trained detectors.

python tools/attend.py photo.jpg --weights runs/train/exp/weights/best.pt
python tools/attend.py photo.jpg --weights soca.pt se.pt --html soca_beside_se.html

The page shows the detections with and without the gates, and for each block with a gate (SOCA, SE, ECA, CBAM,
CoordAttention, SimAM, GCT; also inside LSRAG and NLRG), wherever it stands: the gate of each channel; the channels with
the highest and the lowest gates, with their maps; the regions of the image that the gate raises and lowers; Grad-CAM of
the detections with and without the gate; for SOCA the spectrum of the covariance of the channels, and how far five
Newton-Schulz steps are from its root.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli, user_blocks

# what replaces a gate in the comparison, and how the page says it
WITHOUT = {"mean": "its mean over the channels", "one": "1, as if the block were not there"}


def make_parser() -> argparse.ArgumentParser:
    """States the options of attend.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="image file")
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
    from models.attention_view import gated_blocks
    from models.backend import find_weights, load_model
    from tools.attend_measures import explain_image
    from tools.attend_report import as_html, as_text
    from utils.boxes import check_image_size
    from utils.data.images import read_image
    from utils.device import select_device
    from utils.files import atomic_write

    if len(opt.weights) > 2:
        raise ValueError(f"--weights takes one file, or two to compare, got {len(opt.weights)}")
    if not opt.html.parent.is_dir() or opt.html.is_dir():
        raise ValueError(f"--html: {opt.html} cannot be written; name a file in a folder that exists")
    user_blocks.use(opt.blocks)
    image = read_image(opt.image)
    device = select_device(opt.device)
    explained = []
    for file in opt.weights:
        model = load_model(find_weights(file), device).requires_grad_(False)
        if not gated_blocks(model):
            raise ValueError(
                f"{file} has no attention with a gate, so there is nothing to show; train a model with "
                f"--attention SOCA@P5, or see the maps of its layers with detect.py --visualize"
            )
        size = check_image_size(opt.imgsz, model.image_multiple)
        explained.append(explain_image(model, file, image, size, opt))
    cli.say("\n\n".join(as_text(one) for one in explained))
    with atomic_write(opt.html, "w") as file:
        file.write(as_html(explained, Path(opt.image).name, WITHOUT[opt.without], opt.conf_thres))
    cli.say(f"\nthe page is {opt.html}")


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(make_parser()), "attend.py")
