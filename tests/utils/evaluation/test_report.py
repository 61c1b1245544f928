"""Mosaics of a validation show images from all over the split, with their own boxes, under v6.1's file names."""

import numpy as np
import pytest
import torch

from utils.evaluation import report
from utils.evaluation.evaluator import EvaluatedBatch


def batches(counts, side=32):
    """Batches of images whose every pixel is their number, with a label and a detection of the class of that number."""
    first = 0
    for number, count in enumerate(counts):
        height = side + 8 * number  # the frames of a rectangular pass differ
        numbers = torch.arange(first, first + count)
        targets = torch.tensor([[i, first + i, 0.5, 0.5, 0.5, 0.5] for i in range(count)])
        found = [torch.tensor([[side / 4, height / 4, side * 3 / 4, height * 3 / 4, 0.9, float(n)]]) for n in numbers]
        yield EvaluatedBatch(
            number=number, images=numbers.byte()[:, None, None, None].expand(-1, 3, height, side), targets=targets,
            paths=[f"{n}.jpg" for n in numbers], shapes=[], detections=found, native=found,
        )  # fmt: skip
        first += count


@pytest.mark.parametrize(
    ("counts", "expected"),  # images of each mosaic
    [
        ((32,) * 5 + (3,), (16, 16, 16)),
        ((2,), (2,)),
        ((16, 1), (9, 8)),  # 17 images in two batches
        ((1, 1), (1, 1)),
        ((8,) * 30, (16, 16, 16)),
    ],
)
def test_mosaics_are_spread_over_the_split(tmp_path, monkeypatch, counts, expected):
    drawn = {}
    monkeypatch.setattr(
        report, "plot_batch", lambda images, rows, path, names, paths: drawn.update({path: (images, rows, paths)})
    )
    writer = report.MosaicWriter(tmp_path, ["a"], _Loader(counts))
    for batch in batches(counts):
        writer(batch)
    stems = [f"{tmp_path}/val_batch{i}" for i in range(len(expected))]
    assert sorted(drawn) == sorted(f"{stem}_{kind}.jpg" for stem in stems for kind in ("labels", "pred"))
    shown = []
    for stem, count in zip(stems, expected):
        (images, labels, paths), (same, found, _) = drawn[f"{stem}_labels.jpg"], drawn[f"{stem}_pred.jpg"]
        numbers = [int(path.removesuffix(".jpg")) for path in paths]
        assert len(images) == len(numbers) == count and torch.equal(images, same)
        assert images[:, 0, images.shape[2] // 2, 16].tolist() == numbers  # each image beside its own name
        assert labels[:, 1].tolist() == found[:, 1].tolist() == numbers  # and its own boxes
        assert labels[:, 0].tolist() == list(range(count))
        torch.testing.assert_close(labels, found[:, :6])
        if sum(counts) > 100:  # even steps, from the first image to the last
            assert np.ptp(np.diff(numbers)) <= 2
        shown += numbers
    assert len(set(shown)) == len(shown) and min(shown) == 0 and max(shown) == sum(counts) - 1


class _Loader:
    def __init__(self, counts):
        self.counts, self.dataset = counts, range(sum(counts))

    def __len__(self):
        return len(self.counts)


def test_images_of_several_sizes_are_joined_in_the_middle_of_grey():
    wide, high = torch.zeros(3, 20, 40, dtype=torch.uint8), torch.full((3, 40, 20), 255, dtype=torch.uint8)
    box = torch.tensor([[0, 7, 0.25, 0.5, 0.5, 1, 0.8]])
    joined, rows = report.join_images([wide, high], [box, torch.cat([box, box])])
    assert joined.shape == (2, 3, 40, 40)
    assert joined[0, 0, :, 0].tolist() == [114] * 10 + [0] * 20 + [114] * 10
    assert joined[1, 0, 0].tolist() == [114] * 10 + [255] * 20 + [114] * 10
    # pixels: the wide one's box is x 0-20, y 10-30 of 40; the high one's x 10-20, y 0-40
    torch.testing.assert_close(rows, torch.tensor([
        [0, 7, 0.25, 0.5, 0.5, 0.5, 0.8],
        [1, 7, 0.375, 0.5, 0.25, 1, 0.8],
        [1, 7, 0.375, 0.5, 0.25, 1, 0.8],
    ]))  # fmt: skip
