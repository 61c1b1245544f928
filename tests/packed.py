"""Archives for the tests, and what is in a folder."""

import hashlib
import io
import tarfile
import zipfile


def pack(path, members):
    """Writes a zip, or a tar of the suffix's kind, of {name: bytes}; None makes a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, content in members.items():
                bundle.writestr(name + "/" if content is None else name, content or b"")
    else:
        with tarfile.open(path, {".tar": "w", ".tgz": "w:gz", ".xz": "w:xz"}[path.suffix]) as tar:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
                entry.size, entry.mode = len(content or b""), 0o777
                tar.addfile(entry, io.BytesIO(content or b""))
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


GOOD = {"set/images": None, "set/images/a.jpg": b"image", "set/labels/a.txt": b"0 .5 .5 .1 .1", "set/empty": None}
KINDS = ["x.zip", "x.tar", "x.tgz", "x.tar.xz"]
