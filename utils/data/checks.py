"""Checks a data set: what can be wrong with its images, labels, boxes, classes and splits.

`utils.data.contents` reads a data set once, `examine` gives all findings; tools/doctor.py prints them.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from utils.data.alike import group_pairs, near_pairs
from utils.data.contents import Contents, count_classes
from utils.data.dataset_yaml import SPLITS

TINY = 3.0  # pixels at the training size
HUGE = 0.95  # of both sides of the image
CROWD = 300  # boxes that non-maximum suppression keeps in an image
SAME, MERGED = 0.9, 0.6  # IoU from which two boxes are one object; from which val.py's suppression drops one of them
IMBALANCE = 10  # times as many boxes of the most frequent class as of the rarest

FAULT, HINT = "fault", "hint"


class Kind(NamedTuple):
    """A kind of finding. A fault is wrong for every task; a hint is for the user to judge."""

    severity: str
    what: str  # is found
    why: str  # it matters
    advice: str


KINDS = {
    "image-unreadable": Kind(FAULT, "images that cannot be read",
        "training leaves them out or stops", "save them again, or remove them with their labels"),
    "label-format": Kind(FAULT, "label lines that cannot be read",
        "the whole image is left out", "write 'class x y width height', or a polygon"),
    "label-class": Kind(FAULT, "labels of a class that does not exist",
        "training stops", "correct the class, or nc and names in the YAML"),
    "label-range": Kind(FAULT, "labels outside 0-1",
        "the whole image is left out", "divide by the image's width and height; clip"),
    "box-degenerate": Kind(FAULT, "boxes less than a pixel wide or high",
        "no detector can find them, and they disturb the loss", "delete them or draw them again"),
    "box-duplicate": Kind(FAULT, "boxes drawn twice (same class, IoU 0.9 or more)",
        "the second one counts as missed", "delete one of each pair"),
    "leak-same": Kind(FAULT, "images that are in two splits, byte for byte",
        "the results on val and test are too good", "keep each in one split (tools/split.py does)"),
    "label-shared": Kind(FAULT, "images that share a label file (a.jpg, a.png)",
        "both get the same boxes", "rename one of them"),
    "class-absent": Kind(FAULT, "classes without a box in train",
        "they cannot be learned", "add examples, or remove them from names"),
    "leak-near": Kind(HINT, "images that look like one of another split",
        "the results on val and test are too good",
        "look at the groups; keep frames of one scene in one split (tools/split.py --near-duplicates, --group-by)"),
    "image-rotated": Kind(HINT, "images that EXIF data turns",
        "boxes drawn by a tool that ignores EXIF are in the wrong position",
        "look at the boxes here; save the images upright"),
    "image-odd": Kind(HINT, "images that are not 8-bit grey or RGB, or unusual in another way",
        "transparency is dropped, 16 bits become 8", "check that the image still shows what you labelled"),
    "duplicate-same": Kind(HINT, "identical images within a split",
        "they count twice", "keep one"),
    "duplicate-near": Kind(HINT, "images that look like another of their split",
        "they count almost twice", "remove some of them if they are frames of one scene"),
    "label-missing": Kind(HINT, "images without a label file",
        "they are trained as background", "label them; an empty file says that the image shows no object"),
    "label-orphan": Kind(HINT, "label files without an image",
        "they are not used", "restore the image, or delete them"),
    "label-difficult": Kind(HINT, "objects left out because they are marked as difficult or as crowds",
        "they are neither trained on nor measured", "write `difficult: true` in the data set YAML to keep them"),
    "label-object": Kind(HINT, "objects that are left out or cut",
        "they have no area, come twice or reach over the image", "correct them in the labelling tool"),
    "box-outside": Kind(HINT, "boxes that reach out of the image by more than a pixel",
        "they are clipped, their centre stays", "clip them"),
    "box-conflict": Kind(HINT, "pairs of boxes of two classes (IoU 0.9 or more)",
        "the detector must be wrong about one of them", "keep one class, if an object cannot be of both"),
    "box-overlap": Kind(HINT, "pairs of boxes of one class that overlap by IoU 0.6 to 0.9",
        "suppression at IoU 0.6 drops one of them", "raise --iou-thres if they are two objects, merge them if not"),
    "box-tiny": Kind(HINT, "boxes under 3 pixels at the training size",
        "they cover hardly a cell of the finest map and are mostly not learned",
        "train with a larger --img, or cut the images into tiles"),
    "box-huge": Kind(HINT, "boxes as large as the image",
        "often a mistake of the labelling tool", "look at them"),
    "box-crowd": Kind(HINT, "images with over 300 boxes",
        "suppression keeps 300 per image", "raise --max-det, or cut the images into tiles"),
    "class-untested": Kind(HINT, "classes without a box in val",
        "their results are missing or mean nothing", "move some examples to val"),
    "class-rare": Kind(HINT, "classes ten times rarer in train than the most frequent one",
        "they are learned late and badly", "add examples; try --image-weights"),
    "anchors": Kind(HINT, "boxes in train that no anchor matches",
        "the box branch does not learn from them", "leave AutoAnchor on (do not pass --noautoanchor)"),
}  # fmt: skip


@dataclass
class Finding:
    """All findings of one kind, the worst first."""

    kind: str
    count: int
    locations: list[str]  # file:line, and what is there
    views: list[tuple[int, list[int]]] = field(default_factory=list)  # (image, its rows to mark)
    groups: list[list[int]] = field(default_factory=list)  # images that are alike; a location is about one group


# --- analysis of plain arrays -----------------------------------------------------------------------------------------


def overlapping_pairs(boxes: np.ndarray, owner: np.ndarray, min_iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Finds pairs (m, 2) of rows of one image whose boxes (N, 4: x, y, w, h) overlap by `min_iou`, and their IoU."""
    pairs, values = [np.zeros((0, 2), int)], [np.zeros(0)]
    order = np.argsort(owner, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        low, high = boxes[rows, :2] - boxes[rows, 2:] / 2, boxes[rows, :2] + boxes[rows, 2:] / 2
        sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
        shared, area = sides.clip(0).prod(2), boxes[rows, 2:].prod(1)
        union = area[:, None] + area - shared
        iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        first, second = np.nonzero(np.triu(iou, 1) >= min_iou)
        pairs.append(np.stack([rows[first], rows[second]], 1))
        values.append(iou[first, second])
    return np.concatenate(pairs), np.concatenate(values)


def box_checks(labels: np.ndarray, sizes: np.ndarray, image_size: int) -> dict[str, np.ndarray]:
    """Returns row numbers by kind, the worst first. labels (N, 5) 0-1; sizes (N, 2): width, height of the images."""
    sides = labels[:, 3:] * sizes
    scaled = sides_at(labels, sizes, image_size)
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


def sides_at(labels: np.ndarray, sizes: np.ndarray, image_size: int) -> np.ndarray:
    """Returns sides (N, 2) of boxes in pixels, once the longer side of their images is image_size."""
    return labels[:, 3:] * sizes * image_size / sizes.max(1, keepdims=True)


def class_checks(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns classes by kind, from the boxes per class (nc,) of each split."""
    train, val = counts["train"], counts.get("val")
    found = {"class-absent": np.flatnonzero(train == 0)}
    found["class-rare"] = np.flatnonzero((train > 0) & (train * IMBALANCE < train.max()))
    if val is not None:
        found["class-untested"] = np.flatnonzero((val == 0) & (train > 0))
    return found


# --- findings ---------------------------------------------------------------------------------------------------------


def examine(
    contents: Contents, image_size: int, recall: Callable[[np.ndarray], float], good_recall: float
) -> list[Finding]:
    """Returns all findings, faults first.

    image_size: at which the data set will be trained, in pixels.
    recall: gives the share of boxes, 0-1, that some anchor matches, from their sides (N, 2) in pixels at that size.
    good_recall: the share from which the anchors are no finding.
    """
    found = _from_faults(contents) + _from_images(contents) + _from_boxes(contents, image_size)
    found += _from_classes(contents) + _from_anchors(contents, image_size, recall, good_recall)
    order = list(KINDS)
    return sorted((finding for finding in found if finding.count), key=lambda finding: order.index(finding.kind))


def _from_faults(contents: Contents) -> list[Finding]:
    found = defaultdict(dict)
    for kind, text, image in contents.faults:
        found[kind].setdefault(text, image)  # an image of two splits is reported once
    readable = contents.sizes.all(1)
    return [
        Finding(kind, len(texts), list(texts), [(i, []) for i in texts.values() if readable[i]])
        for kind, texts in found.items()
    ]


def _from_images(contents: Contents) -> list[Finding]:
    splits = contents.splits
    of_digest = defaultdict(list)
    for i, digest in enumerate(contents.digests):
        of_digest[digest].append(i)
    same = [group for group in of_digest.values() if len(group) > 1]
    near = [
        (i, j)
        for i, j in near_pairs(contents.thumbnails, np.array(splits)).tolist()
        if contents.digests[i] != contents.digests[j]
    ]
    found = _from_label_files(contents)
    for ending, groups in (("same", same), ("near", group_pairs(near))):
        leaks = [group for group in groups if len({splits[i] for i in group}) > 1]
        within = [[i for i in group if splits[i] == split] for group in groups for split in dict.fromkeys(splits)]
        found.append(_of_groups(contents, f"leak-{ending}", leaks))
        found.append(_of_groups(contents, f"duplicate-{ending}", [group for group in within if len(group) > 1]))
    return found


def _of_groups(contents: Contents, kind: str, groups: list[list[int]]) -> Finding:
    """Makes a finding of groups of images that are alike; it counts those that add nothing to the first split's."""
    extra = [sum(contents.splits[i] != contents.splits[group[0]] for i in group) or len(group) - 1 for group in groups]
    named = [[f"{contents.images[i]} ({contents.splits[i]})" for i in group] for group in groups]
    texts = [f"{', '.join(names[:-1])} and {names[-1]}" for names in named]
    return Finding(kind, sum(extra), texts, [(i, []) for group in groups for i in group], groups)


def _from_label_files(contents: Contents) -> list[Finding]:
    by_label = defaultdict(set)
    for image, label_file, in_lines in zip(contents.images, contents.label_files, contents.in_lines):
        if in_lines:
            by_label[label_file].add(image)
    shared = [f"{label} of {', '.join(sorted(users))}" for label, users in by_label.items() if len(users) > 1]
    folders = {os.path.dirname(label) for label in by_label if os.path.isdir(os.path.dirname(label))}
    files = [os.path.join(folder, name) for folder in sorted(folders) for name in sorted(os.listdir(folder))]
    orphans = [file for file in files if file.endswith(".txt") and file not in by_label and _is_label(file)]
    return [Finding("label-shared", len(shared), shared), Finding("label-orphan", len(orphans), orphans)]


def _is_label(file: str) -> bool:
    return os.path.basename(file) not in ("classes.txt", "labels.txt", *(f"{split}.txt" for split in SPLITS))


def _from_boxes(contents: Contents, image_size: int) -> list[Finding]:
    images, labels, owner = contents.images, contents.labels, contents.owner

    def sides(row: np.ndarray) -> str:
        w, h = labels[row[0], 3:] * contents.sizes[owner[row[0]]]
        return f"{contents.names[int(labels[row[0], 0])]}, {w:.1f} x {h:.1f} pixels"

    def over(pair: np.ndarray) -> str:
        word = "line" if contents.in_lines[owner[pair[0]]] else "object"
        return f"{sides(pair[1:])}, over {word} {contents.lines[pair[0]]}"

    checked = box_checks(labels, contents.sizes[owner], image_size)
    found = [_of_rows(contents, kind, rows[:, None], sides) for kind, rows in checked.items()]
    pairs, iou = overlapping_pairs(labels[:, 1:], owner, MERGED)
    pairs, iou = pairs[np.argsort(-iou, kind="stable")], -np.sort(-iou)
    alike = labels[pairs[:, 0], 0] == labels[pairs[:, 1], 0]
    for kind, chosen in (
        ("box-duplicate", alike & (iou >= SAME)),
        ("box-conflict", ~alike & (iou >= SAME)),
        ("box-overlap", alike & (iou < SAME)),
    ):
        found.append(_of_rows(contents, kind, pairs[chosen], over))
    per_image = np.bincount(owner, minlength=len(contents.images))
    crowded = [i for i in np.argsort(-per_image, kind="stable") if per_image[i] > CROWD]
    texts = [f"{(contents.label_files if contents.in_lines[i] else images)[i]}: {per_image[i]} boxes" for i in crowded]
    return [*found, Finding("box-crowd", len(texts), texts, [(int(i), []) for i in crowded])]


def _of_rows(contents: Contents, kind: str, rows: np.ndarray, describe: Callable[[np.ndarray], str]) -> Finding:
    """Makes a finding of single rows (m, 1) or of pairs (m, 2)."""
    image_of = [contents.images[contents.owner[row[0]]] for row in rows]
    once = {(image, *contents.lines[row]): row for image, row in zip(image_of[::-1], rows[::-1])}
    rows = list(once.values())[::-1]  # an image of two splits is reported once
    texts, views = [], defaultdict(list)
    for row in rows:
        image = int(contents.owner[row[0]])
        texts.append(f"{contents.place(row[-1])}: {describe(row)}")
        views[image] += row.tolist()
    return Finding(kind, len(rows), texts, list(views.items()))


def _from_classes(contents: Contents) -> list[Finding]:
    counts = {split: count.boxes for split, count in count_classes(contents).items()}
    found = []
    for kind, numbers in class_checks(counts).items() if "train" in counts else ():
        texts = [
            f"{i} {contents.names[i]}: " + ", ".join(f"{n[i]} in {split}" for split, n in counts.items())
            for i in numbers
        ]
        found.append(Finding(kind, len(texts), texts))
    return found


def _from_anchors(contents: Contents, image_size: int, recall: Callable, good_recall: float) -> list[Finding]:
    rows = np.array(contents.splits)[contents.owner] == "train"
    if not rows.any():
        return []
    sides = sides_at(contents.labels[rows], contents.sizes[contents.owner[rows]], image_size)
    matched = recall(sides)
    if matched >= good_recall:
        return []
    roots = " ".join(f"{np.percentile(np.sqrt(sides.prod(1)), p):.0f}" for p in (5, 50, 95))
    text = f"best possible recall {matched:.3f} at {image_size} pixels; sides of the boxes (5, 50, 95 %): {roots}"
    return [Finding("anchors", round((1 - matched) * len(sides)), [text])]
