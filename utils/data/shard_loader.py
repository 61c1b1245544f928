"""Batches from WebDataset tar shards, which are read from front to back, never by index.

Each process and worker has its own shards, and reads them in every epoch, in a new order. A buffer shuffles the samples
(`SHUFFLED`, as files), and the partners of a mosaic come from a window of the images that were decoded last (`WINDOW`),
so that each image is decoded once. With images of 150 kB at 640 pixels that takes 150 MB per worker.

Order and samples depend on the seed, the epoch, and the numbers of processes and workers, since these decide which
shards are read together. A run that is resumed at the start of an epoch with the same numbers continues as if it had
never stopped.
"""

import random
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch

from utils.data.dataset import DetectionDataset, Sample
from utils.data.formats.shards import image_of, read_shard

SHUFFLED = 512  # samples in the buffer, as files, from which one is drawn at random
WINDOW = 64  # decoded images from which mosaics are made


class ShardStream(torch.utils.data.IterableDataset):
    """Batches of this process and worker; see `ShardLoader`."""

    def __init__(
        self, dataset: DetectionDataset, files: tuple[str, ...], batch_size: int, collate: Callable, shares: tuple
    ):
        self.dataset, self.batch_size, self.collate = dataset, batch_size, collate
        self._index = {path: i for i, path in enumerate(dataset.image_files)}
        per_shard = _images_per_shard(files, dataset.image_files)
        rank, world_size, workers = shares
        self.rank = rank
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # reaches workers that already run
        parts = [[list(files[r::world_size][w::workers]) for w in range(workers)] for r in range(world_size)]
        counts = np.array([[sum(per_shard[file] for file in part) for part in row] for row in parts])
        if not counts.all():
            r, w = np.argwhere(counts == 0)[0]
            raise ValueError(
                f"no usable image in the shards {parts[r][w]} of process {r}, worker {w}; use fewer workers"
            )
        self.files = parts[rank]
        self.counts = counts.max(0).tolist()  # samples of each worker: as many in every process

    def __len__(self) -> int:
        return sum(-(-count // self.batch_size) for count in self.counts)

    def __iter__(self) -> Iterator:
        info = torch.utils.data.get_worker_info()
        worker, epoch = info.id if info else 0, int(self.epoch)
        seed = self.dataset.seed, epoch, self.rank, worker, len(self.files)
        samples = self._samples(self.files[worker], epoch, self.counts[worker], seed)
        while batch := list(islice(samples, self.batch_size)):
            yield self.collate(batch)

    def _samples(self, files: list[str], epoch: int, count: int, seed: tuple[int, ...]) -> Iterator[Sample]:
        """Yields the first `count` samples of an epoch over these shards, which start again where there are fewer."""
        items = islice(self._items(files, np.random.default_rng(seed)), count)
        if self.dataset.augment:
            from webdataset.filters import shuffle

            items = shuffle(SHUFFLED, initial=SHUFFLED, rng=random.Random(repr(seed)))(items)
        items, store = iter(items), self.dataset.store
        store.fill(islice(items, WINDOW if self.dataset.mosaic else 1))
        for served in range(count):
            position = served % len(store.available)
            yield self.dataset[epoch, store.available[position]]
            if item := next(items, None):  # else the window stays, for the mosaics of the rest
                store.replace(position, *item)

    def _items(self, files: list[str], rng: np.random.Generator) -> Iterator[tuple[int, bytes]]:
        """Yields number and file content of each usable image, pass after pass."""
        while True:
            for file in rng.permutation(files).tolist() if self.dataset.augment else files:
                for sample in read_shard(file):
                    try:
                        path, data = image_of(file, sample)
                    except ValueError:  # reported by the scan
                        continue
                    if path in self._index:
                        yield self._index[path], data


def _images_per_shard(files: tuple[str, ...], images: list[str]) -> dict[str, int]:
    """Counts the images of each shard; the images are in the order of the shards."""
    counts = dict.fromkeys(files, 0)
    shards = iter(files)
    shard = next(shards)
    for path in images:
        while not path.startswith(f"{shard}/"):
            shard = next(shards)
        counts[shard] += 1
    return counts


class ShardLoader:
    """Batches from shards, with what training asks of a loader: `dataset`, `sampler`, `num_workers`, length.

    Processes with fewer images than others see some twice in an epoch, so that all have the same number of batches.

    Args:
        collate: joins samples to a batch.
        rank, world_size: this process reads each world_size-th shard.
        workers: maximum number of worker processes, each with shards of its own.
        options: of a torch DataLoader.

    Raises ValueError where a process would be left without a shard.
    """

    def __init__(
        self, dataset: DetectionDataset, files: tuple[str, ...], batch_size: int, collate: Callable,
        rank: int = 0, world_size: int = 1, workers: int = 0, **options,
    ):  # fmt: skip
        if len(files) < world_size:
            raise ValueError(f"{len(files)} shards cannot be shared by {world_size} processes; each needs one")
        self.dataset = dataset
        self.num_workers = min(workers, len(files) // world_size)
        self._stream = ShardStream(dataset, files, batch_size, collate, (rank, world_size, max(self.num_workers, 1)))
        self._loader = torch.utils.data.DataLoader(
            self._stream,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            persistent_workers=self.num_workers > 0,
            **options,
        )

    @property
    def sampler(self) -> "ShardLoader":  # no attribute: torch ends the workers of a loader in a reference cycle slowly
        """Returns the object that knows the epoch: the loader itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self._stream.epoch.fill_(epoch)

    def set_weights(self, weights: np.ndarray | None) -> None:
        """Raises ValueError for weights: what is read from front to back cannot be drawn by weight."""
        if weights is not None:
            raise ValueError("images in shards cannot be drawn by weight; leave out --image-weights")

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator:
        return iter(self._loader)


def _unchanged(batch):
    return batch
