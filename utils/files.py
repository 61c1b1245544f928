"""Paths, YAML, and files that are written whole or not at all."""

import math
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import yaml

from utils.text import PACKAGE, decode_text, printable

ROOT = Path(__file__).resolve().parents[1]  # the repository, or the folder of the installed package
GIB = 2**30  # bytes
MAX_YAML = 1 << 26  # bytes of a YAML file
MAX_LIST = 1 << 30  # bytes of a list of images or of class names
MAX_CLASSES = 2**15  # of a data set or a model; ImageNet-21k has 21841
MAX_NAME = 1_000  # characters of a class's name
MAX_IMAGE_CHANNELS = 2**10  # of the images of a data set or a model
ALIASED_VALUES = 10_000  # that the aliases of a YAML file may stand for, besides ten times its length


def home(root: Path = ROOT) -> Path:
    """Returns where relative paths of the project's own data sets begin: in a checkout its folder `root`.

    An installed package keeps nothing in its own folder: they begin in the current one.
    """
    return Path.cwd() if PACKAGE else root


def cache_folder() -> Path:
    """Returns this user's folder for files that can be made again: in XDG_CACHE_HOME where that is set. Not created."""
    if place := os.environ.get("XDG_CACHE_HOME"):
        root = Path(place)
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        root = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return root / "yolov5-soca"


def state_folder() -> Path:
    """Returns this user's folder for what this installation remembers: in XDG_STATE_HOME where set. Not created."""
    if place := os.environ.get("XDG_STATE_HOME"):
        root = Path(place)
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        root = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/state")
    return root / "yolov5-soca"


def increment_path(path: str | Path, exist_ok: bool = False, mkdir: bool = False) -> Path:
    """Returns the first free name of `runs/exp`, `runs/exp2`, `runs/exp3` ..., after the highest that exists.

    exist_ok: returns path itself, also where it exists.
    mkdir:    creates the folder too; two processes that call this at once get different ones.

    A file keeps its suffix (`a.csv` -> `a2.csv`).
    """
    path = Path(path)
    if exist_ok:
        if mkdir:
            _make_folder(path)
        return path
    if mkdir:
        _make_folder(path.parent)
    while True:
        candidate = _next_free(path)
        if not mkdir:
            return candidate
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:  # another process created it in the meantime
            continue


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(
            f"{path}: cannot create this folder: a file has its name, or that of a folder above; choose another"
        ) from None


def _next_free(path: Path) -> Path:
    if not path.exists():
        return path
    stem, suffix = (path.with_suffix("").name, path.suffix) if path.is_file() else (path.name, "")
    pattern = re.compile(re.escape(stem) + r"(\d+)")
    numbers = [int(m[1]) for p in path.parent.iterdir() if (m := pattern.match(p.name))]
    return path.with_name(f"{stem}{max(numbers, default=1) + 1}{suffix}")


def check_own_files(folder: Path, what: str) -> None:
    """Raises ValueError where a folder that `what` would write into is a link, or holds links, pipes or devices.

    In a folder that comes from elsewhere they could lead what is written to any file of the user.
    """
    if folder.is_symlink():
        raise ValueError(f"{what}: {folder} is a link; give the folder itself")
    for entry in os.scandir(folder):
        if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
            raise ValueError(
                f"{what} writes only into folders of plain files, and {entry.path} is a link, a pipe or a device; "
                "replace it by the file itself, or remove it"
            )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lets this process alone write into a folder while the block runs.

    The lock is FOLDER/.writer.lock and is gone with its process, however that ends; FOLDER/.writer names the process.
    Both files are removed at the end of the block.

    Raises ValueError that names the process where another one has the lock.
    """
    from filelock import FileLock, Timeout

    lock, note = FileLock(folder / ".writer.lock"), folder / ".writer"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder}: {_writer(note)} still writes into this folder; wait until it has ended, or stop it. "
            f"({lock.lock_file} is its lock; it ends with that process)"
        ) from None
    except NotImplementedError:  # a file system without locks: a lock is a help, no condition
        yield
        return
    try:
        note.write_text(f"{os.getpid()} {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        for file in (note, Path(lock.lock_file)):
            with suppress(OSError):  # Windows removes no file that is open
                file.unlink()
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink()


def _writer(note: Path) -> str:
    """Returns "process 123 on HOST", or "another process" where the note cannot be read."""
    with suppress(OSError, ValueError):
        number, _, host = note.read_text(encoding="utf-8")[:200].strip().partition(" ")
        return f"process {int(number)} on {printable(host, lines=False)}"
    return "another process"


def stays_below(name: str) -> bool:
    """Returns whether a file name that another file gives is relative, for any system, and has no `..` in it."""
    windows = PureWindowsPath(name)
    leads_out = PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts
    return bool(windows.name) and "\0" not in name and not leads_out


def below(folder: str | Path, name: str) -> Path:
    """Returns the path of a file that another file names, relative to folder; ValueError where that leads out of it.

    Neither absolute names nor `..`, nor links to other folders, lead to the user's other files.
    """
    target = Path(folder) / name if stays_below(name) else None
    if target is None or not target.resolve().is_relative_to(Path(folder).resolve()):
        raise _outside(folder, name)
    return target


def within(folder: str | Path, start: str | Path, name: str) -> str:
    """Returns the path of a file of a data set, which another file names relative to its folder `start`.

    It may be absolute, or have `..` in it, as long as it stays in `folder`, which the user named; ValueError otherwise.
    The path has no `..` any more. No file is looked for, and the user's own links in a data set are followed, as those
    in a folder of images are.
    """
    path = os.path.normpath(os.path.join(start, name))
    root = os.path.normpath(folder)
    if not name or not os.path.abspath(path).startswith(os.path.join(os.path.abspath(root), "")):
        raise _outside(folder, name)
    return path


def _outside(folder: str | Path, name: str) -> ValueError:
    shown = printable(name[:200], lines=False)
    return ValueError(f"a file named by another must be below {folder}, found {shown!r}")


def find_file(name: str | Path, suffixes: tuple[str, ...] = ()) -> Path:
    """Returns the file called `name`: as given, else the one match in data/, models/ or utils/ of the repository.

    suffixes: that are allowed, such as (".yaml", ".yml"); empty for all.

    Raises FileNotFoundError where there is none, ValueError where there are several or the suffix is not allowed.
    """
    path = Path(name)
    if suffixes and path.suffix and path.suffix.lower() not in suffixes:
        raise ValueError(f"the file must end in {' or '.join(suffixes)}, got {str(name)!r}")
    if path.is_file() or path.is_fifo():
        return path
    matches = [p for room in ("data", "models", "utils") for p in (ROOT / room).rglob(path.name) if p.is_file()]
    # `models/SOCA.yaml` given from another folder must not find `data/SOCA.yaml`
    matches = [p for p in matches if p.parts[-len(path.parts) :] == path.parts]
    if not matches:
        raise FileNotFoundError(
            f"no such file: {str(name)!r} (looked in {Path.cwd()} and in data, models and utils of {ROOT})"
        )
    if len(matches) > 1:
        raise ValueError(f"several files match {str(name)!r}: {', '.join(map(str, matches))}; give the full path")
    return matches[0]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file; errors name the file, and the line of a fault."""
    return parse_yaml(read_text(path), path)


