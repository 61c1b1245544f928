"""The command yolov5-soca and the Python calls, in a checkout; tests/test_hatch_build.py has the installed package."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import yolov5_soca
from yolov5_soca import COMMANDS, main, make_parser

ROOT = Path(yolov5_soca.__file__).parent


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_it_lists_its_commands(words, capsys):
    main(words)
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == [*COMMANDS, "completion"]


def test_it_knows_every_command_of_the_project():
    """Files of the root and of tools/ that Python can be given."""
    programs = [
        p for p in (*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py")) if "    cli.run(main, " in p.read_text()
    ]
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in programs}
    assert names == {module for module, _ in COMMANDS.values()}


def test_it_says_its_version_and_what_is_wrong(capsys):
    main(["--version"])
    assert re.fullmatch(r"yolov5-soca \d+\.\d+\.\d+\n", capsys.readouterr().out)
    for words, says in (
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["--epochs", "3"], "there is no command '--epochs'; the commands are train, val, "),
        (["completion"], "completion needs the shell, one of bash, zsh, tcsh"),
        (["completion", "cmd"], "completion needs the shell, one of bash, zsh, tcsh"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code.startswith(f"yolov5-soca: error: {says}")


def test_a_command_has_its_own_options_and_answers_soon(tmp_path):
    """From another folder; the help of a command of v6.1 loads no torch."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import yolov5_soca\n"
        "assert not [n for n in sys.modules if n.split('.')[0] in ('utils', 'models', 'torch')]\n"
        "try: yolov5_soca.main(['train', '--help'])\n"
        "except SystemExit as end: assert not end.code and 'torch' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    usual = subprocess.run(
        [sys.executable, ROOT / "train.py", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    options = [re.findall(r"^  (-.*?)(?:  |$)", text, re.M) for text in (ended.stdout, usual.stdout)]
    assert options[0] == options[1] and len(options[0]) > 40
    assert ended.stdout.startswith("usage: yolov5-soca train ")


def test_the_shell_completes_every_option_of_every_command(tmp_path):
    script = tmp_path / "complete.sh"
    ended = subprocess.run(
        [sys.executable, ROOT / "yolov5_soca.py", "completion", "bash"], capture_output=True, text=True, check=True
    )
    script.write_text(ended.stdout)
    ask = (
        'source "$1"; COMP_WORDS=("${@:2}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
        'complete -p yolov5-soca | grep -o "_[a-z_0-9]*" | head -1 >/dev/null; '
        'function=$(complete -p yolov5-soca | sed "s/.*-F \\([^ ]*\\).*/\\1/"); $function; echo "${COMPREPLY[@]}"'
    )

    def completed(*words: str) -> set[str]:
        command = ["bash", "-c", ask, "bash", script, "yolov5-soca", *words]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    assert completed("") >= {*COMMANDS}
    assert completed("de") == {"detect", "demo"}
    assert completed("train", "--close") == {"--close-mosaic"}
    assert completed("train", "--optimizer", "") >= {"SGD", "Adam", "AdamW"}
    assert {"--weights", "--weights-not"} & completed("val", "--we") == {"--weights"}
    parsers = make_parser()._subparsers._group_actions[0].choices
    assert list(parsers) == list(COMMANDS)
    flags = {flag for action in parsers["detect"]._actions for flag in action.option_strings if flag.startswith("--")}
    assert completed("detect", "--") >= flags - {"--help"} and len(flags) > 30


def test_the_python_calls_are_typed_and_described():
    for name in set(yolov5_soca.__all__) - {"__version__"}:
        call = getattr(yolov5_soca, name)
        signature = inspect.signature(call)
        assert inspect.getdoc(call) and signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
