import numpy as np
import pytest

from utils.training.sampling import class_weights, image_weights


def labels_of(*classes):
    return [np.array([[c, 0.5, 0.5, 0.1, 0.1] for c in image], np.float32).reshape(-1, 5) for image in classes]


def test_weights_by_hand():
    labels = labels_of([0, 0, 0, 1], [])
    weights = class_weights(labels, 3)
    # counts 3, 1 and, for want of an object, 1: inverses 1/3, 1, 1
    np.testing.assert_allclose(weights, [1 / 7, 3 / 7, 3 / 7])
    np.testing.assert_allclose(image_weights(labels, weights), [6 / 7, 0])


def test_weights_as_recorded(parity):
    case = parity("schedule")["class_weights"]
    labels = labels_of(*case["classes"])
    weights = class_weights(labels, case["nc"])
    np.testing.assert_allclose(weights, case["class_weights"], rtol=1e-8)
    np.testing.assert_allclose(image_weights(labels, weights * case["nc"]), case["image_weights"], rtol=1e-8)


def test_no_images():
    assert class_weights([], 4) == pytest.approx([0.25] * 4)
