"""Fixtures of the tests of the commands: a small data set, a trained model, arguments that work, and refusals."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_world import (
    BOXES,
    GROUND,
    RED,
    SIZE,
    TINY,
    WHITE,
    BrightBoxes,
    boxes_image,
    label_text,
    lively,
    tree,
    write_boxes,
    write_kinds,
    write_set,
    write_yaml,
)

import detect
import train
from engine import detection, validation
from utils import checkpoint


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> SimpleNamespace:
    """A data set of 6 + 4 images, a tiny model, and a run of two epochs made by a Python call."""
    root = tmp_path_factory.mktemp("ein Größenversuch 検出")
    content = write_boxes(root / "my set")
    world = SimpleNamespace(
        root=root,
        images=root / "my set" / "images" / "val",
        content=content,
        data=write_yaml(root / "my set.yaml", content),
        cfg=write_yaml(root / "tiny model.yaml", TINY),
    )
    before = Path.cwd()
    os.chdir(root)
    try:
        world.results = train.run(
            cfg="tiny model.yaml", weights="", data=world.data, imgsz=SIZE, epochs=2, batch_size=4, workers=0,
            device="cpu", project=root / "runs/train", optimizer="AdamW", hyp="data/hyps/hyp.scratch-low.yaml",
        )  # fmt: skip
    finally:
        os.chdir(before)
    world.run = root / "runs" / "train" / "exp"
    world.best = world.run / "weights" / "best.pt"
    return world


@pytest.fixture
def usual(world) -> dict[str, list]:
    """Arguments with which each command works."""
    common = ["--imgsz", SIZE, "--device", "cpu", "--project", "out"]
    return {
        "train": [*common, "--weights", "", "--cfg", world.cfg, "--data", world.data, "--epochs", 1, "--batch", 4,
                  "--workers", 0],
        "val": [*common, "--weights", world.best, "--data", world.data, "--workers", 0],
        "detect": [*common, "--weights", world.best, "--source", world.images],
    }  # fmt: skip


@pytest.fixture
def refused(command, usual, here, world):
    """`refused(verb, *arguments, says=...)`: the usual arguments and then these end in one message, and no file."""

    def check(verb: str, *arguments, says: str | list[str], code: int = 1) -> str:
        before = tree(here), tree(world.root)
        found, err = command(verb, *usual[verb], *arguments)
        assert found == code, err
        assert "Traceback" not in err
        mark = f"{verb}: error: " if code == 1 else f"{verb}.py: error: "
        assert err.count(mark) == 1
        message = err.partition(mark)[2]
        for text in [says] if isinstance(says, str) else says:
            assert str(text) in message
        assert (tree(here), tree(world.root)) == before
        return message

    return check


@pytest.fixture
def variant(world):
    """`variant(**changes)`: a data YAML like the usual one; a key set to None is left out."""

    def write(**changes) -> Path:
        content = {k: v for k, v in {**world.content, **changes}.items() if v is not None}
        return write_yaml(Path("data variant.yaml"), content)

    return write


@pytest.fixture
def bright(monkeypatch):
    """val and detect see with `BrightBoxes`."""
    for module in (validation, detection):
        monkeypatch.setattr(module, "Backend", BrightBoxes)


@pytest.fixture
def detected(monkeypatch, here):
    """`detected(source, **options)`: the folder of results of detect.run, `BrightBoxes` being the detector."""
    monkeypatch.setattr(detection, "Backend", BrightBoxes)
    monkeypatch.setattr(detection, "find_weights", lambda name, download: Path(name))

    def run(*source, **options) -> Path:
        return detect.run("bright.pt", *source, **{"imgsz": SIZE, "device": "cpu", "project": "out", **options})

    return run


@pytest.fixture(scope="session")
def kinds(tmp_path_factory) -> tuple[Path, list[str]]:
    """A data set of `write_kinds` with labels for the upright images, and the names of its sound images."""
    root = tmp_path_factory.mktemp("alle Arten")
    sound = write_kinds(root / "images")
    pil = Image.fromarray(boxes_image()[..., ::-1].copy())
    frames = [pil.convert("P"), pil.rotate(180).convert("P")]
    frames[0].save(root / "images" / "moving gif.jpg", format="GIF", save_all=True, append_images=frames[1:])
    pil.resize((1, 1)).save(root / "images" / "pixel.png")
    (root / "labels").mkdir()
    for file in (root / "images").iterdir():
        text = label_text(*((c, *box) for c, box in enumerate(BOXES)))
        (root / "labels" / f"{file.stem}.txt").write_text(text)
    return root, sound


@pytest.fixture
def odd_size(here) -> tuple[Path, dict[str, list]]:
    """Images of 120 x 180, which are made smaller, and the boxes in them: image stem -> red, white xyxy."""
    boxes = {"0007": [[17, 20, 56, 81], [96, 41, 169, 104]], "night shot": [[16, 20, 60, 80], None]}
    for stem, pair in boxes.items():
        image = np.full((120, 180, 3), GROUND, np.uint8)
        rows = []
        for c, (box, colour) in enumerate(zip(pair, (RED, WHITE))):
            if box:
                x1, y1, x2, y2 = box
                image[y1:y2, x1:x2] = colour
                rows.append(f"{c} {(x1 + x2) / 360} {(y1 + y2) / 240} {(x2 - x1) / 180} {(y2 - y1) / 120}\n")
        write_set(here / "odd", {f"{stem}.png": (image, "".join(rows))}, "val")
    return here / "odd/images/val", boxes


@pytest.fixture
def weights(here) -> Path:
    """A small detector of two classes with SOCA; its weights lie in channels-last order, as train.py saves them."""
    model = lively(nc=2).to(memory_format=torch.channels_last)
    model.names = ["red", "weiß"]
    checkpoint.save(here / "best.pt", checkpoint.pack(model))
    return here / "best.pt"


@pytest.fixture
def data(here) -> Path:
    """The YAML of a data set of images with two boxes each."""
    return write_yaml(here / "boxes.yaml", write_boxes(here / "boxes"))
