"""The processes of a torchrun launch: who am I, and what do we agree on. torchrun says it in environment variables."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FOREVER = timedelta(days=30)  # waiting for the first process: a scan or a validation may take long


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


# --- several processes that share work, and need no group for it ------------------------------------------------------


def agree(value: Callable[[], str]) -> str:
    """What `value` gives the first process of a torchrun launch, on all of them, once all have heard it.

    Raises ValueError where nothing says how the processes reach each other.
    """
    store, rank, processes = _meeting()
    if rank == 0:
        store.set("agreed", value())
    agreed = store.get("agreed").decode()
    if store.add("heard", 1) == processes:
        store.set("all heard", "")
    store.wait(["all heard"])  # the first process may keep the store
    return agreed


@cache  # kept to the end of the process: others may be about to ask
def _meeting():
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"{world_size()} processes, but {' and '.join(missing)} do not say where they meet: start them with "
            "torchrun, or give them all the same --resume FOLDER"
        )
    import torch.distributed as dist

    store, rank, processes = next(dist.rendezvous("env://"))
    store.set_timeout(FOREVER)
    return store, rank, processes


# --- several processes that train together ----------------------------------------------------------------------------


class Group:
    """The processes of a torchrun launch: gradients go through torch.distributed, decisions through its store.

    A value in the store is waited for without a collective held open, so no timeout of the backend runs meanwhile.
    Where a process fails, torchrun ends the others.
    """

    def __init__(self, backend: str):
        import torch.distributed as dist

        store, self.rank, self.world_size = next(dist.rendezvous("env://"))
        store.set_timeout(FOREVER)
        self.node = os.environ.get("GROUP_RANK", "0")
        self._store = dist.PrefixStore("yolov5", store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size)

    def decide(self, key: str, value: str = "") -> str:
        """The first process's value of `key` on every process; others wait for it. A key is used once."""
        if self.rank == 0:
            self._store.set(key, value)
        return self._store.get(key).decode()

    @contextmanager
    def first_on_each_machine(self, key: str) -> Iterator[None]:
        """The block runs in the first process of each machine before it runs in the others."""
        key = f"{key}/{self.node}"
        if local_rank() != 0:
            self._store.wait([key], FOREVER)
        yield
        if local_rank() == 0:
            self._store.set(key, "done")

    def average(self, values: "torch.Tensor") -> "torch.Tensor":
        """The mean of `values` over all processes, in a new tensor."""
        import torch.distributed as dist

        total = values.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def close(self) -> None:
        """Leaves the group once all have come this far."""
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
