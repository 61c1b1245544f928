"""Options stated once in a parser: the command line and keyword arguments give the same."""

import argparse
import copy
import inspect
import math
import sys
from pathlib import Path

import pytest
import torch

from utils import cli


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--weights", nargs="+", default=["a.pt"], help="files to load")
    made.add_argument("--epochs", type=cli.whole(0), default=3, help="passes (default: %(default)s)")
    made.add_argument("--conf-thres", type=cli.real(0, 1), default=0.25)
    made.add_argument("--task", choices=("val", "test"), default="val")
    made.add_argument("--cache", nargs="?", const="ram", default="auto", choices=("auto", "ram"))
    made.add_argument("--freeze", nargs="+", type=cli.number_or_text, default=[0])
    made.add_argument("--fraction", type=cli.real(0, 1, open_low=True), default=1.0)
    made.add_argument("--device", default="")
    made.add_argument("--half", action="store_true")
    return made


@cli.takes(parser, "weights", "epochs")
def run(model=None, **options) -> cli.Options:
    """Returns its options."""
    return cli.options(parser(), options)


# command line, the same as keyword arguments
SAME = [
    ([], {}),
    (["--weights", "b.pt"], {"weights": "b.pt"}),
    (["--weights", "b.pt"], {"weights": Path("b.pt")}),
    (["--weights", "b.pt", "c.pt"], {"weights": ("b.pt", Path("c.pt"))}),
    (["--epochs", "4"], {"epochs": 4}),
    (["--epochs", "3"], {"epochs": 3}),  # equal to the default, and given all the same
    (["--conf-thres", "1"], {"conf_thres": 1}),
    (["--cache"], {"cache": "ram"}),
    (["--freeze", "1", "model.2"], {"freeze": [1, "model.2"]}),
    (["--half"], {"half": True}),
    (["--device", "0"], {"device": 0}),
]


@pytest.mark.parametrize(("words", "keywords"), SAME)
def test_keywords_are_read_as_the_command_line_is(words, keywords):
    expected, opt = cli.parse(parser(), argv=words), run(**keywords)
    assert vars(opt) == vars(expected)
    assert opt.given == expected.given == set(keywords)


def test_none_stands_for_the_default():
    opt = run(epochs=None, weights=None, half=None)
    assert vars(opt) == vars(run()) and opt.given == set()


def test_a_program_sets_attributes_and_calls_main():
    opt = cli.parse(parser(), argv=["--epochs", "3"])
    opt.task, opt.device = "test", 0
    accepted = cli.accept(parser(), opt)
    assert accepted.given == {"epochs", "task", "device"} and accepted.device == "0"
    assert vars(cli.accept(parser(), argparse.Namespace(task="test", device=0))) == vars(accepted)
    opt.epochs = -1
    with pytest.raises(ValueError, match="--epochs must be at least 0, got -1"):
        cli.accept(parser(), opt)
    with pytest.raises(TypeError, match="there is no option 'epoch'; did you mean 'epochs'"):
        cli.accept(parser(), argparse.Namespace(epoch=3))


def test_the_first_arguments_may_come_by_position():
    assert run("b.pt", 5).weights == ["b.pt"] and run("b.pt", 5).epochs == 5
    with pytest.raises(TypeError, match="at most 2 arguments may be given by position, got 3"):
        run("b.pt", 5, 0.1)
    with pytest.raises(TypeError, match="weights: given by position and by name"):
        run("b.pt", weights="c.pt")


# keyword arguments, what the error says
WRONG = [
    ({"epochs": -1}, ValueError, "--epochs must be at least 0, got -1"),
    ({"epochs": 1.5}, ValueError, "--epochs must be a whole number, got 1.5"),
    ({"epochs": True}, ValueError, "--epochs must be a whole number, got True"),
    ({"epochs": "many"}, ValueError, "--epochs must be a whole number, got 'many'"),
    ({"conf_thres": 1.5}, ValueError, "--conf-thres must be between 0 and 1, got 1.5"),
    ({"conf_thres": float("nan")}, ValueError, "--conf-thres must be between 0 and 1, got nan"),
    ({"fraction": 0}, ValueError, "--fraction must be above 0 and at most 1, got 0.0"),
    ({"half": "no"}, ValueError, "--half must be True or False, got 'no'"),
    ({"task": "train"}, ValueError, "--task must be one of val, test, got 'train'"),
    ({"epoch": 3}, TypeError, "there is no option 'epoch'; did you mean 'epochs'?"),
    ({"zzz": 3}, TypeError, "there is no option 'zzz'; the options are weights, epochs"),
]


@pytest.mark.parametrize(("keywords", "kind", "message"), WRONG)
def test_what_cannot_be_is_refused(keywords, kind, message):
    with pytest.raises(kind) as error:
        run(**keywords)
    assert message in str(error.value)


def test_a_number_out_of_range_on_the_command_line():
    with pytest.raises(ValueError, match=r"--conf-thres must be between 0 and 1, got 2\.0"):
        cli.parse(parser(), argv=["--conf-thres", "2"])


