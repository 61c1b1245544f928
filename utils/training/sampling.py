"""Drawing hard images more often (`--image-weights`)."""

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


def draw_images(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Image numbers for one epoch, drawn with replacement in proportion to their weights; evenly if all are 0."""
    total = weights.sum()
    return rng.choice(len(weights), size=len(weights), p=weights / total if total > 0 else None)
