"""WebDataset tar shards, for sets larger than one disk: read from front to back, never by index.

A sample is an image and its labels under one name, side by side in a shard:

    000017.jpg   000017.txt     the lines of a label file (see `utils.data.labels`), or
                 000017.json    {"class": [0, 2], "boxes": [[x, y, width, height], ...]}, centre form, 0-1

Every shard is read through once to check images and labels, and the result is cached beside the first. After that each
process and worker reads the same shards of its own in every epoch, in a new order; a buffer shuffles the samples
(`SHUFFLED`, as files), and the partners of a mosaic come from a window of those that were decoded last (`WINDOW`), so
each image is decoded once. With images of 150 kB at 640 pixels that is 150 MB a worker.

Order and samples depend on the seed, the epoch, and the number of processes and workers: resumed at the start of an
epoch with the same of all, training goes on as if never stopped. One worker has the epoch to itself; with others, who
hold other shards, neither batches nor mosaics can be the same.
"""

import json
import random
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing.pool import ThreadPool

import numpy as np
import torch

from utils.data.dataset import DetectionDataset, Sample
from utils.data.formats import ShardSplit
from utils.data.images import IMAGE_SUFFIXES, check_image
from utils.data.labels import Annotations, Pair, cached, gather, parse_labels
from utils.data.options import LoaderOptions

SHUFFLED = 512  # samples that wait, as files, to be drawn in random order
WINDOW = 64  # decoded images from which mosaics are made


# --- one shard --------------------------------------------------------------------------------------------------------


def read_shard(file: str) -> Iterator[dict]:
    """The samples of a shard: {"__key__": name, "jpg": bytes, "txt": bytes, ...}. ValueError for a damaged one."""
    # not the library's own opening of files, which runs what follows `pipe:` in a shell
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with open(file, "rb") as stream:
        try:
            yield from group_by_keys(tar_file_expander([{"url": file, "stream": stream}]))
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise ValueError(f"{file}: not a sound tar shard: {error.args[0] if error.args else error}") from None


def image_of(file: str, sample: dict) -> tuple[str, bytes]:
    """Path of a sample's image, as if the shard were a folder, and its bytes. ValueError where there is none."""
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if suffix is None:
        raise ValueError(
            f"{file}/{sample['__key__']}: no image; a name has one dot, before a suffix such as jpg or png"
        )
    return f"{file}/{sample['__key__']}.{suffix}", sample[suffix]


def _labels_text(data: bytes, kind: str, place: str) -> str:
    """The lines of a label file."""
    try:
        if kind == "txt":
            return data.decode()
        content = json.loads(data)
        rows = zip(content["class"], content["boxes"], strict=True)
        return "\n".join(" ".join(str(number) for number in (label, *box)) for label, box in rows)
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}.{kind}: not text in UTF-8: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f'{place}.json: expected {{"class": [...], "boxes": [[x, y, width, height], ...]}}') from None


def _check_shard(file: str) -> list[tuple[str, Pair]]:
    """Image paths of a shard, with what was found of each."""
    found = []
    for sample in read_shard(file):
        pair, place = Pair(), f"{file}/{sample['__key__']}"
        path = place
        try:
            path, data = image_of(file, sample)
            pair.size, remarks = check_image(path, data)
            pair.messages += remarks
            kind = next((kind for kind in ("txt", "json") if kind in sample), None)
            pair.found, pair.missing = kind is not None, kind is None
            if kind:
                text = _labels_text(sample[kind], kind, place)
                pair.labels, pair.polygons, remarks = parse_labels(text, f"{place}.{kind}")
                pair.messages += remarks
                pair.empty = len(pair.labels) == 0
        except ValueError as error:
            pair.corrupt = True
            pair.messages.append(f"{error}; the image is left out")
        found.append((path, pair))
    return found


def scan_shards(
    split: ShardSplit, prefix: str = "", use_cache: bool = True, strict: bool = False, rehash: bool = False
) -> Annotations:
    """As `utils.data.labels.scan`: all usable images of the shards with their labels, in the order of the shards."""

    def check() -> Annotations:
        with ThreadPool() as pool:
            pairs = [pair for found in pool.imap(_check_shard, split.files) for pair in found]
        paths = [path for path, _ in pairs]
        twice = [path for path, count in Counter(paths).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]}: the name comes twice in the shards")
        return gather(paths, [pair for _, pair in pairs])

    return cached(split, list(split.files), check, prefix, use_cache, strict, rehash)


# --- all shards -------------------------------------------------------------------------------------------------------


