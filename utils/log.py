"""The logger of the project: it writes messages to stderr, and all but warnings in the first process only.

Names from files are made printable, and addresses lose their secrets, in every message (utils/text.py).
"""

import logging
import os
import sys

from utils.text import printable, redact


class _SafeText(logging.Formatter):
    """Makes the text of messages safe, so that no caller has to. A bar that takes the logger over keeps it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))


class _CurrentStderr(logging.StreamHandler):
    """A handler that looks up sys.stderr at each message, so that captured and redirected output works."""

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
        handler.setFormatter(_SafeText("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    return logger


LOGGER = _make_logger()
