"""Batches from a dataset: their order, the worker processes, and how samples become tensors.

The order of an epoch depends on (seed, epoch) alone, and so does every sample in it, whatever the number of workers.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from utils.data.annotations import Entry
from utils.data.dataset import DetectionDataset, Sample, open_dataset
from utils.data.formats.shards import ShardSplit
from utils.data.machine import usable_cores
from utils.data.options import LoaderOptions
from utils.data.shard_loader import ShardLoader
from utils.log import LOGGER

# Numbers that keep these random streams apart from those of the samples, which are seeded by (seed, epoch, index)
SHUFFLE_STREAM, QUAD_STREAM, WINDOW_STREAM = 1, 2, 4
BATCHES_PER_WINDOW = 4  # with its three partners each sample of a batch can then show images that no other one shows

Batch = tuple[torch.Tensor, torch.Tensor, tuple[str, ...], tuple]


def create_dataloader(
    entry: Entry, options: LoaderOptions
) -> tuple[torch.utils.data.DataLoader | ShardLoader, DetectionDataset]:
    """Returns a loader of batches (images, targets, paths, shapes), and its dataset.

    entry: of a data set YAML, as `open_dataset` takes it; for tar shards `cache`, `quad` and `rect` mean nothing.

    Call `loader.sampler.set_epoch(epoch)` before each epoch. The last batch may be smaller.
    """
    options = _effective(entry, options)
    dataset = open_dataset(entry, options)
    workers = min(usable_cores() // processes_here(options.world_size), options.workers)
    rank, world_size = max(options.rank, 0), options.world_size
    settings = {
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _begin_worker,
        # else each epoch takes a number from the global generator
        "generator": torch.Generator().manual_seed(options.seed),
    }
    if isinstance(entry, ShardSplit):
        share = rank, world_size, workers
        return ShardLoader(dataset, entry.files, options.batch_size, collate, *share, **settings), dataset
    batch_size = min(options.batch_size, len(dataset))
    workers = min(batch_size if batch_size > 1 else 0, workers)
    settings |= {"num_workers": workers, "persistent_workers": workers > 0}
    order = len(dataset), options.shuffle, options.seed, rank, world_size
    source = QuadDataset(dataset) if options.quad else dataset
    if options.share_decoding:
        windows, sampler = WindowDataset(source), WindowSampler(*order, batch_size=batch_size)
        return WindowLoader(windows, batch_size=None, sampler=sampler, collate_fn=_collate_window, **settings), dataset
    sampler = EpochSampler(*order, block=batch_size if options.rect else 1)
    return torch.utils.data.DataLoader(source, batch_size, sampler=sampler, collate_fn=collate, **settings), dataset


def _effective(entry: Entry, options: LoaderOptions) -> LoaderOptions:
    """Returns the options without those that have no effect beside the others or for the entry; logs a warning."""
    ignored = []
    if options.rect and options.shuffle:
        ignored.append(("shuffle is ignored: rect makes its batches by aspect ratio", {"shuffle": False}))
    if options.rect and options.share_decoding:
        ignored.append(("shared decoding is ignored: rect makes no mosaics", {"share_decoding": False}))
    if isinstance(entry, ShardSplit):
        without = {"cache": None, "quad": False, "rect": False, "share_decoding": False}
        asked = options.quad or (options.rect and options.augment) or options.cache not in (None, "auto", "off")
        ignored.append(
            ("cache, quad and rect are ignored: shards are read from front to back" if asked else "", without)
        )
    for reason, changes in ignored:
        if reason:
            LOGGER.warning(f"{options.prefix}{reason}")
        options = replace(options, **changes)
    return options


def processes_here(world_size: int) -> int:
    """Returns how many of a run's processes are on this machine, as torchrun says; all of them where it does not."""
    return min(int(os.environ.get("LOCAL_WORLD_SIZE", world_size)), world_size)


