"""Who am I among the processes of a torchrun launch. torchrun says it in environment variables."""

import os


def rank() -> int:
    """Number of this process over all machines; -1 outside torchrun."""
    return int(os.environ.get("RANK", -1))


def local_rank() -> int:
    """Number of this process on its machine; -1 outside torchrun."""
    return int(os.environ.get("LOCAL_RANK", -1))


def world_size() -> int:
    """Number of processes over all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """True in the one process that writes files and logs."""
    return rank() in (-1, 0)
