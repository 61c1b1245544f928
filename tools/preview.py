"""Shows a data set before it is trained on: random images of each class with their labels, and what there is of each.

python tools/preview.py my.yaml                          # writes preview.html, and preview.png to print or to send
python tools/preview.py photos/                          # or a COCO JSON, a list, a folder of XML: what train.py reads
python tools/preview.py my.yaml --per-class 8 --seed 1   # other images
python tools/preview.py my.yaml --classes dog cat --out looks/pets

The page has a table of classes (boxes and images by split, usual size), charts of where the objects are and how large,
the messages about files that cannot be used as they are, and images without labels, which are trained as background.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli


def make_parser() -> argparse.ArgumentParser:
    """States the options of preview.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set YAML, or any other source that train.py reads")
    parser.add_argument(
        "--per-class",
        type=cli.whole(1, 100),
        default=4,
        metavar="N",
        help="images of each class (default: %(default)s)",
    )
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="names or numbers of classes (default: all)")
    parser.add_argument(
        "--out", type=Path, default=Path("preview"), help="the two files without their suffixes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=cli.whole(0), default=0, help="of the choice of images (default: %(default)s)")
    return parser


def main(opt: argparse.Namespace) -> None:
    """Runs the command line."""
    from tools.preview_report import as_html, as_image, choose, read_data
    from utils.class_names import class_numbers
    from utils.drawing import write_image
    from utils.files import atomic_write

    html, png = (opt.out.with_name(f"{opt.out.name}.{suffix}") for suffix in ("html", "png"))
    if not opt.out.parent.is_dir() or not opt.out.name:
        raise ValueError(f"--out: {opt.out} cannot be written; name files in a folder that exists")
    data = read_data(opt.data)
    classes = class_numbers(opt.classes, data.names, f"--classes: {opt.data}") if opt.classes else None
    chosen = choose(data, classes, opt.per_class, opt.seed)
    sheet = as_image(data, chosen)
    with atomic_write(html, "w") as file:
        file.write(as_html(data, chosen, f"{Path(opt.data).name}: a preview"))
    write_image(png, sheet)
    cli.say(f"{data.summary()}\n{html} and {png}: look at the boxes before you train")


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(make_parser()), "preview.py")
