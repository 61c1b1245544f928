"""What is wrong with a data set, why it matters, and what to do. Reads only; nothing of yours is changed.

python tools/doctor.py my.yaml
python tools/doctor.py my.yaml --html report.html      # the worst places, drawn
python tools/doctor.py my.yaml --json --strict         # for a program: exit status 1 where there is a fault

A fault is wrong whatever the task (a line that cannot be read, an image in train and in val); a hint is for you to
judge.
"""

import argparse
import hashlib
import os
import sys
from collections import defaultdict
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.doctor_report import FAULT, KINDS, Contents, Finding, as_html, as_json, as_text
from utils import cli
from utils.data.dataset_yaml import SPLITS, load_dataset_yaml
from utils.data.images import ORIENTATION, check_image, list_images, read_image
from utils.data.labels import image_to_label_path, parse_labels
from utils.files import ROOT, atomic_write, read_yaml
from utils.training.autoanchor import GOOD_RECALL, anchor_fit, boxes_in_pixels

THUMB = (17, 16)  # width, height of the grey picture whose 16 x 16 differences are compared
NEAR_BITS = 40  # of 256: copies that were resized or compressed again differ in 0-30, unlike photographs in 80 and more
TINY = 3.0  # pixels at the training size
HUGE = 0.95  # of both sides of the image
CROWD = 300  # boxes that non-maximum suppression keeps in an image
SAME, MERGED = 0.9, 0.6  # IoU from which two boxes are one object; from which val.py's suppression drops one of them
IMBALANCE = 10  # times as many boxes of the commonest class as of the rarest

# --- reading ----------------------------------------------------------------------------------------------------------


def read_contents(data: dict) -> Contents:
    """Every image and label line of the splits of a loaded data set YAML, the faulty ones as remarks."""
    contents = Contents(data["names"])
    for split in SPLITS:
        if data[split]:
            found = list_images(data[split])
            contents.images += found
            contents.splits += [split] * len(found)
    if not contents.images:
        raise ValueError(f"{data['path']}: the data set YAML names no images; give it train, val or test")
    with ThreadPool(os.cpu_count()) as pool:
        read = dict(zip(files := sorted(set(contents.images)), pool.imap(_read_picture, files, chunksize=8)))
    pictures = [read[path] for path in contents.images]
    contents.sizes = np.array([picture[0] for picture in pictures], int).reshape(-1, 2)
    contents.digests = [picture[1] for picture in pictures]
    contents.thumbs = np.stack([picture[2] for picture in pictures])
    rows, owner, lines = [], [], []
    for i, (path, picture) in enumerate(zip(contents.images, pictures)):
        contents.remarks += [(kind, text, i) for kind, text in picture[3]]
        labels, numbers, remarks = read_label_file(image_to_label_path(path), len(contents.names))
        contents.remarks += [(kind, text, i) for kind, text in remarks]
        if contents.sizes[i].all():
            rows += labels
            lines += numbers
            owner += [i] * len(labels)
    contents.labels = np.array(rows, float).reshape(-1, 5)
    contents.owner, contents.lines = np.array(owner, int), np.array(lines, int)
    return contents


def _read_picture(path: str) -> tuple[tuple[int, int], str, np.ndarray, list[tuple[str, str]]]:
    """Size, digest, thumbnail and remarks; (0, 0) for the size of an unreadable image."""
    from PIL import Image

    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    try:
        size, remarks = check_image(path)
        thumb = cv2.resize(cv2.cvtColor(read_image(path), cv2.COLOR_BGR2GRAY), THUMB, interpolation=cv2.INTER_AREA)
    except (ValueError, OSError) as error:
        return (0, 0), digest, np.zeros(THUMB[::-1], np.uint8), [("image-unreadable", str(error))]
    found = [("image-odd", remark) for remark in remarks]
    with Image.open(path) as image:
        if image.mode not in ("L", "RGB"):
            found.append(("image-odd", f"{path}: pixels of mode {image.mode}"))
        if (turn := image.getexif().get(ORIENTATION, 1)) != 1:
            found.append(("image-rotated", f"{path}: EXIF orientation {turn}"))
    return size, digest, thumb, found


