"""A small detector to be exported, and pictures for it."""

from pathlib import Path

import pytest
import torch
from small_world import lively, write_boxes, write_yaml

from utils import checkpoint


@pytest.fixture
def weights(here) -> Path:
    """A small detector of two classes with SOCA; its weights lie in channels-last order, as train.py saves them."""
    model = lively(nc=2).to(memory_format=torch.channels_last)
    model.names = ["red", "weiß"]
    checkpoint.save(here / "best.pt", checkpoint.pack(model))
    return here / "best.pt"


@pytest.fixture
def data(here) -> Path:
    """The YAML of a data set of pictures with two boxes each."""
    return write_yaml(here / "boxes.yaml", write_boxes(here / "boxes"))
