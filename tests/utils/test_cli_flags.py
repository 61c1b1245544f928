"""Every flag of v6.1, as docs/v6.1/01-cli.md lists them, is there: name, number of values, default."""

import argparse
import ast
import re
from pathlib import Path

import pytest

import detect
import export
import train
import val

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "v6.1" / "01-cli.md"
VERBS = {"train": train, "val": val, "detect": detect, "export": export}
HERE = {  # defaults that differ on purpose, and say the same as v6.1's where that is chosen
    ("train", "--hyp"): "auto",
    ("train", "--cache"): "auto",
    ("train", "--optimizer"): None,  # the recipe's, which is SGD in v6.1's
    ("train", "--cos-lr"): None,  # the recipe's
    ("detect", "--line-thickness"): None,  # by the size of the image
    ("export", "--simplify"): True,
} | {(verb, "--data"): "data/shapes.yaml" for verb in VERBS}
IGNORED = ("--upload_dataset", "--bbox_interval", "--artifact_alias")


def documented() -> list[tuple[str, str, str, str]]:
    """Returns verb, flag, kind and default of each flag of the tables."""
    flags = []
    for verb in VERBS:
        part = re.search(rf"^## \d+\. {verb}\.py$(.*?)^## ", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)[1]
        for line in part.splitlines():
            if line.startswith("| `--"):
                names, kind, default, *_ = (cell.strip() for cell in line.strip("|").split("|"))
                flags += [(verb, name, kind, default) for name in re.findall(r"`(--[\w-]+)`", names)]
    return flags


def default_of(kind: str, text: str) -> object:
    text = text.strip("`")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return value.split() if kind == "str, 1+" else value


def test_the_tables_are_read_whole():
    flags = documented()
    assert len(flags) == len(set(flags)) == 113


@pytest.mark.parametrize(("verb", "name", "kind", "default"), documented(), ids=lambda value: value.strip("`"))
def test_a_flag_of_v61(verb, name, kind, default):
    action: argparse.Action = VERBS[verb].make_parser()._option_string_actions[name]
    values = 0 if kind.startswith("flag") else "+" if "1+" in kind else "?" if kind.startswith("optional") else None
    if name in ("--bucket", *IGNORED):
        assert action.nargs == "?"  # with a value or without
        assert action.dest == (argparse.SUPPRESS if name == "--bucket" else name[2:])  # --bucket ends in an error
        return
    assert action.nargs == values
    assert action.default == HERE.get((verb, name), default_of(kind, default))
    assert action.dest == ("imgsz" if name.startswith("--img") else name[2:].replace("-", "_"))
    if kind.startswith("choice"):
        assert list(action.choices) == re.findall(r"`(\w+)`", kind)
    if const := re.search(r"const `?(\w+)", kind):
        assert str(action.const) == const[1]


@pytest.mark.parametrize(
    "words", [["--bbox_interval", "1"], ["--upload_dataset"], ["--upload_dataset", "val"], ["--artifact_alias", "v1"]]
)
def test_options_that_change_nothing_are_ignored_with_a_word(words, caplog):
    opt = train.parse_opt(argv=[*words, "--cfg", "no such.yaml", "--weights", "", "--device", "cpu", "--epochs", "7"])
    with pytest.raises(FileNotFoundError, match=r"no such\.yaml"):
        train.main(opt)
    assert opt.epochs == 7 and f"{words[0]}: ignored, W&B gets neither data sets nor boxes" in caplog.text
