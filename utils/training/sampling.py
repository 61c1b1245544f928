"""Weights by which hard images are drawn more often (`--image-weights`); the loader's sampler draws by them."""

from collections.abc import Sequence

import numpy as np


def class_weights(labels: Sequence[np.ndarray], nc: int) -> np.ndarray:
    """Inverse frequency of each class, summing to 1: (nc,).

    labels: per image (n, 5) rows with the class first. A class without an object counts as having one.
    """
    classes = np.concatenate([image[:, 0] for image in labels]).astype(int) if len(labels) else np.zeros(0, int)
    inverse = 1 / np.maximum(np.bincount(classes, minlength=nc), 1)
    return inverse / inverse.sum()


def image_weights(labels: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The weights (nc,) of an image's objects added up, for every image: (images,).

    During training weights = class_weights * (1 - mAP of the class)^2.
    """
    return np.array([weights[image[:, 0].astype(int)].sum() for image in labels])
