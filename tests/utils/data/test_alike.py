"""Near-duplicates are found whatever was done to the copy; images of one kind or under one lamp are no duplicates."""

import cv2
import numpy as np
import pytest

from utils.data.alike import SIDE, aligned_correlation, group_pairs, near_pairs, thumbnail


def scene(seed, height=240, width=320):
    """A photograph that looks like no other: soft blobs of several sizes, BGR."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(rng.normal(0, 30, (n, n, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        for n in (6, 16, 40)
    ]
    return np.clip(128 + sum(layers), 0, 255).astype(np.uint8)


def compressed(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


COPIES = {
    "resized": lambda image: cv2.resize(image, None, fx=0.4, fy=0.6, interpolation=cv2.INTER_AREA),
    "compressed": lambda image: compressed(image, 20),
    "darker": lambda image: (image * 0.5 + 10).astype(np.uint8),
    "lit from one side": lambda image: (image * np.linspace(0.5, 1, image.shape[1])[:, None]).astype(np.uint8),
    "moved": lambda image: np.roll(image, (5, -5), (0, 1)),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found_and_nothing_else(name):
    images = [scene(seed) for seed in range(8)]
    images.append(COPIES[name](images[3]))
    assert near_pairs(np.stack([*map(thumbnail, images)]), np.zeros(9)).tolist() == [[3, 8]]


def test_images_under_one_lamp_are_not_alike():
    """Plates with a bright side have the same large shapes: their plain correlation is 0.9."""
    lamp = np.linspace(40, 200, SIDE)[None].repeat(SIDE, 0)
    rng = np.random.default_rng(0)
    plates = np.clip(lamp + rng.normal(0, 15, (10, SIDE, SIDE)), 0, 255).astype(np.uint8)
    assert np.corrcoef(plates[0].ravel(), plates[1].ravel())[0, 1] > 0.85
    assert len(near_pairs(plates, np.zeros(10))) == 0


def test_one_pair_of_each_side_whatever_the_block():
    thumbs = np.stack([thumbnail(scene(i)) for i in range(16)])
    for copy_of_3 in (7, 10, 14):
        thumbs[copy_of_3] = np.clip(thumbs[3] * 0.8 + 20, 0, 255)
    thumbs[9] = thumbs[11] = 80  # without contrast nothing can be said
    splits = np.where(np.arange(16) < 9, "train", "val")
    for block in (1, 5, None):
        pairs = near_pairs(thumbs, splits, block)
        i, j = pairs.T
        assert set(pairs.ravel().tolist()) == {3, 7, 10, 14} and (i < j).all()
        assert j[splits[i] == splits[j]].tolist() == [7, 14]
        assert sorted(j[splits[i] != splits[j]].tolist()) == [10, 14]
        assert group_pairs(pairs) == [[3, 7, 10, 14]]


def test_aligned_correlation_of_noise_moved_by_whole_pixels():
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(80, 80)).astype(np.float32), (0, 0), 1)
    first, moved = noise[8:72, 8:72], noise[5:69, 12:76]
    assert aligned_correlation(first, first) == pytest.approx(1)
    assert np.corrcoef(first.ravel(), moved.ravel())[0, 1] < 0.2
    assert aligned_correlation(first, moved) == pytest.approx(1, abs=1e-4)
    assert aligned_correlation(first, noise[:64, :64].T) < 0.3
    assert aligned_correlation(first, np.zeros_like(first)) == 0


def test_groups_are_the_connected_parts():
    pairs = np.array([[4, 9], [1, 2], [2, 7], [5, 9], [0, 7]])
    assert group_pairs(pairs) == [[0, 1, 2, 7], [4, 5, 9]]
    assert group_pairs(np.zeros((0, 2), int)) == []
