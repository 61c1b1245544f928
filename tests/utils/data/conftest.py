"""Small datasets made on the spot, and the comparison of images with recorded ones."""

import json
import zlib

import cv2
import numpy as np
import pytest
from label_files import CATEGORIES, NAMES, pack

from utils.data.formats.coco import CocoSplit
from utils.data.formats.shards import ShardSplit
from utils.data.formats.voc import VocSplit


@pytest.fixture
def write_image():
    """`write_image(path, image)`: an image file of any name; png, so that pixels come back as they were."""

    def write(path, image):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(path.suffix, image)[1].tofile(path)
        return path

    return write


@pytest.fixture
def write_set(tmp_path, write_image):
    """`write_set({name: image}, {name: label text})`: folder of images, with labels beside it; names without suffix."""

    def write(images, labels, root=tmp_path / "set"):
        for name, image in images.items():
            write_image(root / "images" / f"{name}.png", image)
        for name, text in labels.items():
            path = root / "labels" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        return root / "images"

    return write


@pytest.fixture
def noise_image():
    """`noise_image(h, w, seed)`: a soft random image, in which a shift by a pixel shows but rounding does not."""

    def noise(height, width, seed=0):
        coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)

    return noise


@pytest.fixture
def hyp():
    """Augmentation of every kind that needs no whole canvas."""
    return {
        "mosaic": 0.7, "mixup": 0.3, "copy_paste": 0.3, "degrees": 5.0, "translate": 0.1, "scale": 0.5, "shear": 2.0,
        "perspective": 0.0, "hsv_h": 0.1, "hsv_s": 0.7, "hsv_v": 0.4, "flipud": 0.3, "fliplr": 0.5,
    }  # fmt: skip


@pytest.fixture
def same_pixels(parity_inputs):
    """`same_pixels(image, recorded, env, tolerance, name)`: equal to the byte with the recording's OpenCV."""

    def check(image, recorded, env, tolerance, name=""):
        image = np.ascontiguousarray(image)
        assert list(image.shape) == recorded["shape"], name
        if cv2.__version__ == env["opencv"]:
            assert zlib.crc32(image.tobytes()) == recorded["crc32"], name
        samples = image.reshape(-1)[parity_inputs.indices(image.size, len(recorded["samples"]))].astype(int)
        assert np.abs(samples - recorded["samples"]).max() <= tolerance, name

    return check


# --- label files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path, write_image, noise_image):
    """Folder of a.png and b.png of 100 x 50 pixels."""
    for name in "ab":
        write_image(tmp_path / "images" / f"{name}.png", noise_image(50, 100))
    return tmp_path / "images"


@pytest.fixture
def coco(tmp_path, images):
    """`coco(annotations of image 11, ...)`: a split of a.png (11) and b.png ("x")."""

    def write(*annotations, **changes):
        content = {
            "images": [
                {"id": "x", "file_name": "b.png", "width": 100, "height": 50},
                {"id": 11, "file_name": "a.png", "width": 100, "height": 50},
            ],
            "annotations": [{"id": i, "image_id": 11, "category_id": 7, **a} for i, a in enumerate(annotations)],
            "categories": CATEGORIES,
            **changes,
        }
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return CocoSplit((str(tmp_path / "instances.json"),), str(images), NAMES)

    return write


@pytest.fixture
def voc(tmp_path, images):
    """`voc({"a": objects, ...})`: a folder with Annotations, JPEGImages and ImageSets/Main/train.txt."""
    images.rename(tmp_path / "JPEGImages")

    def write(objects, size="<size><width>100</width><height>50</height><depth>3</depth></size>", head=""):
        for folder in ("Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in objects.items():
            xml = f"{head}<annotation><filename>wrong.jpg</filename>{size}{text}</annotation>"
            (tmp_path / "Annotations" / f"{name}.xml").write_text(xml, encoding="utf-8")
        (tmp_path / "ImageSets/Main/train.txt").write_text("b  1\na -1\n\n")
        return VocSplit((str(tmp_path / "ImageSets/Main/train.txt"),), None, NAMES)

    return write


@pytest.fixture
def png_file(noise_image):
    """`png_file(i)`: a PNG file of 64 x 48 or 48 x 64 pixels, of one grey value that says which it is."""
    return lambda i: cv2.imencode(".png", np.full((48, 64) if i % 2 else (64, 48), 10 * i, np.uint8))[1].tobytes()


@pytest.fixture
def shards(tmp_path, png_file):
    """Three shards of 12 images; image i has one box of width (i + 1) / 100 of class i % 3."""
    files, i = [], 0
    for s, count in enumerate((5, 3, 4)):
        members = []
        for _ in range(count):
            members += [(f"part/{i:03}.png", png_file(i)), (f"part/{i:03}.txt", f"{i % 3} .5 .5 .{i + 1:02} .3\n")]
            i += 1
        files.append(pack(tmp_path / f"train-{s:03}.tar", members))
    return ShardSplit(tuple(files))
