"""Draws the shapes data set, a contact sheet of it, or a single image.

python tools/draw_shapes.py                                        # data/shapes, which data/shapes.yaml names
python tools/draw_shapes.py --out /tmp/shapes --train 5000 --seed 1
python tools/draw_shapes.py --sheet sheet.png                      # the first images of each split, with their boxes
python tools/draw_shapes.py --scene data/images/shapes_1.jpg --seed 5 --size 480 640     # the committed images
python tools/draw_shapes.py --scene data/images/shapes_2.jpg --seed 22 --size 640 480
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.data.shapes import COUNTS, NAMES, draw_scene, write_dataset
from utils.files import home

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=home() / "data" / "shapes", help="folder of the data set")
    for split, count in COUNTS.items():
        parser.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"number of {split} images (default: {count})"
        )
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (default: %(default)s)")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="also write a contact sheet of the first images of each split"
    )
    parser.add_argument("--scene", type=Path, metavar="FILE", help="write one image, and no data set")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="size of that image in pixels"
    )
    return parser.parse_args()


def boxed(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draws labels (n, 5), class, x, y, w, h, 0-1, on a copy of an image (h, w, 3)."""
    image = image.copy()
    h, w = image.shape[:2]
    for kind, *box in labels:
        x, y, bw, bh = np.array(box) * (w, h, w, h)
        corner, end = (round(x - bw / 2), round(y - bh / 2)), (round(x + bw / 2), round(y + bh / 2))
        cv2.rectangle(image, corner, end, WHITE, 1)
        for colour, thickness in ((BLACK, 3), (WHITE, 1)):
            position = (corner[0] + 1, max(corner[1] - 2, 9))
            cv2.putText(
                image, NAMES[int(kind)], position, cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, thickness, cv2.LINE_AA
            )
    return image


def contact_sheet(root: Path, per_split: int = 12, columns: int = 6) -> np.ndarray:
    """Draws the first images of each split of a drawn data set, read from its files, with their labels."""
    rows = []
    for split in COUNTS:
        cells = []
        for file in sorted((root / "images" / split).glob("*.jpg"))[:per_split]:
            text = (root / "labels" / split / f"{file.stem}.txt").read_text(encoding="utf-8")
            labels = np.array(text.split(), np.float64).reshape(-1, 5)
            image = boxed(cv2.imread(str(file)), labels)
            cell = np.zeros((340, 340, 3), np.uint8)
            cell[: image.shape[0], : image.shape[1]] = image
            cells.append(cell)
        cells += [np.zeros((340, 340, 3), np.uint8)] * (-len(cells) % columns)
        rows += [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return np.vstack(rows)


def save(file: Path, image: np.ndarray) -> None:
    """Writes an image with its folders. Raises ValueError for a suffix that is no kind of image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), image):
        raise ValueError(f"{file} could not be written; give a name that ends in .jpg or .png")


def main() -> None:
    """Runs the command."""
    options = parse_options()
    if options.scene:
        save(options.scene, draw_scene(np.random.default_rng(options.seed), tuple(options.size))[0])
        return
    write_dataset(options.out, {split: getattr(options, split) for split in COUNTS}, options.seed)
    if options.sheet:
        save(options.sheet, contact_sheet(options.out))


if __name__ == "__main__":
    main()
