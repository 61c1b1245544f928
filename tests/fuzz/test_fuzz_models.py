"""A damaged model YAML is planned, and where it is small built, as its rows say, or refused by the name of the file."""

import math

import pytest
import torch
import yaml
from fuzzing import CHANGES, EDITS, changed, damaged, few, harmless, refusal
from hypothesis import example, given
from hypothesis import strategies as st

from models.architecture import plain_yaml, plan_layers
from models.registry import registered
from models.yolo import Model
from utils.files import read_yaml

SMALL = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Conv", [32, 6, 2, 2]], [-1, 2, "C3", [32]], [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "SPPF", [64, 5]],
        [-1, 1, "SOCA", []],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 1], 1, "Concat", [1]],
        [[6, 4], 1, "Detect", ["nc", "anchors"]],
    ],
}  # fmt: skip
NAMES = sorted({block.__name__ for block in registered()})
OTHER_BLOCKS = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from(NAMES),
        st.lists(st.sampled_from([None, 1, 2, 3, 8, 32, 0.5, -1, "a", True]), max_size=3),
    ),
    max_size=2,
)  # fmt: skip
TEXT = yaml.safe_dump(SMALL)


def with_blocks(content, blocks):
    """Returns a YAML's content with other blocks in some of its rows."""
    for place, name, args in blocks:
        rows = content.get("backbone" if place < 5 else "head") if isinstance(content, dict) else None
        if isinstance(rows, list) and rows and isinstance(row := rows[place % len(rows)], list) and len(row) == 4:
            row[2:] = [name, args]
    return content


CONTENTS = st.builds(
    lambda changes, blocks: yaml.dump(with_blocks(changed(SMALL, changes), blocks)).encode(), CHANGES, OTHER_BLOCKS
)


def with_key(key, value) -> bytes:
    """Returns the YAML with another value of a key."""
    return yaml.safe_dump({**SMALL, key: value}).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


@few
@example(with_key("width_multiple", math.inf))
@example(with_key("width_multiple", math.nan))
@example(with_key("depth_multiple", math.inf))
@example(with_key("ch", 10**400))
@example(with_key("ch", -1))
@example(with_key("anchors", [[10, 10**400, 16, 30], [30, 61, 62, 45]]))
@example(with_key("anchors", [[10, math.nan, 16, 30], [30, 61, 62, 45]]))
@example(with_key("ch", "3"))
@given(CONTENTS | EDITS.map(lambda edits: damaged(TEXT.encode(), edits)))
def test_model_yaml(folder, data):
    file = folder / "model.yaml"
    file.write_bytes(data)
    with harmless(folder):
        try:
            content = plain_yaml(read_yaml(file), file.name, file)
            layers = plan_layers(content, content.get("ch", 3), file.name)
        except (ValueError, OSError) as error:
            refusal(error, file)
            return
    assert type(content.get("ch", 3)) is int and len(layers) == len(content["backbone"]) + len(content["head"])
    numbers = [layer.plan.channels for layer in layers] + [layer.repeats for layer in layers]
    if max(numbers) > 512 or content["nc"] > 512 or content.get("ch", 3) > 512:
        return  # planned, but to build it would need the memory of a large network
    with harmless(folder), torch.random.fork_rng(devices=[]):
        try:
            model = Model(file)
        except (ValueError, OSError) as error:
            refusal(error, file)
            return
    assert [layer.i for layer in model.model] == list(range(len(layers)))
    assert [layer.type.rpartition(".")[2] for layer in model.model] == [layer.block.__qualname__ for layer in layers]
    assert all(parameter.numel() < 2**30 for parameter in model.parameters())