def read_label_file(path: str, nc: int) -> tuple[list[np.ndarray], list[int], list[tuple[str, str]]]:
    """Rows (5,) that training accepts one by one, their line numbers, and (kind, message) for all that is odd."""
    if not os.path.exists(path):
        return [], [], [("label-missing", path)]
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        return [], [], [("label-format", f"{path}: not a text file in UTF-8: {error}")]
    rows, numbers, found = [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = parse_labels("\n" * (number - 1) + line, path, nc)[0]  # blank lines before it keep its number right
        except ValueError as error:
            message = str(error)
            kind = "class" if ": class must" in message else "range" if "must lie in 0-1" in message else "format"
            found.append((f"label-{kind}", message))
        else:
            rows += list(row)
            numbers += [number] * len(row)
    if not found:  # what only shows in the whole file; rows that are equal are found as boxes
        try:
            remarks = parse_labels(text, path, nc)[2]
            found += [("label-mixed", remark) for remark in remarks if "duplicate" not in remark]
        except ValueError as error:
            found.append(("label-format", str(error)))
    return rows, numbers, found


# --- analysis of plain arrays -----------------------------------------------------------------------------------------


def near_pairs(thumbs: np.ndarray, splits: np.ndarray, most: int = NEAR_BITS, block: int | None = None) -> np.ndarray:
    """Pairs (m, 2), i < j, of grey thumbnails (n, 16, 17) that look alike: for each j the first i of its own split and
    the first i of another, so that a thousand frames of a fixed camera are a thousand pairs and not half a million.

    Compared are the signs of the differences of neighbouring pixels, 256 bits, as a product of matrices of +1 and -1.
    A few lines of numpy, where the imagehash library would bring scipy; 64 bits, its usual size, do not tell one
    microscope slide from another. Thumbnails without any contrast are not compared.
    """
    n = len(thumbs)
    bits = np.where(np.diff(thumbs.astype(np.int16), axis=2) > 0, 1, -1).reshape(n, -1).astype(np.float32)
    varied = thumbs.reshape(n, -1).std(1) >= 2
    block = block or max(2**24 // n, 1)  # thumbnails at a time: 64 MiB of distances
    found = [np.zeros((0, 2), int)]
    for start in range(0, n, block):
        rows = np.arange(start, min(start + block, n))
        alike = (bits.shape[1] - bits[rows] @ bits.T) / 2 <= most
        alike &= (np.arange(n) < rows[:, None]) & varied & varied[rows, None]
        same = splits == splits[rows, None]
        for chosen in (alike & same, alike & ~same):
            hit = chosen.any(1)
            found.append(np.stack([chosen[hit].argmax(1), rows[hit]], 1))
    return np.concatenate(found)


def overlapping_pairs(boxes: np.ndarray, owner: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (m, 2) of rows of one image whose boxes (N, 4: x, y, w, h) overlap by `least` IoU or more; the IoU."""
    pairs, values = [np.zeros((0, 2), int)], [np.zeros(0)]
    order = np.argsort(owner, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        low, high = boxes[rows, :2] - boxes[rows, 2:] / 2, boxes[rows, :2] + boxes[rows, 2:] / 2
        sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
        shared, area = sides.clip(0).prod(2), boxes[rows, 2:].prod(1)
        union = area[:, None] + area - shared
        iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        first, second = np.nonzero(np.triu(iou, 1) >= least)
        pairs.append(np.stack([rows[first], rows[second]], 1))
        values.append(iou[first, second])
    return np.concatenate(pairs), np.concatenate(values)


def box_checks(labels: np.ndarray, sizes: np.ndarray, image_size: int) -> dict[str, np.ndarray]:
    """Row numbers by kind, the worst first. labels (N, 5) 0-1; sizes (N, 2): width, height of each row's image."""
    sides = labels[:, 3:] * sizes
    scaled = sides * image_size / sizes.max(1, keepdims=True)
    degenerate = sides.min(1) < 1
    beyond = ((np.abs(labels[:, 1:3] - 0.5) + labels[:, 3:] / 2 - 0.5) * sizes).max(1)
    found = {
        "box-degenerate": (degenerate, sides.min(1)),
        "box-outside": (beyond > 1, -beyond),
        "box-tiny": ((scaled.min(1) < TINY) & ~degenerate, scaled.min(1)),
        "box-huge": ((labels[:, 3:] >= HUGE).all(1), -labels[:, 3:].prod(1)),
    }
    return {
        kind: np.flatnonzero(bad)[np.argsort(badness[bad], kind="stable")] for kind, (bad, badness) in found.items()
    }


def class_checks(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Classes by kind, from the boxes per class (nc,) of each split."""
    train, val = counts["train"], counts.get("val")
    found = {"class-absent": np.flatnonzero(train == 0)}
    found["class-rare"] = np.flatnonzero((train > 0) & (train * IMBALANCE < train.max()))
    if val is not None:
        found["class-untested"] = np.flatnonzero((val == 0) & (train > 0))
    return found


# --- findings ---------------------------------------------------------------------------------------------------------


def examine(contents: Contents, image_size: int, anchors: np.ndarray, threshold: float) -> list[Finding]:
    """All findings, faults first."""
    found = _from_remarks(contents) + _from_images(contents) + _from_boxes(contents, image_size)
    counts = {
        split: np.bincount(
            contents.labels[np.array(contents.splits)[contents.owner] == split, 0].astype(int),
            minlength=len(contents.names),
        )
        for split in dict.fromkeys(contents.splits)
    }
    for kind, classes in class_checks(counts).items() if "train" in counts else ():
        places = [
            f"{i} {contents.names[i]}: " + ", ".join(f"{n[i]} in {s}" for s, n in counts.items()) for i in classes
        ]
        found.append(Finding(kind, len(places), places))
    found += _from_anchors(contents, image_size, anchors, threshold)
    order = list(KINDS)
    return sorted((finding for finding in found if finding.count), key=lambda finding: order.index(finding.kind))


def _from_remarks(contents: Contents) -> list[Finding]:
    found = defaultdict(dict)
    for kind, text, image in contents.remarks:
        found[kind].setdefault(text, image)  # an image of two splits is told once
    readable = contents.sizes.all(1)
    return [
        Finding(kind, len(texts), list(texts), [(i, []) for i in texts.values() if readable[i]])
        for kind, texts in found.items()
    ]


def _from_images(contents: Contents) -> list[Finding]:
    images, splits = contents.images, contents.splits
    groups, by_label = defaultdict(list), defaultdict(set)
    for i, digest in enumerate(contents.digests):
        groups[digest].append(i)
        by_label[image_to_label_path(images[i])].add(images[i])
    same = [(group[0], j) for group in groups.values() for j in group[1:]]
    near = near_pairs(contents.thumbs, np.array(splits))
    near = [(i, j) for i, j in near.tolist() if contents.digests[i] != contents.digests[j]]
    found = []
    for ending, pairs in (("same", same), ("near", near)):
        for kind, crossing in (("leak", True), ("duplicate", False)):
            chosen = [(i, j) for i, j in pairs if (splits[i] != splits[j]) == crossing]
            places = [f"{images[i]} ({splits[i]}) and {images[j]} ({splits[j]})" for i, j in chosen]
            found.append(Finding(f"{kind}-{ending}", len(places), places, [(i, []) for pair in chosen for i in pair]))
    shared = [f"{label} of {', '.join(sorted(users))}" for label, users in by_label.items() if len(users) > 1]
    folders = {os.path.dirname(label) for label in by_label if os.path.isdir(os.path.dirname(label))}
    files = [os.path.join(folder, name) for folder in sorted(folders) for name in sorted(os.listdir(folder))]
    orphans = [file for file in files if file.endswith(".txt") and file not in by_label and _is_label(file)]
    return [*found, Finding("label-shared", len(shared), shared), Finding("label-orphan", len(orphans), orphans)]


def _is_label(file: str) -> bool:
    return os.path.basename(file) not in ("classes.txt", "labels.txt", *(f"{split}.txt" for split in SPLITS))


def _from_boxes(contents: Contents, image_size: int) -> list[Finding]:
    labels, owner = contents.labels, contents.owner
    sizes = contents.sizes[owner]
    found = []

    def add(kind: str, rows: np.ndarray, say) -> None:
        """rows (m,) or, of pairs, (m, 2)."""
        rows = rows if rows.ndim == 2 else rows[:, None]
        once = {(contents.images[owner[row[0]]], *contents.lines[row]): row for row in rows[::-1]}
        rows = list(once.values())[::-1]  # an image of two splits is told once
        places = [
            f"{image_to_label_path(contents.images[owner[r[0]]])}:{contents.lines[r[-1]]}: {say(r)}" for r in rows
        ]
        views = defaultdict(list)
        for row in rows:
            views[int(owner[row[0]])] += row.tolist()
        found.append(Finding(kind, len(rows), places, list(views.items())))

    def sides(row: np.ndarray) -> str:
        w, h = labels[row[0], 3:] * sizes[row[0]]
        return f"{contents.names[int(labels[row[0], 0])]}, {w:.1f} x {h:.1f} pixels"

    for kind, rows in box_checks(labels, sizes, image_size).items():
        add(kind, rows, sides)
    pairs, iou = overlapping_pairs(labels[:, 1:], owner, MERGED)
    pairs, iou = pairs[np.argsort(-iou, kind="stable")], -np.sort(-iou)
    alike = labels[pairs[:, 0], 0] == labels[pairs[:, 1], 0]
    for kind, chosen in (
        ("box-duplicate", alike & (iou >= SAME)),
        ("box-conflict", ~alike & (iou >= SAME)),
        ("box-overlap", alike & (iou < SAME)),
    ):
        add(kind, pairs[chosen], lambda pair: f"{sides(pair[1:])}, over line {contents.lines[pair[0]]}")
    per_image = np.bincount(owner, minlength=len(contents.images))
    crowded = [i for i in np.argsort(-per_image, kind="stable") if per_image[i] > CROWD]
    places = [f"{image_to_label_path(contents.images[i])}: {per_image[i]} boxes" for i in crowded]
    return [*found, Finding("box-crowd", len(places), places, [(int(i), []) for i in crowded])]


def _from_anchors(contents: Contents, image_size: int, anchors: np.ndarray, threshold: float) -> list[Finding]:
    rows = np.flatnonzero(np.array(contents.splits)[contents.owner] == "train")
    if not len(rows):
        return []
    labels = [contents.labels[[row]] for row in rows]
    wh = boxes_in_pixels(contents.sizes[contents.owner[rows]], labels, image_size)
    fit = anchor_fit(wh, anchors, threshold)
    if fit.recall >= GOOD_RECALL:
        return []
    sizes = " ".join(f"{np.percentile(np.sqrt(wh.prod(1)), p):.0f}" for p in (5, 50, 95))
    said = f"best possible recall {fit.recall:.3f} at {image_size} pixels; sides of the boxes (5, 50, 95 %): {sizes}"
    return [Finding("anchors", round((1 - fit.recall) * len(wh)), [said])]


# --- command line -----------------------------------------------------------------------------------------------------


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set YAML")
    parser.add_argument("--imgsz", "--img", type=int, default=640, help="training size in pixels (%(default)s)")
    parser.add_argument("--cfg", default=ROOT / "models/yolov5s.yaml", help="model YAML whose anchors are compared")
    parser.add_argument("--json", action="store_true", help="print all findings with all places as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with the worst places drawn")
    parser.add_argument("--strict", action="store_true", help="exit status 1 where there is a fault")
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> None:
    """The command."""
    cli.check_range("--imgsz", options.imgsz, 32)
    given = load_dataset_yaml(options.data, splits=())
    data = load_dataset_yaml(options.data, tuple(split for split in SPLITS if given[split]))
    anchors = read_yaml(options.cfg).get("anchors")
    if not isinstance(anchors, list):
        raise ValueError(f"{options.cfg}: anchors must be lists of numbers, got {anchors!r}; give another --cfg")
    for split in SPLITS:
        if not isinstance(data[split], str | list | None):
            raise ValueError(f"{options.data}: labels of {split} are no text files; make such with tools/convert.py")
    contents = read_contents(data)
    findings = examine(contents, options.imgsz, np.array(anchors, float).reshape(-1, 2), 4.0)
    print(as_json(contents, findings) if options.json else as_text(contents, findings))
    if options.html:
        with atomic_write(options.html, "w") as file:
            file.write(as_html(contents, findings, f"{Path(options.data).name}: what the doctor found"))
    if options.strict and any(KINDS[finding.kind][0] == FAULT for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, parse_options(), "doctor")
