"""Programs are opened only where this installation wrote them, or where the user trusts them."""

import os
from pathlib import Path

import pytest
import torch

import hubconf
from models.backend import Backend
from models.common import DetectMultiBackend
from utils.files import state_folder
from utils.runtimes import trust
from utils.runtimes.table import RUNTIMES, runtime_for

PROGRAMS = (".torchscript", ".pt2", ".pte", ".engine", ".pb", "_saved_model")


@pytest.fixture
def traced(tmp_path) -> Path:
    """A TorchScript file, written by somebody else."""
    file = tmp_path / "model.torchscript"
    torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 3, 8, 8)), str(file))
    return file


def test_the_table_of_programs():
    assert {suffix for suffix in RUNTIMES if runtime_for(f"a{suffix}").program} == set(PROGRAMS)
    text = Path(trust.__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| programs |")]
    assert all(f"{suffix}`" in row for suffix in PROGRAMS)


@pytest.mark.parametrize("suffix", PROGRAMS)
def test_a_program_of_others_is_refused_before_it_is_read(tmp_path, suffix):
    path = tmp_path / f"best{suffix}"
    if suffix == "_saved_model":
        path.mkdir()
        (path / "saved_model.pb").write_bytes(b"x")
    else:
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is a program.* did not write this one.*--trust-weights \(trust=True"):
        Backend(path)
    with pytest.raises(Exception) as refused:  # a damaged file, or a toolchain that is missing
        Backend(path, trust=True)
    assert "--trust-weights" not in str(refused.value)


def test_the_user_can_trust_a_program(traced, monkeypatch):
    """In Python, in the hub and on the command lines."""
    for opened in (
        lambda **more: Backend(traced, **more),
        lambda **more: DetectMultiBackend(traced, **more),
        lambda **more: hubconf.custom(traced, device="cpu", **more),
    ):
        with pytest.raises(ValueError, match="--trust-weights"):
            opened()
        assert opened(trust=True)


@pytest.mark.parametrize("verb", ["detect", "val"])
def test_the_command_lines_refuse_programs(traced, command, verb, tmp_path):
    code, error = command(verb, "--weights", traced, "--device", "cpu", "--project", tmp_path / "runs")
    assert code and "--trust-weights" in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_a_program_that_was_noted_is_opened_until_it_changes(traced):
    trust.note(traced)
    runtime = Backend(traced).runtime
    assert runtime.path == traced and runtime.file != traced  # what was checked is opened
    copied = traced.with_name("moved.torchscript")
    copied.write_bytes(traced.read_bytes())
    assert Backend(copied)
    content = bytearray(traced.read_bytes())
    content[len(content) // 2] ^= 1
    traced.write_bytes(content)
    with pytest.raises(ValueError, match="--trust-weights"):
        Backend(traced)


def test_what_is_opened_is_what_was_checked(traced, monkeypatch):
    """Another process replaces the file as soon as it is open."""
    trust.note(traced)
    load = torch.jit.load

    def replaced_meanwhile(file, **options):
        traced.write_bytes(b"hostile")
        return load(file, **options)

    monkeypatch.setattr(torch.jit, "load", replaced_meanwhile)
    assert Backend(traced).runtime.run(torch.zeros(1, 3, 8, 8))[0].shape == (1, 192)


def test_folders_are_known_by_the_names_and_contents_of_their_files(tmp_path):
    folder = tmp_path / "a_saved_model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables/data").write_bytes(b"numbers")
    trust.note(folder)
    holder, copy = trust.open_copy(folder, "a SavedModel")
    assert (copy / "variables/data").read_bytes() == b"numbers" and copy.name == folder.name
    holder.cleanup()
    (folder / "variables/data").rename(folder / "variables/date")
    with pytest.raises(ValueError, match="is a program"):
        trust.open_copy(folder, "a SavedModel")
    (folder / "variables/date").rename(folder / "variables/data")
    (folder / "variables/more").symlink_to(folder / "saved_model.pb")
    with pytest.raises(ValueError, match="is a link"):
        trust.open_copy(folder, "a SavedModel")


def test_a_file_that_is_no_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.torchscript")
    with pytest.raises(ValueError, match="must be a plain file"):
        Backend(tmp_path / "a.torchscript")


def test_the_notes_are_bounded_and_survive_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "NOTED", 2)
    files = [tmp_path / name for name in ("a.pb", "b.pb", "c.pb")]
    for file in files:
        file.write_text(file.name)
        trust.note(file)
        trust.note(file)
    notes = state_folder() / trust.NOTES
    assert len(notes.read_text().splitlines()) == 2
    with pytest.raises(ValueError):
        trust.open_copy(files[0], "a GraphDef")
    notes.write_bytes(b"\xff\0 no line\n" + notes.read_bytes())
    assert trust.open_copy(files[2], "a GraphDef")
