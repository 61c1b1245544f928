"""Progress bars: redrawn on a terminal, and in a file a line now and then, so that a log of a night stays short."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from utils.text import printable

SECONDS = 10  # between two lines in a file, besides the last one


class Bar(tqdm):
    """A bar of tqdm where stderr is a terminal. Elsewhere it writes lines, at most one for each tenth of the work.

    Options as of tqdm. One with `leave=False` disappears from a terminal, and its last line is not written to a file.
    """

    def __init__(
        self, iterable: Iterable | None = None, desc: str = "", total: int | None = None, disable: bool = False,
        leave: bool = True, bar_format: str | None = None, **options: Any,
    ):  # fmt: skip
        self._lines = not disable and not sys.stderr.isatty()
        options |= {"leave": leave, "bar_format": bar_format, "disable": disable or self._lines}
        super().__init__(iterable, desc, total, **options)
        if self._lines:
            if total is None and hasattr(iterable, "__len__"):
                self.total = len(iterable)
            self.desc, self.postfix, self.bar_format = desc, None, bar_format
            self._units = {name: options[name] for name in ("unit", "unit_scale") if name in options}
            self._start = self._written = time.monotonic()
            self._tenth = 0

    def __iter__(self) -> Iterator:
        if not self._lines:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        """Counts n more as done."""
        if not self._lines:
            super().update(n)
            return
        self.n += n
        tenth = 10 * self.n // self.total if self.total else self._tenth + 1
        now, whole = time.monotonic(), self.n == self.total
        if self.leave if whole else tenth > self._tenth and now - self._written >= SECONDS:
            self._tenth, self._written = tenth, now
            line = self.format_meter(
                self.n, self.total, now - self._start, prefix=self.desc, bar_format=self.bar_format,
                postfix=self.postfix, **self._units,
            )  # fmt: skip
            print(printable(line.rstrip()), file=sys.stderr, flush=True)
