"""Small datasets made on the spot, and the comparison of pictures with recorded ones."""

import zlib

import cv2
import numpy as np
import pytest


@pytest.fixture
def write_image():
    """`write_image(path, image)`: a picture file of any name; png, so that pixels come back as they were."""

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
    """`noise_image(h, w, seed)`: a soft random picture, in which a shift by a pixel shows but rounding does not."""

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