class ShardDataset(DetectionDataset):
    """The images of shards, with the attributes of a `DetectionDataset`; pixels of those in the window only.

    Pictures that are not augmented are letterboxed into squares, since shards cannot be sorted by shape.

    Of the options `cache`, `quad` and `rect` mean nothing; `stride` and `pad` are those of the square.
    """

    def __init__(self, split: ShardSplit, options: LoaderOptions):
        super().__init__(split, replace(options, rect=False, cache=None))
        self._square = int(np.ceil(options.image_size / options.stride + options.pad)) * options.stride
        self._index = {path: i for i, path in enumerate(self.image_files)}
        self.counts = dict.fromkeys(split.files, 0)  # images of each shard
        shards = iter(split.files)
        shard = next(shards)
        for path in self.image_files:  # in the order of the shards
            while not path.startswith(f"{shard}/"):
                shard = next(shards)
            self.counts[shard] += 1
        self._window = np.zeros(0, int)
        self._pixels: dict[int, np.ndarray] = {}

    def samples(self, files: list[str], epoch: int, count: int, seed: tuple[int, ...]) -> Iterator[Sample]:
        """The first `count` samples of an epoch over these shards, which start again where there are fewer."""
        items = islice(self._items(files, np.random.default_rng(seed)), count)
        if self.augment:
            from webdataset.filters import shuffle

            items = shuffle(SHUFFLED, initial=SHUFFLED, rng=random.Random(repr(seed)))(items)
        items = iter(items)
        self._pixels = {}
        self._window = np.array([self._admit(*item) for item in islice(items, WINDOW if self.mosaic else 1)])
        for served in range(count):
            place = served % len(self._window)
            yield self[epoch, int(self._window[place])]
            if item := next(items, None):  # else the window stays, for the mosaics of the rest
                gone, self._window[place] = self._window[place], self._admit(*item)
                if gone not in self._window:
                    del self._pixels[int(gone)]

    def _items(self, files: list[str], rng: np.random.Generator) -> Iterator[tuple[int, bytes]]:
        """Number and file of each usable image, pass after pass."""
        while True:
            for file in rng.permutation(files).tolist() if self.augment else files:
                for sample in read_shard(file):
                    try:
                        path, data = image_of(file, sample)
                    except ValueError:  # reported by the scan
                        continue
                    if path in self._index:
                        yield self._index[path], data

    def _admit(self, index: int, data: bytes) -> int:
        self._pixels[index] = self._decode(index, np.frombuffer(data, np.uint8))
        return index

    # --- what a DetectionDataset asks for -----------------------------------------------------------------------------

    def annotate(self, path: ShardSplit, strict: bool, rehash: bool) -> Annotations:
        return scan_shards(path, self.prefix, strict=strict, rehash=rehash)

    def load_image(self, i: int) -> tuple[np.ndarray, tuple[int, int]]:
        width, height = self._annotations.sizes[i].tolist()
        return self._pixels[i], (height, width)

    def partners(self, rng: np.random.Generator, size: int, window: tuple[int, ...] | None = None) -> np.ndarray:
        return self._window[rng.integers(len(self._window), size=size)]

    def frame(self, index: int) -> tuple[int, int]:
        return self._square, self._square


class ShardStream(torch.utils.data.IterableDataset):
    """Batches of this process and worker; see `ShardLoader`."""

    def __init__(
        self, dataset: ShardDataset, files: tuple[str, ...], batch_size: int, collate: Callable, shares: tuple
    ):
        self.dataset, self.batch_size, self.collate = dataset, batch_size, collate
        rank, world_size, workers = shares
        self.rank = rank
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # reaches workers that already run
        parts = [[list(files[r::world_size][w::workers]) for w in range(workers)] for r in range(world_size)]
        counts = np.array([[sum(dataset.counts[file] for file in part) for part in row] for row in parts])
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
        samples = self.dataset.samples(self.files[worker], epoch, self.counts[worker], seed)
        while batch := list(islice(samples, self.batch_size)):
            yield self.collate(batch)


class ShardLoader:
    """Batches from shards, with what training asks of a loader: `dataset`, `sampler`, `num_workers`, length.

    Processes with fewer images than others see some twice in an epoch, so that all have the same number of batches.

    Args:
        collate: samples to a batch.
        rank, world_size: this process reads each world_size-th shard.
        workers: processes at most, each with shards of its own.
        options: of a torch DataLoader.

    Raises ValueError where a process would be left without a shard.
    """

    def __init__(
        self, dataset: ShardDataset, files: tuple[str, ...], batch_size: int, collate: Callable,
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
            collate_fn=_as_it_is,
            persistent_workers=self.num_workers > 0,
            **options,
        )

    @property
    def sampler(self) -> "ShardLoader":  # no attribute: torch ends the workers of a loader in a reference cycle slowly
        """What knows the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration."""
        self._stream.epoch.fill_(epoch)

    def set_weights(self, weights: np.ndarray | None) -> None:
        """ValueError: what is read from front to back cannot be drawn by weight."""
        if weights is not None:
            raise ValueError("images in shards cannot be drawn by weight; leave out --image-weights")

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator:
        return iter(self._loader)


def _as_it_is(batch):
    return batch
