"""What all tests with damaged files share: how many cases are drawn, how a file is damaged, and what no case may do."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("FUZZ_CASES", "1000"))
fuzz = settings(
    max_examples=CASES,
    derandomize="FUZZ_CASES" not in os.environ,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
few = settings(fuzz, max_examples=CASES if "FUZZ_CASES" in os.environ else 30)  # of cases that take milliseconds
MORE_MEMORY = 2**30  # bytes that a case may take beside what the process has


# --- damage -----------------------------------------------------------------------------------------------------------

ODD = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "set", "early", "early", "cut", "insert", "double"]),
        st.integers(0, 2000),
        ODD | st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def damaged(sound: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    """Returns a file's bytes after EDITS: bytes set, put in or repeated, or the end cut off."""
    data = bytearray(sound)
    for kind, place, value in edits:
        if not data:
            break
        place %= len(data)
        if kind == "set":
            data[place] = value
        elif kind == "early":  # headers are where the harm is
            data[place % min(len(data), 64)] = value
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data.insert(place, value)
        else:
            data[place:place] = data[place : place + value]
    return bytes(data)


NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 3, 7, 10**5, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308, float("inf"),
     float("-inf"), float("nan"), True, False]
)  # fmt: skip
TEXTS = st.sampled_from(
    ["", "a", "0", "1e999", "nan", "../../x", "/etc/passwd",
     "\0", "a\nb", "\x1b[31m", "\ud800", "é", "x" * 5000, "circle"]
) | st.text(max_size=6)  # fmt: skip
VALUES = st.one_of(
    NUMBERS,
    TEXTS,
    st.none(),
    st.recursive(
        NUMBERS | TEXTS | st.none(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=5,
    ),
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "set", "delete", "repeat", "copy"]),
        st.integers(0, 500),
        st.integers(0, 500),
        VALUES,
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


def _spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each (container, key or index) in a tree of dicts and lists."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _spots(value)


def changed(sound: Any, changes: list[tuple[str, int, int, Any]]) -> Any:
    """Returns a tree of dicts, lists and plain values after CHANGES: values set, left out, repeated or copied."""
    root = [deepcopy(sound)]
    for kind, place, other, value in changes:
        spots = list(_spots(root))
        if not spots:
            break
        container, key = spots[place % len(spots)]
        if kind == "set":
            container[key] = deepcopy(value)
        elif kind == "delete" and container is not root:
            del container[key]
        elif kind == "repeat" and isinstance(container, list) and container is not root:
            container.insert(key, deepcopy(container[key]))
        elif kind == "copy":
            source, name = spots[other % len(spots)]
            container[key] = deepcopy(source[name])
    return root[0]


# --- what no case may do ----------------------------------------------------------------------------------------------


@contextmanager
def no_hang(seconds: int = 30) -> Iterator[None]:
    """Ends a case that would not end: far longer than any honest one takes on a busy machine."""

    def stop(*_):
        raise AssertionError(f"not done after {seconds} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def refusal(error: BaseException, path: str | Path) -> str:
    """Returns the message of a refusal; it names the file, and is fit for a terminal."""
    message = str(error)
    assert os.path.basename(path) in message, error
    return message


_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
_FORBIDDEN += ("pickle.find_class", "shutil.rmtree")
_CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
_watched: list[tuple[str, list[str]]] = []  # the folder in which a case may write, and what it did elsewhere


def _watch(event: str, arguments: tuple) -> None:
    """Notes what a case does to the world; Python calls it at each event and offers no way to end that."""
    if not _watched or event not in (*_FORBIDDEN, *_CHANGING, "open"):
        return
    folder, found = _watched[-1]
    if event == "open":
        path, mode, flags = arguments
        writes = any(sign in mode for sign in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes or not isinstance(path, str | bytes | os.PathLike):
            return
    if event in _FORBIDDEN or not os.path.realpath(os.fsdecode(arguments[0])).startswith(folder):
        found.append(f"{event}{arguments}"[:300])


sys.addaudithook(_watch)


def _state() -> tuple:
    allowed = torch.serialization.get_safe_globals()
    return os.getcwd(), dict(os.environ), torch.get_default_dtype(), torch.is_grad_enabled(), allowed, list(sys.path)


@contextmanager
def harmless(folder: str | Path) -> Iterator[None]:
    """Holds that a case ends, takes no more memory than MORE_MEMORY, starts no program, writes nothing outside a
    folder, and leaves the process as it was.
    """
    before, found = _state(), []
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MORE_MEMORY, limits[1]))
    _watched.append((os.path.realpath(folder), found))
    try:
        with no_hang():
            yield
    finally:
        _watched.pop()
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not found, found
    assert _state() == before
