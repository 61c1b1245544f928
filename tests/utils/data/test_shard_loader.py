"""Shards give each image once an epoch, in an order that can be repeated."""

import gc
import weakref

import numpy as np
import pytest
import torch
from label_files import pack

from utils.data.annotations import scan
from utils.data.formats.shards import ShardSplit
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions
from utils.data.shard_loader import ShardLoader

pytest.importorskip("webdataset", reason="needs webdataset")


@pytest.fixture
def load(shards, hyp):
    def make(entry=shards, **options):
        defaults = {"image_size": 64, "batch_size": 2, "stride": 32, "augment": True, "hyp": hyp, "workers": 0}
        return create_dataloader(entry, LoaderOptions(**{**defaults, **options}))[0]

    return make


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def numbers(batches):
    return [int(path[-7:-4]) for batch in batches for path in batch[2]]


def same(a, b):
    return all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) and x[2:] == y[2:] for x, y in zip(a, b, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_every_image_once_an_epoch(load, workers, monkeypatch):
    monkeypatch.setattr("utils.data.loader.usable_cores", lambda: 8)
    loader = load(workers=workers)
    assert isinstance(loader, ShardLoader) and loader.num_workers == workers and len(loader.dataset) == 12
    orders = []
    for epoch in (0, 1):
        batches = epoch_of(loader, epoch)
        assert len(batches) == len(loader) and sorted(numbers(batches)) == list(range(12))
        orders.append(numbers(batches))
    assert orders[0] != orders[1] and orders[0] != list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_had_again(load, workers):
    first, again = load(workers=workers), load(workers=workers)
    torch.manual_seed(workers)
    epochs = [epoch_of(first, epoch) for epoch in (0, 1, 2)]
    torch.manual_seed(99)
    assert same(epoch_of(again, 2), epochs[2])  # whatever came before: a run resumed there goes on the same way
    assert same(epoch_of(again, 1), epochs[1])
    assert not same(epoch_of(load(workers=workers, seed=5), 2), epochs[2])


def test_partners_of_a_mosaic_come_from_the_window(load, hyp):
    """Each image has a grey value and a class of its own kind, so that a mosaic shows whom it was made of."""
    loader = load(
        hyp={**hyp, "mosaic": 1.0, "mixup": 0.0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "degrees": 0, "shear": 0}
    )
    met = set()
    for epoch in range(4):
        for images, targets, _, shapes in epoch_of(loader, epoch):
            assert shapes == (None, None) and images.shape == (2, 3, 64, 64) and images.dtype == torch.uint8
            assert set(targets[:, 0].tolist()) <= {0, 1} and (targets[:, 2:] <= 1).all()
            met |= {int(value) // 10 for value in images.unique() if value % 10 == 0 and value < 114}
    assert met == set(range(12))


@pytest.mark.parametrize("count", [1, 7])
def test_a_small_window_serves_every_image_once(load, monkeypatch, count):
    monkeypatch.setattr("utils.data.shard_loader.WINDOW", count)
    monkeypatch.setattr("utils.data.shard_loader.SHUFFLED", 2)
    loader = load()
    assert sorted(numbers(epoch_of(loader, 0))) == list(range(12))
    assert len(loader.dataset.store._pixels) == count  # no more is kept


def test_no_mosaic_from_an_epoch_on(load):
    loader = load(mosaic_until=1)
    shapes = [[shape for batch in epoch_of(loader, epoch) for shape in batch[3]] for epoch in (0, 1)]
    assert None in shapes[0] and None not in shapes[1]


def test_validation_in_order_and_letterboxed(load, shards, tmp_path):
    """Batches are those of the same files in square frames."""
    loader = load(augment=False, rect=True, pad=0.5, batch_size=4)
    batches = list(loader)
    assert numbers(batches) == list(range(12)) and len(batches) == 3
    labels = scan(shards).labels
    for number, (images, targets, _, shapes) in enumerate(batches):
        assert images.shape == (4, 3, 96, 96)  # 64 pixels and half a stride, rounded up
        for k, ((h0, w0), (gain, (pad_w, pad_h))) in enumerate(shapes):
            i = 4 * number + k
            assert (h0, w0) == ((48, 64) if i % 2 else (64, 48)) and gain == (1, 1)
            c, x, y, w, h = labels[i]
            row = [k, c, (x * w0 + pad_w) / 96, (y * h0 + pad_h) / 96, w * w0 / 96, h * h0 / 96]
            assert targets[targets[:, 0] == k].numpy()[0] == pytest.approx(row, abs=1e-5)
            assert images[k, :, 48, 48].tolist() == [10 * i] * 3 and (images[k, :, 0, 0] == 114).all()


def test_processes_read_shards_of_their_own(load, shards):
    loaders = [load(rank=rank, world_size=2, batch_size=3) for rank in (0, 1)]
    epochs = [epoch_of(loader, 1) for loader in loaders]
    assert len(epochs[0]) == len(epochs[1]) == len(loaders[0]) == 3  # 9 and 3 images
    first, second = map(numbers, epochs)
    assert sorted(first) == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert sorted(second) == sorted([5, 6, 7] * 3)  # which are fewer, and come again
    with pytest.raises(ValueError, match="3 shards cannot be shared by 4 processes; each needs one"):
        load(rank=0, world_size=4)
    assert load(rank=0, world_size=3, workers=2).num_workers <= 1


def test_a_share_without_images_is_refused(load, shards, tmp_path, png_file):
    empty = pack(tmp_path / "z.tar", [("x.txt", "0 .5 .5 .1 .1")])
    with pytest.raises(ValueError, match=r"no usable image in the shards \[.*z.tar'\] of process 1, worker 0"):
        load(ShardSplit((shards.files[0], empty)), world_size=2, rank=0)


def test_what_shards_cannot_do_is_said(load, caplog):
    loader = load(cache="ram")
    assert "cache, quad and rect are ignored: shards are read from front to back" in caplog.text
    loader.sampler.set_weights(None)
    with pytest.raises(ValueError, match="leave out --image-weights"):
        loader.sampler.set_weights(np.ones(12))


def test_options_of_a_dataset(load):
    assert len(load(fraction=0.5).dataset) == 6
    assert sorted(numbers(epoch_of(load(fraction=0.5), 0))) == sorted(
        int(path[-7:-4]) for path in load(fraction=0.5).dataset.image_files
    )
    assert set(load(single_cls=True).dataset.labels[:, 0]) == {0}
    with pytest.raises(ValueError, match="class 2 but there are 2 classes"):
        load(nc=2)
    assert next(iter(load(channels=1)))[0].shape == (2, 1, 64, 64)


def test_a_loader_goes_with_its_last_reference(load):
    # in a reference cycle it would wait for the garbage collector, and torch then 5 s for each of its workers
    gc.disable()
    try:
        loader = load()
        gone = weakref.ref(loader)
        del loader
        assert gone() is None
    finally:
        gc.enable()
