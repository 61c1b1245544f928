"""Label files for tests, written by hand."""

import io
import tarfile

NAMES = ("cat", "dog")
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 1, "name": "unused"}]


def voc_object(name="dog", corners=(11, 11, 31, 21), extra=""):
    """The XML of one object."""
    bounds = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    return f"<object><name>{name}</name>{extra}<bndbox>{bounds}</bndbox></object>"


def pack(path, members):
    """Writes a tar file of (name, content); returns its path as text."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return str(path)
