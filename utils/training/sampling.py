"""Weights by which the sampler of the loader draws hard images more often (`--image-weights`)."""

from collections.abc import Sequence

import numpy as np


def class_weights(labels: Sequence[np.ndarray], nc: int) -> np.ndarray:
    """Returns the inverse frequency of each class, with a sum of 1: (nc,).

    labels: per image (n, 5) rows with the class first. A class without objects counts as one with one object.
    """
    classes = np.concatenate([image[:, 0] for image in labels]).astype(int) if len(labels) else np.zeros(0, int)
    inverse = 1 / np.maximum(np.bincount(classes, minlength=nc), 1)
    return inverse / inverse.sum()


def image_weights(labels: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Returns for every image the sum of the class weights (nc,) of its objects: (images,).

    During training weights = class_weights * (1 - mAP of the class)^2.
    """
    return np.array([weights[image[:, 0].astype(int)].sum() for image in labels])