def read_at_most(path: str | Path, maximum: int) -> bytes:
    """Returns the bytes of a file; ValueError where it has more than the maximum, or is a pipe, which may never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        size = os.fstat(file.fileno())
        if not stat.S_ISREG(size.st_mode):
            raise ValueError(f"{path}: must be a plain file, and this is a pipe or a device")
        # of the size that it has: a read of the maximum takes that much memory first
        data = file.read(size.st_size + 1) if size.st_size <= maximum else None
    if data is None or len(data) > maximum:
        raise ValueError(f"{path}: has more than {maximum} bytes, the maximum of such a file")
    return data


def read_text(path: str | Path) -> str:
    """Returns the text of a YAML file."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with open(path, "rb") as file:  # which may be a pipe of the user's
            data = file.read(MAX_YAML + 1)
        text = decode_text(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a YAML text file: {error}") from None
    if len(data) > MAX_YAML:
        raise ValueError(f"{path}: longer than {MAX_YAML} bytes, the maximum of a YAML file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_yaml(text: str, path: str | Path) -> dict[str, Any]:
    """Returns the mapping in YAML text that was read from path."""
    try:
        content = _construct(yaml.SafeLoader(text), 10 * len(text) + ALIASED_VALUES)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ValueError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML text file: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid YAML: brackets or blocks are nested too deeply") from None
    except (ValueError, LookupError, AttributeError) as error:  # PyYAML raises these for 2001-99-99 or !!bool x
        raise ValueError(
            f"{path}: a value does not have the type that it looks like; put it in quotes: {error}"
        ) from None
    if content is None:
        raise ValueError(f"{path}: the file is empty; expected lines of 'key: value'")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected lines of 'key: value' at the top, found a {type(content).__name__}")
    return content


def with_numbers(value: Any) -> Any:
    """Returns content of a YAML file with 1e-4 and the like as numbers, which YAML 1.1 reads as text."""
    if isinstance(value, dict):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value, re.ASCII):
        number = float(value)
        if math.isfinite(number):
            return int(number) if number.is_integer() else number
    return value


def _construct(loader: yaml.SafeLoader, limit: int) -> Any:
    """Returns the content of one YAML document; ValueError where its aliases stand for more than `limit` values.

    A few lines of aliases of aliases can stand for billions of values, which would fill time and memory.
    """
    node = loader.get_single_node()
    if node is None:
        return None
    if _count_values(node, {}) > limit:
        raise ValueError("its aliases (*name) stand for too many values, or for themselves")
    return loader.construct_document(node)


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Returns the number of values in a node, aliases written out; infinite for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # while its parts are being counted
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


def write_yaml(path: str | Path, data: dict[str, Any]) -> None:
    """Writes a mapping in its own order; paths become text."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in data.items()}
    with atomic_write(path, "w") as file:
        yaml.safe_dump(plain, file, sort_keys=False, allow_unicode=True)


def megabytes(path: str | Path) -> float:
    """Returns the size of a file, or of all files in a folder, in units of 1e6 bytes."""
    path = Path(path)
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files) / 1e6


def check_new(out: Path) -> None:
    """Raises FileExistsError unless --out names what does not exist yet."""
    if out.exists():
        raise FileExistsError(f"--out must be a new folder, but {out} exists; name another")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder that becomes `out`, which must not exist, once it is whole; on any failure nothing stays."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(out)
    except BaseException:  # Ctrl-C too: no half-written folder is left
        shutil.rmtree(temporary)
        raise


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", sync: bool = True) -> Iterator[IO]:
    """Yields a file that replaces `path` once it is whole; on any failure the old file stays.

    sync: waits until the file is on the disk, so that it survives a power cut.
    """
    path = Path(path)
    # names of files need not be UTF-8: what cannot be encoded is written as \\udcff
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp creates files that only their owner may read
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too: no half-written file is left
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)  # the error of a full disk does not name a file
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
