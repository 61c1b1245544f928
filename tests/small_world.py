"""Images of a red and a white box, their labels, and models small enough to be trained in a moment."""

import errno
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from PIL import Image

NAMES = ["red", "weiß"]
RED, WHITE, GROUND = (30, 30, 220), (245, 245, 245), (60, 60, 60)  # BGR
H, W = 64, 96  # of every image
SIZE = 96  # --imgsz, at which they are not resized

TINY = {
    "nc": 80,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [
        [-1, 1, "Conv", [32, 6, 2, 2]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 3, "C3", [64]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, "C3", [128]],
        [-1, 1, "Conv", [256, 3, 2]],
    ],
    "head": [[-1, 1, "SPPF", [256, 5]], [[4, 6], 1, "Detect", ["nc", "anchors"]]],
}

# As few layers as have all that a run can lose: batch norm, attention, and a head of two levels
SMALLEST = {
    "nc": 80,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [[-1, 1, "Conv", [32, 6, 4, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]]],
    "head": [[-1, 1, "SOCA", []], [[1, 3], 1, "Detect", ["nc", "anchors"]]],
}


def boxes_image(red=(8, 10, 30, 40), white=(50, 20, 90, 52)) -> np.ndarray:
    """A BGR image with a red and a white box, given as x1, y1, x2, y2 in pixels, or None."""
    image = np.full((H, W, 3), GROUND, np.uint8)
    for box, colour in ((red, RED), (white, WHITE)):
        if box:
            image[box[1] : box[3], box[0] : box[2]] = colour
    return image


def label_text(*boxes) -> str:
    """A label file for boxes class, x1, y1, x2, y2 in pixels."""
    rows = [(c, (x1 + x2) / 2 / W, (y1 + y2) / 2 / H, (x2 - x1) / W, (y2 - y1) / H) for c, x1, y1, x2, y2 in boxes]
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def write_yaml(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_set(root: Path, images: dict[str, tuple[np.ndarray | None, str | None]], split="train") -> Path:
    """Images (None: written elsewhere) and label texts (None: no file) by file name; returns the folder of images."""
    for name, (image, text) in images.items():
        file = root / "images" / split / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if image is not None:
            cv2.imencode(file.suffix, image)[1].tofile(file)
        label = root / "labels" / split / f"{file.stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            label.write_text(text, encoding="utf-8")
    return root / "images" / split


def write_boxes(root: Path, train: int = 6, val: int = 4) -> dict:
    """A data set of so many images, each with both boxes; returns what its YAML says."""
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("val", val)):
        images = {}
        for i in range(n):
            x, y = rng.integers(2, 20), rng.integers(2, 24)
            boxes = (int(x), int(y), int(x) + 26, int(y) + 32), (50, int(y), 50 + 2 * int(x) + 4, int(y) + 30)
            images[f"{i:04d}.png"] = boxes_image(*boxes), label_text((0, *boxes[0]), (1, *boxes[1]))
        write_set(root, images, split)
    return {"path": str(root), "train": "images/train", "val": "images/val", "nc": 2, "names": NAMES}


def lively(cfg: dict = SMALLEST, nc: int = 3, seed: int = 0):
    """A small detector, with SOCA where cfg has it, whose random weights find boxes of several classes."""
    from models.yolo import Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model({**cfg, "nc": nc}).eval()
    for conv in model.model[-1].m:
        conv.weight.data *= 40
        conv.bias.data.view(3, -1)[:, 4] = 0.0
        conv.bias.data.view(3, -1)[:, 5:] = 0.5
    model.names = ["red", "weiß", "blue", "green"][:nc]
    return model


def tree(folder: Path) -> dict[str, int]:
    """Files and folders below a folder with their sizes; label caches, which lie beside the data as in v6.1, aside."""
    return {str(p): p.stat().st_size * p.is_file() for p in sorted(folder.rglob("*")) if p.suffix != ".cache"}


class BrightBoxes(torch.nn.Module):
    """Stands in for a trained detector: finds the red and the white box of an image by their colour."""

    names, stride, channels, dtype, fixed = NAMES, 32, 3, torch.float32, None
    confidence = (0.5, 0.75)

    def __init__(self, *_):
        super().__init__()

    def check_use(self, *_):
        pass

    def forward(self, images, augment=False):
        rows = torch.zeros(len(images), 2, 7)
        for image, row in zip(images, rows):
            red, green, blue = image
            for c, mask in enumerate(((red > 0.6) & (green < 0.45) & (blue < 0.45), (green > 0.7) & (blue > 0.7))):
                if mask.any():
                    y, x = mask.nonzero().T
                    x1, y1, x2, y2 = x.min(), y.min(), x.max() + 1, y.max() + 1
                    row[c, :4] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                    row[c, 4], row[c, 5 + c] = self.confidence[c], 1.0
        return rows, None


def labels_in(file: Path) -> np.ndarray:
    return np.array([line.split() for line in file.read_text(encoding="utf-8").splitlines()], float)


def write_kinds(folder: Path) -> list[str]:
    """The same image in many kinds of file, and files that are none. Returns the names of the sound ones."""
    folder.mkdir(parents=True)
    image = boxes_image()
    pil = Image.fromarray(image[..., ::-1].copy())
    for suffix in ("jpg", "png", "bmp", "tif", "webp"):
        pil.save(folder / f"plain {suffix}.{suffix}", quality=95)
    pil.save(folder / "CAPITALS.JPG", quality=95)
    pil.save(folder / "phone.mpo", format="JPEG", quality=95)
    pil.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    pil.convert("RGBA").save(folder / "transparent.png")
    pil.convert("P").save(folder / "palette.png")
    cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tofile(folder / "16 bits.png")
    # how a camera held at each angle stores the upright image
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation -> PIL transpose that it undoes
    for orientation, transpose in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        pil.transpose(transpose).save(folder / f"turned {orientation}.jpg", exif=exif, quality=95)
    sound = [p.name for p in folder.iterdir()]

    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    for suffix in ("jpg", "png", "bmp", "tif", "webp"):
        content = (folder / f"plain {suffix}.{suffix}").read_bytes()
        (folder / f"half {suffix}.{suffix}").write_bytes(content[: len(content) // 2])
    return sound


BROKEN = ["half bmp.bmp", "half jpg.jpg", "half png.png", "half tif.tif", "half webp.webp", "text.jpg", "zero.jpg"]


BOXES = [[8, 10, 30, 40], [50, 20, 90, 52]]  # of `boxes_image()`: red, white


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


CURVES = {"F1_curve.png", "PR_curve.png", "P_curve.png", "R_curve.png"}  # only where something was found


def random_images(B: int = 1) -> torch.Tensor:
    return torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(2))


class PageReader(HTMLParser):
    """The tags of a page, the attributes of each, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data
