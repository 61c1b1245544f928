"""Two processes on one CPU, by torchrun and gloo: the gradients of one, the same decisions, and one end for both."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from distributed_worker import batch, gradients

from models.backend import load_checkpoint
from utils.files import ROOT

WORKER = Path(__file__).with_name("distributed_worker.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(*arguments) -> tuple[int, str]:
    """Exit status and standard error of two processes that torchrun starts and looks after."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WORKER)]
    command = [*launch, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    return done.returncode, done.stderr


def pair(*arguments) -> tuple[int, str]:
    """The same of two processes with what torchrun would set in their environments, several seconds sooner."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    environment = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**environment, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=240)[1] for process in processes]
    return max(abs(process.returncode) for process in processes), "".join(said)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ten images with a bright box each, and a data set YAML."""
    root = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for i in range(10):
            image = np.full((64, 64, 3), 40, np.uint8)
            x, y = rng.integers(4, 30, 2)
            image[y : y + 24, x : x + 30] = 220
            cv2.imwrite(str(root / f"images/{split}/{i}.png"), image)
            label = f"0 {(x + 15) / 64} {(y + 12) / 64} {30 / 64} {24 / 64}\n"
            (root / f"labels/{split}/{i}.txt").write_text(label)
    content = {"path": str(root), "train": "images/train", "val": "images/val", "nc": 1, "names": ["box"]}
    (root / "boxes.yaml").write_text(yaml.safe_dump(content))
    return root / "boxes.yaml"


def options(data: Path, project: Path, **more) -> list[str]:
    usual = {
        "data": data, "cfg": "models/SOCA-n.yaml", "weights": "", "hyp": "data/hyps/hyp.scratch-low.yaml", "imgsz": 64,
        "batch-size": 4, "epochs": 3, "workers": 0, "device": "cpu", "project": project,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in {**usual, **more}.items()]


def test_gradients_are_those_of_one_process(tmp_path):
    """The boxes are shared out unevenly, seven to one, which a plain mean of the processes' gradients gets wrong."""
    status, err = pair("gradients", tmp_path)
    assert status == 0, err
    expected = gradients(*batch(), None)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, gradient in expected.items():
        assert torch.equal(first[name], second[name])
        assert (first[name] - gradient).norm() <= 1e-7 * gradient.norm() + 1e-12, name


def test_both_stop_early(data, tmp_path):
    """The first process alone knows the fitness, which falls here; with patience 1 the second epoch is the last."""
    status, err = pair("stops", *options(data, tmp_path, epochs=6, patience=1))
    assert status == 0, err
    assert "no improvement in the last epochs (--patience 1), so training stops; best.pt is of epoch 0" in err
    assert len((tmp_path / "exp/results.csv").read_text().splitlines()) == 3  # header and two epochs
    state = load_checkpoint(tmp_path / "exp/weights/last.pt")["training"]["state"]
    assert state["epoch"] == 1 and state["finished"]
    assert state["last_step"] == 5  # half of each batch of 4 in each process: three batches for ten images


def test_one_failing_process_ends_the_other_with_its_error(data, tmp_path):
    status, err = torchrun("fails", *options(data, tmp_path))
    assert status != 0
    assert "train: error: the third step of process 1 went wrong" in err
    assert (tmp_path / "exp/weights/last.pt").exists()


def test_a_batch_that_cannot_be_shared_out(data, tmp_path):
    status, err = pair("train", *options(data, tmp_path, **{"batch-size": 5}))
    assert status != 0 and not list(tmp_path.iterdir())
    assert "--batch-size must be a multiple of the 2 processes that share it, got 5" in err
