"""Writes the pickle of a `.pt` file where the project is installed as a package; torch.save takes this module."""

import pickle
from typing import Any

from utils.text import PACKAGE


class Pickler(pickle._Pickler):  # that of C does not let a class choose the name it is written by
    """Writes the installed package's classes by v6.1's names, `models.common.Conv`, so that others read the file."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if PACKAGE and obj.__module__.startswith(PACKAGE):
            self.write(pickle.GLOBAL + f"{obj.__module__.removeprefix(PACKAGE)}\n{obj.__qualname__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)
