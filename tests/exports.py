"""The photographs of `tests/data/bccd` as labelling tools and data set sites export them, for tests."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

from PIL import Image

BCCD = Path(__file__).parent / "data" / "bccd"
NAMES = ["RBC", "WBC", "Platelets"]
COUNT = 8  # images of train


def photographs(split="train", count=COUNT):
    """Returns, for each image: its path, its size, and its objects (class, x1, y1, x2, y2 in pixels, whole numbers)."""
    found = []
    for path in sorted((BCCD / "images" / split).iterdir())[:count]:
        with Image.open(path) as image:
            w, h = image.size
        rows = [line.split() for line in (BCCD / "labels" / split / f"{path.stem}.txt").read_text().splitlines()]
        boxes = [(int(c), *(float(v) * s for v, s in zip(box, (w, h, w, h)))) for c, *box in rows]
        objects = [(c, *map(round, (x - bw / 2, y - bh / 2, x + bw / 2, y + bh / 2))) for c, x, y, bw, bh in boxes]
        found.append((path, (w, h), objects))
    return found


def _yolo(objects, size):
    (w, h), lines = size, []
    for c, x1, y1, x2, y2 in objects:
        lines.append(f"{c} {(x1 + x2) / 2 / w:.8f} {(y1 + y2) / 2 / h:.8f} {(x2 - x1) / w:.8f} {(y2 - y1) / h:.8f}\n")
    return "".join(lines)


def _write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _copy(path, folder, name=None):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder / (name or path.name))


def _coco(rows, first=0):
    """Category ids from 1, as CVAT has them."""
    images = [{"id": i, "file_name": p.name, "width": s[0], "height": s[1]} for i, (p, s, _) in enumerate(rows, 1)]
    boxes = [(i, c + 1, [x1, y1, x2 - x1, y2 - y1]) for i, row in enumerate(rows, 1) for c, x1, y1, x2, y2 in row[2]]
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "bbox": box, "iscrowd": 0, "area": box[2] * box[3]}
        for n, (i, c, box) in enumerate(boxes, 1)
    ]
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(NAMES, 1)]
    return json.dumps(
        {"licenses": [], "info": {}, "images": images, "annotations": annotations, "categories": categories}
    )


def two_folders(root):
    """Pascal VOC in capitals, without lists, each second <filename> without suffix: as NEU-DET is spread."""
    for i, (path, (w, h), objects) in enumerate(photographs()):
        _copy(path, root / "IMAGES")
        tree = ET.Element("annotation")
        ET.SubElement(tree, "filename").text = path.name if i % 2 else path.stem
        size = ET.SubElement(tree, "size")
        for key, value in (("width", w), ("height", h), ("depth", 3)):
            ET.SubElement(size, key).text = str(value)
        for number, *corners in objects:
            node = ET.SubElement(tree, "object")
            ET.SubElement(node, "name").text = NAMES[number]
            ET.SubElement(node, "difficult").text = "0"
            box = ET.SubElement(node, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners):
                ET.SubElement(box, key).text = str(value + 1)
        _write(root / "ANNOTATIONS" / f"{path.stem}.xml", ET.tostring(tree, encoding="unicode"))
    return root


def coco_json(root):
    """One COCO JSON, its images in a folder beside."""
    rows = photographs()
    _write(root / "instances.json", _coco(rows))
    for path, _, _ in rows:
        _copy(path, root / "images")
    return root / "instances.json"


def roboflow_yolo(root):
    """Roboflow's export for YOLOv5: train and valid, each with images and labels, and `../train/images` in the YAML."""
    for split, rows in (("train", photographs()), ("valid", photographs("val", 4))):
        for path, size, objects in rows:
            _copy(path, root / split / "images")
            _write(root / split / "labels" / f"{path.stem}.txt", _yolo(objects, size))
    names = ", ".join(f"'{name}'" for name in NAMES)
    _write(root / "data.yaml", f"train: ../train/images\nval: ../valid/images\n\nnc: 3\nnames: [{names}]\n")
    return root


def roboflow_coco(root):
    """Roboflow's export as COCO: a JSON among the images of each split."""
    for split, rows in (("train", photographs()), ("valid", photographs("val", 4))):
        _write(root / split / "_annotations.coco.json", _coco(rows))
        for path, _, _ in rows:
            _copy(path, root / split)
    return root


def cvat_yolo(root):
    """CVAT's export "YOLO 1.1": labels beside the images."""
    for path, size, objects in photographs():
        _copy(path, root / "obj_train_data")
        _write(root / "obj_train_data" / f"{path.stem}.txt", _yolo(objects, size))
    _write(root / "obj.names", "".join(f"{name}\n" for name in NAMES))
    _write(root / "obj.data", "classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    _write(root / "train.txt", "".join(f"data/obj_train_data/{path.name}\n" for path, _, _ in photographs()))
    return root


def cvat_coco(root):
    """CVAT's export "COCO 1.0"."""
    rows = photographs()
    _write(root / "annotations" / "instances_default.json", _coco(rows))
    for path, _, _ in rows:
        _copy(path, root / "images" / "default")
    return root


def label_studio_yolo(root):
    """Label Studio's export as YOLO."""
    for path, size, objects in photographs():
        _copy(path, root / "images", f"3f2a-{path.name}")
        _write(root / "labels" / f"3f2a-{path.stem}.txt", _yolo(objects, size))
    _write(root / "classes.txt", "\n".join(NAMES))
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    _write(root / "notes.json", json.dumps({"categories": categories, "info": {"year": 2024}}))
    return root


def labelme(root):
    """A folder of LabelMe: a JSON beside each image."""
    for path, (w, h), objects in photographs():
        _copy(path, root)
        shapes = [
            {
                "label": NAMES[c],
                "points": [[x1, y1], [x2, y2]],
                "group_id": None,
                "shape_type": "rectangle",
                "flags": {},
            }
            for c, x1, y1, x2, y2 in objects
        ]
        content = {"version": "5.0.1", "flags": {}, "shapes": shapes, "imagePath": path.name, "imageData": None}
        _write(root / f"{path.stem}.json", json.dumps({**content, "imageHeight": h, "imageWidth": w}))
    return root


EXPORTS = (
    two_folders, coco_json, roboflow_yolo, roboflow_coco, cvat_yolo, cvat_coco, label_studio_yolo, labelme
)  # fmt: skip