def _begin_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # workers are parallel already
    # Slurm, systemd and `kill -TERM -GROUP` send it to all processes; the first one stops the others in its own time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class EpochSampler(torch.utils.data.Sampler):
    """Pairs (epoch, index): the epoch travels with each index, so it reaches workers that live for the whole run.

    Args:
        length: of the dataset.
        shuffle: a new order each epoch, by (seed, epoch).
        rank, world_size: the blocks rank, rank + world_size, ... of the order; the first blocks fill up the last round,
            so that all processes get the same number.
        block: images that stay together, in order.
    """

    def __init__(
        self,
        length: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        block: int = 1,
    ):
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.weights: np.ndarray | None = None
        self._drawable = world_size == 1 and block == 1
        blocks = np.arange(-(-length // block))
        rounds = -(-len(blocks) // world_size)
        mine = np.resize(blocks, rounds * world_size)[rank::world_size]
        positions = (mine[:, None] * block + np.arange(block)).ravel()
        self._positions = positions[positions < length]  # the last block may be smaller

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def set_weights(self, weights: np.ndarray | None) -> None:
        """Draws images of the next iterations with replacement in proportion to weights (length,), each 0 or more.

        None: every image once again. The draw, too, depends on (seed, epoch) and the weights alone.

        Raises ValueError where several processes share an epoch, or images stay together in blocks.
        """
        if weights is not None and not self._drawable:
            raise ValueError("images can be drawn by weight (--image-weights) only by one process and without --rect")
        assert weights is None or weights.shape == (self.length,)
        self.weights = weights

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[tuple]:
        order = np.arange(self.length)
        rng = np.random.default_rng((self.seed, self.epoch, 0, SHUFFLE_STREAM))
        if self.weights is not None:
            order = draw_images(self.weights, rng)
        elif self.shuffle:
            order = rng.permutation(order)
        return iter([(self.epoch, index) for index in order[self._positions].tolist()])


def draw_images(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws image numbers for one epoch, with replacement, in proportion to their weights; evenly if all are 0."""
    total = weights.sum()
    return rng.choice(len(weights), size=len(weights), p=weights / total if total > 0 else None)


def collate(samples: list[Sample]) -> Batch:
    """Joins samples: images (B, C, H, W), targets (T, 6) with the image's number in column 0, paths and shapes."""
    images, targets, paths, shapes = zip(*samples)
    numbers = torch.arange(len(samples)).repeat_interleave(torch.tensor([len(t) for t in targets]))
    targets = torch.cat(targets)
    targets[:, 0] = numbers
    return torch.stack(images), targets, paths, shapes


# --- windows: each file decoded once ----------------------------------------------------------------------------------


class WindowSampler(EpochSampler):
    """Windows of batches instead of single images: the samples of a window are mosaics of its own images.

    A window is a list of batches, each a list of (epoch, index, partners, window): the three images that join this one
    in a mosaic of four, and all images of the window. Partners are chosen so that a batch shows as many images as
    possible: in a window of four batches each image once, as its own sample or as another's partner. Where the number
    of batches is no multiple of four, some windows are longer, up to seven batches. All of that depends on (seed,
    epoch) alone.

    Args:
        order: as of an `EpochSampler`.
        batch_size: images of a batch.
    """

    def __init__(self, *order, batch_size: int):
        super().__init__(*order)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[list[tuple]]]:
        indices = [index for _, index in super().__iter__()]
        batches = [indices[first : first + self.batch_size] for first in range(0, len(indices), self.batch_size)]
        rng = np.random.default_rng((self.seed, self.epoch, 0, WINDOW_STREAM))
        for part in np.array_split(np.arange(len(batches)), max(len(batches) // BATCHES_PER_WINDOW, 1)):
            window = [batches[number] for number in part]
            everyone = tuple(index for batch in window for index in batch)
            yield [
                [(self.epoch, *own, everyone) for own in zip(batch, deal_partners(window, number, rng))]
                for number, batch in enumerate(window)
            ]


def deal_partners(window: list[list[int]], number: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Draws three images for each of batch `number` from the other batches of the window, none twice if possible."""
    count = 3 * len(window[number])
    others = [index for k, batch in enumerate(window) if k != number for index in batch]
    again = rng.choice(np.concatenate(window), max(count - len(others), 0))
    dealt = np.concatenate([rng.permutation(others), again]).astype(int)[:count]
    return list(map(tuple, dealt.reshape(-1, 3).tolist()))


class WindowDataset(torch.utils.data.Dataset):
    """The batches of a window from one worker, which decodes each of its images once."""

    def __init__(self, source: "DetectionDataset | QuadDataset"):
        self.source = source
        self.dataset = source.dataset if isinstance(source, QuadDataset) else source
        # what is asked of a dataset besides its samples
        self.labels, self.labels_of, self.shapes = source.labels, source.labels_of, source.shapes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, window: list[list[tuple]]) -> list[list[Sample]]:
        with self.dataset.store.sharing():
            if self.source is self.dataset:
                return [[self.dataset[key] for key in batch] for batch in window]
            return [self.source.__getitems__(batch) for batch in window]


def _collate_window(window: list[list[Sample]]) -> list[Batch]:
    return [collate(batch) for batch in window]


class WindowLoader(torch.utils.data.DataLoader):
    """Batches, one by one, from workers that make whole windows of them."""

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.sampler.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for window in super().__iter__():
            yield from window


# --- quad: larger images at the memory of small ones ----------------------------------------------------------------


class QuadDataset(torch.utils.data.Dataset):
    """A dataset whose samples are merged four by four within a batch.

    What a batch has beyond a multiple of four is dropped; a batch of fewer than four repeats its own.
    """

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset
        # what is asked of a dataset besides its samples
        self.labels, self.labels_of, self.shapes = dataset.labels, dataset.labels_of, dataset.shapes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[tuple]) -> list[Sample]:
        """Returns the samples of a batch; called by the loader with all its (epoch, index)."""
        samples = [self.dataset[key] for key in keys]
        quads = []
        for first in range(0, max(len(samples) // 4 * 4, 1), 4):
            group = samples[first : first + 4]
            draw = np.random.default_rng((self.dataset.seed, *keys[first][:2], QUAD_STREAM)).random()
            quads.append(merge_quad((group * 4)[:4], draw))
        return quads


def merge_quad(samples: list[Sample], draw: float) -> Sample:
    """Merges four samples into one of twice the side: the first enlarged if draw < 0.5, else all four side by side.

    The order is top left, bottom left, top right, bottom right. The path is the first one's; shapes are None.
    """
    images, targets, paths, _ = zip(*samples)
    if draw < 0.5:
        enlarged = F.interpolate(images[0][None].float(), scale_factor=2.0, mode="bilinear", align_corners=False)[0]
        return enlarged.to(images[0].dtype), targets[0], paths[0], None
    left, right = torch.cat(images[:2], 1), torch.cat(images[2:], 1)
    placed = []
    for k, rows in enumerate(targets):
        column, row = divmod(k, 2)
        placed.append((rows + torch.tensor([0, 0, column, row, 0, 0])) * torch.tensor([1, 1, 0.5, 0.5, 0.5, 0.5]))
    return torch.cat([left, right], 2), torch.cat(placed), paths[0], None
