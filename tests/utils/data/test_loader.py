"""Order and samples depend on (seed, epoch) alone, whatever the workers; each process gets its share; quads tile."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from label_files import NAMES, voc_object

from utils.data import store as store_module
from utils.data.formats.coco import CocoSplit
from utils.data.loader import EpochSampler as Sampler
from utils.data.loader import QuadDataset, WindowSampler, collate, create_dataloader, draw_images, merge_quad
from utils.data.options import LoaderOptions

HYP = {
    "mosaic": 0.7,
    "mixup": 0.3,
    "copy_paste": 0.3,
    "degrees": 5.0,
    "translate": 0.1,
    "scale": 0.5,
    "shear": 2.0,
    "perspective": 0.0,
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "flipud": 0.1,
    "fliplr": 0.5,
}
TRAINING = {"image_size": 64, "batch_size": 4, "stride": 32, "augment": True, "hyp": HYP, "shuffle": True}


@pytest.fixture
def entry(write_set, noise_image):
    """Ten images of two shapes in a folder with blanks and letters beyond ASCII."""
    images = {f"Bücher {i}": noise_image(48 + 16 * (i % 2), 64 - 16 * (i % 2), seed=i) for i in range(10)}
    return str(write_set(images, {name: f"{i % 3} .5 .5 .{i + 1:02} .3" for i, name in enumerate(images)}))


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(a, b):
    return all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) and x[2:] == y[2:] for x, y in zip(a, b, strict=True)
    )


def test_workers_leave_the_signal_that_stops_a_run_to_the_first_process(entry):
    """Slurm sends it to all processes; a worker that ended would be an error before the run has said how to go on."""
    loader, _ = create_dataloader(entry, LoaderOptions(workers=2, **{**TRAINING, "batch_size": 2}))
    batches = iter(loader)
    next(batches), next(batches)  # one of each worker: both have begun
    workers = [child for child in multiprocessing.active_children() if child.is_alive()]
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    assert len(list(batches)) == 3 and len(workers) and all(worker.is_alive() for worker in workers)
    del batches, loader
    for worker in workers:  # they end when the loader does
        worker.join(20)
        assert worker.exitcode == 0


# --- order ------------------------------------------------------------------------------------------------------------


def order_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_is_a_function_of_seed_and_epoch():
    first, second = Sampler(50, shuffle=True, seed=3), Sampler(50, shuffle=True, seed=3)
    epochs = [order_of(first, epoch) for epoch in range(4)]
    assert order_of(second, 2) == epochs[2]  # whatever came before
    for epoch, pairs in enumerate(epochs):
        assert {e for e, _ in pairs} == {epoch}
        assert sorted(i for _, i in pairs) == list(range(50))
    assert len({tuple(i for _, i in pairs) for pairs in epochs}) == 4
    assert order_of(Sampler(50, shuffle=True, seed=4), 2) != epochs[2]
    assert order_of(Sampler(3), 7) == [(7, 0), (7, 1), (7, 2)]  # unshuffled


@pytest.mark.parametrize(
    "length, world_size, block",
    [
        (10, 1, 1),
        (10, 3, 1),  # 4, 3, 3 images: two of them are seen twice
        (10, 2, 4),  # blocks of 4, 4, 2: the second process gets the first block again
        (2, 5, 1),  # more processes than images
        (7, 3, 7),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_share_an_epoch(length, world_size, block, shuffle):
    shares = [Sampler(length, shuffle, 0, rank, world_size, block) for rank in range(world_size)]
    indices = [[i for _, i in order_of(share, 1)] for share in shares]
    assert [len(share) for share in shares] == list(map(len, indices))
    assert len({-(-len(part) // block) for part in indices}) == 1  # equally many batches
    assert set().union(*indices) == set(range(length))
    if not shuffle:  # blocks stay whole and start at their multiples
        for part in indices:
            for first in range(0, len(part), block):
                batch = part[first : first + block]
                assert batch[0] % block == 0 and batch == list(range(batch[0], min(batch[0] + block, length)))


# --- drawn by weight --------------------------------------------------------------------------------------------------


def test_images_are_drawn_in_proportion():
    drawn = [draw_images(np.array([1.0, 0.0, 3.0, 0.0]), np.random.default_rng(seed)) for seed in range(1000)]
    share = np.bincount(np.concatenate(drawn), minlength=4) / 4000
    assert share == pytest.approx([0.25, 0, 0.75, 0], abs=0.03)
    assert all(len(d) == 4 for d in drawn)


def test_images_without_any_weight_are_drawn_evenly():
    assert set(draw_images(np.zeros(3), np.random.default_rng(0))) <= {0, 1, 2}


def test_drawing_depends_on_the_generator_alone():
    weights = np.arange(1.0, 20.0)
    first, second = (draw_images(weights, np.random.default_rng(7)) for _ in range(2))
    assert (first == second).all()


def test_weights_take_the_place_of_the_shuffle():
    sampler, other = Sampler(40, shuffle=True, seed=3), Sampler(40, shuffle=True, seed=3)
    plain = order_of(sampler, 2)
    weights = np.arange(40.0)
    for each in (sampler, other):
        each.set_weights(weights)
    drawn = [order_of(sampler, epoch) for epoch in (0, 1, 2)]
    assert order_of(other, 2) == drawn[2]  # whatever came before
    assert len({tuple(i for _, i in pairs) for pairs in drawn}) == 3
    assert all(len(pairs) == 40 and all(i > 0 for _, i in pairs) for pairs in drawn)  # image 0 weighs nothing
    assert len(set(drawn[2])) < 40
    mean = np.mean([i for epoch in range(200) for _, i in order_of(sampler, epoch)])
    assert mean == pytest.approx((weights**2).sum() / weights.sum(), rel=0.02)
    sampler.set_weights(None)
    assert order_of(sampler, 2) == plain


@pytest.mark.parametrize("options", [{"world_size": 2}, {"block": 4}])
def test_weights_need_one_process_and_free_order(options):
    sampler = Sampler(8, **options)
    sampler.set_weights(None)
    with pytest.raises(ValueError, match="only by one process and without --rect"):
        sampler.set_weights(np.ones(8))


def test_same_weighted_batches_for_any_number_of_workers(entry):
    batches = []
    for workers in (0, 2):
        loader, dataset = create_dataloader(entry, LoaderOptions(workers=workers, **TRAINING))
        epochs = []
        for epoch in range(3):  # the weights change while the workers live
            loader.sampler.set_weights(None if epoch == 0 else np.arange(10.0) == 3 * epoch)
            epochs.append(epoch_of(loader, epoch))
        batches.append(epochs)
        for epoch in (1, 2):
            assert {path for batch in epochs[epoch] for path in batch[2]} == {dataset.image_files[3 * epoch]}
    assert all(same(*pair) for pair in zip(*batches))


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length, sizes",
    [
        (40, [5, 5]),  # batches in each window
        (32, [4, 4]),
        (30, [4, 4]),
        (10, [3]),  # too few for a window of four
        (3, [1]),
    ],
)
def test_windows_keep_order_and_deal_out_all_images(length, sizes):
    sampler = WindowSampler(length, True, 3, batch_size=4)
    windows = order_of(sampler, 2)
    assert [len(window) for window in windows] == sizes and len(sampler) == length
    pairs = [key[:2] for window in windows for batch in window for key in batch]
    assert pairs == order_of(Sampler(length, shuffle=True, seed=3), 2)
    assert windows == order_of(WindowSampler(length, True, 3, batch_size=4), 2)
    for window in windows:
        everyone = [index for batch in window for _, index, *_ in batch]
        for batch in window:
            assert len(batch) in (4, length % 4)
            assert {key[3] for key in batch} == {tuple(everyone)} and all(len(key[2]) == 3 for key in batch)
            shown = [index for key in batch for index in (key[1], *key[2])]
            assert {*shown} <= {*everyone}
            assert len({*shown}) == min(len(shown), len(everyone))  # as many different ones as can be
    deals = [[key[2] for window in order_of(sampler, epoch) for batch in window for key in batch] for epoch in (2, 3)]
    assert deals[0] != deals[1]


@pytest.mark.parametrize("quad", [False, True])
def test_same_windows_for_any_number_of_workers(entry, quad):
    options = {**TRAINING, "batch_size": 2, "share_decoding": True, "quad": quad}
    batches = []
    for workers in (0, 2):
        loader, _ = create_dataloader(entry, LoaderOptions(workers=workers, **options))
        batches.append([epoch_of(loader, epoch) for epoch in (0, 1)])
        assert len(loader) == len(batches[-1][0]) == 5 and len(loader.dataset) == 10
    assert all(same(*pair) for pair in zip(*batches))
    apart, _ = create_dataloader(entry, LoaderOptions(workers=0, **{**options, "share_decoding": False}))
    assert not same(epoch_of(apart, 0), batches[0][0])
    assert [batch[2] for batch in epoch_of(apart, 0)] == [batch[2] for batch in batches[0][0]]


@pytest.mark.parametrize("extra", [{}, {"mosaic9": 1.0}, {"mixup": 1.0}])
def test_a_window_decodes_each_file_once(entry, extra, monkeypatch):
    options = {**TRAINING, "share_decoding": True, "workers": 0, "hyp": {**HYP, "mosaic": 1.0, **extra}}
    loader, dataset = create_dataloader(entry, LoaderOptions(**options))
    read, real = [], store_module.decode_image
    monkeypatch.setattr(
        store_module, "decode_image", lambda data, path, *a, **k: read.append(path) or real(data, path, *a, **k)
    )
    batches = epoch_of(loader, 1)
    assert sorted(read) == sorted({*read})
    if extra:  # more tiles than a frame can hide
        assert {*read} == {*dataset.image_files}
    assert len(batches) == 3 and dataset.store._decoded is None  # nothing is kept beyond the window
    kept, _ = create_dataloader(entry, LoaderOptions(cache="ram", **options))
    assert same(epoch_of(kept, 1), batches)  # whoever reads


def test_rect_shares_no_decoding(entry, capsys):
    loader, _ = create_dataloader(
        entry, LoaderOptions(workers=0, **{**TRAINING, "rect": True, "share_decoding": True, "shuffle": False})
    )
    assert "shared decoding is ignored" in capsys.readouterr().err
    assert same(list(loader), list(create_dataloader(entry, LoaderOptions(workers=0, **{**TRAINING, "rect": True}))[0]))


# --- loader -----------------------------------------------------------------------------------------------------------


def test_same_batches_for_any_number_of_workers(entry):
    batches = {}
    for workers in (0, 1, 2):
        torch.manual_seed(workers)  # no global generator has a say
        loader, _ = create_dataloader(entry, LoaderOptions(workers=workers, **TRAINING))
        # workers live on from epoch to epoch, and yet draw anew in each
        batches[workers] = [epoch_of(loader, epoch) for epoch in (0, 1)]
    resumed, _ = create_dataloader(entry, LoaderOptions(workers=0, **TRAINING))
    assert same(epoch_of(resumed, 1), batches[0][1])
    for workers in (1, 2):
        assert same(batches[workers][0], batches[0][0]) and same(batches[workers][1], batches[0][1])
    assert not torch.equal(batches[0][0][0][0], batches[0][1][0][0])


def test_the_last_epochs_without_mosaic(entry):
    options = {**TRAINING, "hyp": {**HYP, "mosaic": 1.0}}
    batches = []
    for workers in (0, 2):
        loader, _ = create_dataloader(entry, LoaderOptions(workers=workers, mosaic_until=1, **options))
        batches.append([epoch_of(loader, epoch) for epoch in (0, 1, 2)])
    assert all(same(*pair) for pair in zip(*batches))
    # only a mosaic has no shapes, and more labels than the one of each image
    mosaics = [[shape is None for batch in epoch for shape in batch[3]] for epoch in batches[0]]
    assert all(mosaics[0]) and not any(mosaics[1] + mosaics[2])
    plain, _ = create_dataloader(entry, LoaderOptions(workers=0, **{**options, "hyp": {**HYP, "mosaic": 0.0}}))
    assert not same(epoch_of(plain, 1)[:1], epoch_of(plain, 2)[:1])  # still augmented
    always, _ = create_dataloader(entry, LoaderOptions(workers=0, **options))
    assert same(epoch_of(always, 0), batches[0][0])


def test_a_fraction_of_the_images(entry):
    whole, _ = create_dataloader(entry, LoaderOptions(workers=0, **TRAINING))
    loaders = [create_dataloader(entry, LoaderOptions(workers=workers, fraction=0.5, **TRAINING)) for workers in (0, 2)]
    for loader, dataset in loaders:
        assert len(dataset) == len(loader.sampler) == len(dataset.labels) == 5 and len(loader) == 2
        assert set(dataset.image_files) < set(whole.dataset.image_files)
    assert same(*(epoch_of(loader, 1) for loader, _ in loaders))


def test_workers_live_for_the_whole_run(entry):
    loader, _ = create_dataloader(entry, LoaderOptions(workers=1, **TRAINING))
    epoch_of(loader, 0)
    processes = [worker.pid for worker in loader._iterator._workers]
    epoch_of(loader, 1)
    assert [worker.pid for worker in loader._iterator._workers] == processes


def test_batches_by_hand(entry):
    loader, dataset = create_dataloader(entry, LoaderOptions(image_size=64, batch_size=4, stride=32, workers=0))
    batches = list(loader)
    assert len(loader) == 3 and [len(images) for images, *_ in batches] == [4, 4, 2]  # the last one is smaller
    images, targets, paths, shapes = batches[1]
    assert images.shape == (4, 3, 64, 64) and images.dtype == torch.uint8
    assert targets[:, 0].tolist() == [0, 1, 2, 3] and targets[:, 1].tolist() == [1, 2, 0, 1]
    assert paths == tuple(dataset.image_files[4:8]) and len(shapes) == 4
    assert torch.equal(images[2], dataset[6][0])


def test_cached_images_reach_workers(entry):
    loader, _ = create_dataloader(entry, LoaderOptions(workers=1, cache="ram", **TRAINING))
    plain, _ = create_dataloader(entry, LoaderOptions(workers=0, **TRAINING))
    assert same(epoch_of(loader, 0), epoch_of(plain, 0))


def test_rectangular_batches_stay_together_in_every_process(entry):
    for rank in range(2):
        loader, _ = create_dataloader(
            entry, LoaderOptions(image_size=64, batch_size=3, stride=32, rect=True, workers=0, rank=rank, world_size=2)
        )
        assert [len(images) for images, *_ in loader] in ([3, 3], [3, 1])


def test_rect_switches_shuffle_off(entry, capsys):
    loader, _ = create_dataloader(
        entry, LoaderOptions(image_size=64, batch_size=4, stride=32, rect=True, shuffle=True, workers=0)
    )
    assert not loader.sampler.shuffle
    assert "shuffle is ignored" in capsys.readouterr().err


@pytest.mark.parametrize(
    "batch_size, workers, used",
    [
        (4, 0, 0),
        (1, 8, 0),  # not worth a process
        (4, 1, 1),
        (4, 8, 4),
        (16, 100, 6),  # no more than processors
    ],
)
def test_number_of_workers(entry, monkeypatch, batch_size, workers, used):
    monkeypatch.setattr("utils.data.loader.usable_cores", lambda: 6)
    monkeypatch.setattr("torch.utils.data.dataloader.DataLoader.check_worker_number_rationality", lambda self: None)
    loader, dataset = create_dataloader(
        entry, LoaderOptions(image_size=64, batch_size=batch_size, stride=32, workers=workers)
    )
    assert loader.num_workers == used
    assert loader.batch_size == min(batch_size, len(dataset))
    assert loader.pin_memory == torch.cuda.is_available()


@pytest.mark.parametrize(
    "world_size, here, used",
    [
        (128, 8, 8),  # 16 machines of 8 processes and 64 cores
        (8, 8, 8),
        (4, None, 16),  # not started by torchrun
        (1, 8, 20),  # a loader of one process alone, such as the one of validation
        (128, 128, 0),  # fewer cores than processes
    ],
)
def test_processes_share_the_cores_of_their_machine(entry, monkeypatch, world_size, here, used):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.setattr("utils.data.loader.usable_cores", lambda: 64)
    options = LoaderOptions(image_size=64, batch_size=64, workers=20, rank=0, world_size=world_size)
    monkeypatch.setattr("torch.utils.data.dataloader.DataLoader.check_worker_number_rationality", lambda self: None)
    monkeypatch.setattr("utils.data.loader.open_dataset", lambda entry, options: [None] * 64)
    assert create_dataloader(entry, options)[0].num_workers == used


def test_loading_leaves_the_global_generators_alone(entry):
    loader, _ = create_dataloader(entry, LoaderOptions(workers=1, **TRAINING))
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1]
    epoch_of(loader, 0)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


# --- collation --------------------------------------------------------------------------------------------------------


def test_collate_numbers_targets_and_changes_no_sample():
    samples = [
        (torch.full((3, 4, 4), i, dtype=torch.uint8), torch.full((n, 6), 9.0), f"{i}", None)
        for i, n in enumerate([2, 0, 1])
    ]
    images, targets, paths, shapes = collate(samples)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert targets[:, 0].tolist() == [0, 0, 2] and (targets[:, 1:] == 9).all()
    assert (paths, shapes) == (("0", "1", "2"), (None, None, None))
    assert (samples[0][1] == 9).all()
    assert collate(samples[1:2])[1].shape == (0, 6)


def test_recorded_quads(parity, parity_inputs, same_pixels):
    record = parity("augment")
    samples = []
    for i in range(8):
        pattern = {"gen": "pattern", "h": 8, "w": 8, "c": 3, "a": 3 + i, "b": 5, "d": 9, "e": 4}
        rows = torch.tensor([[0, i, 0.5, 0.4, 0.3, 0.2], [0, i + 1, 0.2, 0.3, 0.1, 0.1]])
        image = torch.from_numpy(np.ascontiguousarray(parity_inputs.build(pattern).transpose(2, 0, 1)))
        samples.append((image, rows, f"{i}.jpg", None))
    for case in record["quad"]["cases"]:
        quads = [merge_quad(samples[4 * k : 4 * k + 4], draw) for k, draw in enumerate(case["draws"])]
        images, targets, paths, _ = collate(quads)
        same_pixels(images.numpy(), case["out"], record["env"], 2, case["draws"])
        np.testing.assert_allclose(targets, case["labels"], atol=1e-4)
        assert len(paths) == case["paths"]


def test_quads_through_the_loader(entry):
    options = {**TRAINING, "batch_size": 8, "quad": True}
    batches = [list(create_dataloader(entry, LoaderOptions(workers=workers, **options))[0]) for workers in (0, 1)]
    assert same(*batches)
    # eight images make two, and the last two images, with themselves again, one
    assert [tuple(images.shape) for images, *_ in batches[0]] == [(2, 3, 128, 128), (1, 3, 128, 128)]
    for _, targets, *_ in batches[0]:
        assert (targets[:, 2:] >= 0).all() and (targets[:, 2:] <= 1).all()


def test_quads_draw_evenly_and_by_epoch(entry):
    _, dataset = create_dataloader(entry, LoaderOptions(image_size=64, batch_size=4, stride=32, workers=0))
    quads = QuadDataset(dataset)
    # an enlarged first image has its own one label, four tiles have four
    enlarged = [len(quads.__getitems__([(epoch, i) for i in range(4)])[0][1]) == 1 for epoch in range(60)]
    assert 15 < sum(enlarged) < 45
    again = [len(quads.__getitems__([(epoch, i) for i in range(4)])[0][1]) == 1 for epoch in range(10)]
    assert again == enlarged[:10]


# --- label formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [True, False])
def test_batches_are_those_of_text_files(voc, coco, tmp_path, hyp, augment):
    xml = voc({"a": voc_object() + voc_object("cat", (1, 1, 51, 51)), "b": voc_object("cat", (6, 6, 16, 26))})
    boxes = [(11, "dog", 10, 10, 20, 10), (11, "cat", 0, 0, 50, 50), ("x", "cat", 5, 5, 10, 20)]
    numbers = {"cat": 3, "dog": 7}
    rows = [{"image_id": i, "category_id": numbers[name], "bbox": box} for i, name, *box in boxes]
    instances = CocoSplit(coco(*rows).files, str(tmp_path / "JPEGImages"), NAMES)
    (tmp_path / "JPEGImages" / "a.txt").write_text("1 .2 .3 .2 .2\n0 .25 .5 .5 1\n")
    (tmp_path / "JPEGImages" / "b.txt").write_text("0 .1 .3 .1 .4\n")
    options = {"image_size": 64, "batch_size": 2, "stride": 32, "augment": augment, "hyp": hyp, "workers": 0}
    text, *others = (
        list(create_dataloader(e, LoaderOptions(nc=2, **options))[0])
        for e in (str(tmp_path / "JPEGImages"), xml, instances)
    )
    for batches in others:
        for (images, targets, paths, _), (same_images, same_targets, same_paths, _) in zip(batches, text, strict=True):
            assert (images == same_images).all() and paths == same_paths
            assert targets.numpy() == pytest.approx(same_targets.numpy(), abs=1e-5)