def test_help_shows_every_name_and_default():
    shown = inspect.signature(run).parameters
    assert list(shown) == ["weights", "epochs", "conf_thres", "task", "cache", "freeze", "fraction", "device", "half",
                           "model"]  # fmt: skip
    assert shown["epochs"].default == 3 and shown["model"].default is None
    assert "Returns its options." in run.__doc__ and "epochs: passes (default: 3)" in run.__doc__


def options(*arguments) -> cli.Options:
    """What a small parser of one option of each kind makes of a command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--weights", default="a.pt")
    parser.add_argument("--freeze", nargs="+", type=cli.number_or_text, default=[0])
    parser.add_argument("--evolve", nargs="?", type=int, const=300)
    parser.add_argument("--image-weights", action="store_true")
    parser.add_argument("--cos-lr", action=argparse.BooleanOptionalAction)
    cli.add_removed(parser, {"--bucket": "nothing"})
    return cli.parse(parser, argv=list(map(str, arguments)))


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], {}),
        (["--epochs", 300], {"epochs": 300}),  # the default, but asked for
        (["--ep=3", "--image"], {"epochs": 3, "image_weights": True}),
        (["--weights", ""], {"weights": ""}),
        (["--freeze", 0], {"freeze": [0]}),
        (["--freeze", 2, "model.4", -1, "--evolve"], {"freeze": [2, "model.4", -1], "evolve": 300}),
        (["--no-cos-lr"], {"cos_lr": False}),
    ],
)
def test_which_options_were_given(arguments, given):
    defaults = {"epochs": 300, "weights": "a.pt", "freeze": [0], "evolve": None, "image_weights": False, "cos_lr": None}
    opt = options(*arguments)
    assert vars(opt) == {**defaults, **given} and opt.given == set(given)
    assert "given" not in vars(opt) and "given" not in cli.describe("train", opt)
    assert copy.deepcopy(opt).given == opt.given


def end_of(error: BaseException, capsys) -> tuple[int, str]:
    """Exit status and message of a command whose main raises this."""

    def main(_):
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(main, argparse.Namespace(), "train")
    return end.value.code, capsys.readouterr().err


class OutOfMemoryError(RuntimeError):
    """What torch raises over a full GPU has this name."""


def test_what_a_user_can_cause_ends_in_a_message(capsys):
    assert issubclass(torch.cuda.OutOfMemoryError, RuntimeError)
    assert torch.cuda.OutOfMemoryError.__name__ == OutOfMemoryError.__name__
    code, err = end_of(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), capsys)
    assert code == 1 and err.startswith("train: error: out of memory; try a smaller --batch-size or --imgsz (CUDA out")
    assert end_of(FloatingPointError("the loss is nan"), capsys) == (1, "train: error: the loss is nan\n")
    assert end_of(KeyboardInterrupt(), capsys) == (130, "train: stopped by SIGINT\n")


def test_an_error_of_a_reading_process_comes_without_its_traceback(capsys):
    try:
        raise ValueError("a b.jpg: image cannot be decoded: no: really")
    except ValueError:
        wrapped = torch._utils.ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ValueError) as raised:
        wrapped.reraise()
    assert "Traceback" in str(raised.value)
    assert end_of(raised.value, capsys) == (1, "train: error: a b.jpg: image cannot be decoded: no: really\n")


def test_what_argparse_refuses_is_shown_without_secrets(capsys):
    parser = argparse.ArgumentParser("detect.py")
    parser.add_argument("--imgsz", type=int)
    for words in (["--sauce", "rtsp://me:secret@camera/1"], ["--imgsz", "http://host/?token=secret\x1b[31m"]):
        with pytest.raises(SystemExit):
            cli.parse(parser, argv=words)
        said = capsys.readouterr().err
        assert "://***@camera/1" in said or "token=***" in said
        assert "secret" not in said and "\x1b" not in said


def test_our_own_bugs_keep_their_traceback(monkeypatch):
    for error in (RuntimeError("shapes"), KeyError("x"), AssertionError()):
        with pytest.raises(type(error)):
            end_of(error, None)


def test_a_traceback_that_is_asked_for_has_no_secrets(monkeypatch, capsys):
    monkeypatch.setenv("YOLOv5_TRACEBACK", "1")
    _, text = end_of(ValueError("cannot open rtsp://me:secret@camera/1\x1b[2J"), capsys)
    assert text.startswith("Traceback") and "in main" in text and "cannot open rtsp://***@camera/1\\x1b[2J" in text
    assert "secret" not in text and "\x1b" not in text


def test_memory_of_the_cpu_that_is_full_is_no_bug(capsys):
    try:
        torch.empty(2**50)
    except RuntimeError as error:
        assert "out of memory; try a smaller --batch-size" in end_of(error, capsys)[1]


def test_numbers_beyond_all_floats_are_in_no_range():
    largest = int(sys.float_info.max)
    assert largest in cli.Range(0) and -largest in cli.Range(high=0)
    assert not any(
        n in r for n in (10 * largest, -10 * largest, math.inf, math.nan) for r in (cli.Range(), cli.Range(-1))
    )
