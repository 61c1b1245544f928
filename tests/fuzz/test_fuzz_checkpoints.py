"""A `.pt` file whose pickle is damaged opcode by opcode is a detector of the blocks that are here, or is refused."""

import pickletools
import zipfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import EDITS, damaged, few, harmless, refusal
from hypothesis import given
from hypothesis import strategies as st

from models.backend import load_checkpoint, load_model
from models.yolo import Model

SMALL = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [[-1, 1, "Conv", [32, 6, 2, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "SOCA", []]],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 0], 1, "Concat", [1]],
        [[4, 2], 1, "Detect", ["nc", "anchors"]],
    ],
}
PLAIN = {type(None), bool, int, float, str, list, tuple, dict, torch.Tensor}
IMAGE = torch.zeros(1, 3, 32, 32)
OPCODES = st.lists(
    st.tuples(
        st.sampled_from(["copy", "delete", "insert", "byte"]), st.integers(0, 10**5), st.integers(0, 10**5)
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


class Sound:
    """A checkpoint: its folder, the members of its archive, and the opcodes of its pickle.

    No dataclass: a failing case would print all of it.
    """

    def __init__(self, folder: Path, members: dict[str, bytes]):
        self.folder, self.members = folder, members
        pickle = members["sound/data.pkl"]
        starts = [position for *_, position in pickletools.genops(pickle)]
        self.pieces = [pickle[a:b] for a, b in zip(starts, [*starts[1:], len(pickle)])]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with a checkpoint as training writes it, and the members of its archive."""
    file = tmp_path_factory.mktemp("checkpoints") / "sound.pt"
    model = Model(SMALL).eval()
    more = {"best_fitness": np.float64(0.5), "training": {"seen": [1, 2], "t": torch.zeros(3)}, "epoch": 3}
    torch.save({**more, "model": model, "ema": deepcopy(model).half()}, file)
    load_model(file)(IMAGE)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return Sound(file.parent, members)


def edited(pieces: list[bytes], edits) -> bytes:
    """Returns a pickle with opcodes replaced by others of it, left out, repeated, or changed by a byte."""
    pieces = list(pieces)
    for kind, place, other in edits:
        place %= len(pieces)
        piece = pieces[other % len(pieces)]
        if kind == "copy":
            pieces[place] = piece
        elif kind == "delete":
            del pieces[place]
        elif kind == "insert":
            pieces.insert(place, piece)
        else:
            piece = bytearray(pieces[place])
            piece[other % len(piece)] = other // len(piece) % 256
            pieces[place] = bytes(piece)
    return b"".join(pieces)


def read(file) -> None:
    """Reads a checkpoint, which is a detector of the blocks here, or refused."""
    with harmless(file.parent):
        try:
            content = load_checkpoint(file)
            model = load_model(file)
        except (ValueError, OSError) as error:
            assert len(refusal(error, file)) < 1000 + len(str(file))
            return
    assert type(content["model"]) is type(model) is Model and not model.training
    for module in (*content["model"].modules(), *model.modules()):
        assert type(module).__module__.startswith(("models.", "torch.nn.modules.", "utils.activations")), type(module)
        assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
    others = [value for key, value in content.items() if key not in ("model", "ema")]
    assert all(type(value) in PLAIN or isinstance(value, np.number) for value in others), others
    with torch.no_grad():
        assert model(IMAGE)[0].shape == (1, 2 * (16 * 16 + 8 * 8), 7)


@few
@given(OPCODES)
def test_opcodes(sound, edits):
    file = sound.folder / "opcodes.pt"
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {**sound.members, "sound/data.pkl": edited(sound.pieces, edits)}.items():
            archive.writestr(name, data)
    read(file)


@few
@given(EDITS.map(lambda edits: [(kind, place * 37, value) for kind, place, value in edits]))
def test_archives(sound, edits):
    """The archive itself, at any byte, the directory at its end included."""
    file = sound.folder / "archive.pt"
    file.write_bytes(damaged((sound.folder / "sound.pt").read_bytes(), edits))
    read(file)
    file.unlink()
