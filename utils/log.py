"""The project's logger: messages only, to stderr, silent on all processes but the first."""

import logging
import os
import sys

_CODES = {"bold": 1, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}


class _CurrentStderr(logging.StreamHandler):
    """Writes to whatever sys.stderr is when the message comes, so that captured and redirected output works."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr


def _make_logger() -> logging.Logger:
    logger = logging.getLogger("yolov5")
    verbose = os.environ.get("YOLOv5_VERBOSE", "true").lower() == "true"
    first = os.environ.get("RANK", "-1") in ("-1", "0")
    logger.setLevel(logging.INFO if verbose and first else logging.WARNING)
    if not logger.handlers:
        handler = _CurrentStderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    return logger


LOGGER = _make_logger()


def colorstr(*words: str) -> str:
    """The last word in the styles named by the others (`colorstr("blue", "bold", "train:")`); plain when not a tty."""
    *styles, text = words
    if not sys.stderr.isatty():
        return text
    return "".join(f"\033[{_CODES[s]}m" for s in styles or ("blue", "bold")) + text + "\033[0m"
