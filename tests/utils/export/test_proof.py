"""The comparison with PyTorch sees what is wrong with a file."""

import pytest
import torch
from export_job import SIZE, random_images
from small_world import lively

from models.yolo import Model
from utils.export.graph import Decoded
from utils.export.proof import prove
from utils.runtimes.base import Metadata, Runtime


@pytest.fixture(scope="module")
def model() -> Model:
    return lively().fuse()


class Altered(Runtime):
    """Runs the detector itself, with something done to its rows."""

    def __init__(self, model, change, **metadata):
        self.model, self.change, self.device, self.dtype = model, change, torch.device("cpu"), torch.float32
        self.metadata = Metadata(names=tuple(model.names), stride=32, imgsz=(SIZE, SIZE), **metadata)

    def run(self, images):
        return (self.change(self.model(images)[0].clone()),)


def worse_box(rows):
    rows[:, :, 0] += 0.1
    return rows


def worse_score(rows):
    rows[..., 4] -= 0.01
    return rows


def other_class(rows):
    return torch.cat((rows[..., :5], rows[..., 5:].flip(-1)), -1)


@pytest.mark.parametrize(
    ("change", "metadata", "says"),
    [
        (lambda rows: rows, {}, None),
        (worse_box, {}, "coordinates differ by 0.1 px"),
        (worse_box, {"half": True}, None),
        (worse_score, {}, "scores differ by 0.01"),
        (other_class, {"int8": True}, "boxes, of which the file detects"),
        (lambda rows: rows[:, 1:], {}, "its output has the shape"),
        (lambda rows: rows / 0, {}, "not finite"),
    ],
    ids=["same", "moved", "moved in half", "less sure", "classes swapped", "a row less", "infinite"],
)
def test_the_proof_sees_what_is_wrong(model, change, metadata, says):
    proof = prove(Altered(model, change, **metadata), Decoded(model), random_images((2, SIZE, SIZE)))
    assert [says] == [None] if not proof.faults and says is None else any(says in fault for fault in proof.faults)
    if says is None:
        assert proof.boxes == proof.matched > 3 and "times as fast" in proof.describe()
