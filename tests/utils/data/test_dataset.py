"""Samples equal the recorded ones to the pixel, hold the contracts, and depend on (seed, epoch, index) alone."""

import cv2
import numpy as np
import pytest
import torch

from utils.data import augmentations as aug
from utils.data import mosaic as mosaics
from utils.data import store as store_module
from utils.data.augmentations import Warp
from utils.data.dataset import open_dataset, rect_shapes
from utils.data.images import list_images, read_image
from utils.data.letterbox import to_input
from utils.data.loader import collate
from utils.data.options import LoaderOptions

PLAIN = {
    "mosaic": 0.0,
    "mixup": 0.0,
    "copy_paste": 0.0,
    "degrees": 0.0,
    "translate": 0.0,
    "scale": 0.0,
    "shear": 0.0,
    "perspective": 0.0,
    "hsv_h": 0.0,
    "hsv_s": 0.0,
    "hsv_v": 0.0,
    "flipud": 0.0,
    "fliplr": 0.0,
}
STRONG = {
    "mosaic": 0.8,
    "mixup": 0.4,
    "copy_paste": 0.5,
    "degrees": 20.0,
    "translate": 0.2,
    "scale": 0.7,
    "shear": 8.0,
    "perspective": 0.0,
    "hsv_h": 0.1,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "flipud": 0.5,
    "fliplr": 0.5,
}


def label_text(rows):
    return "\n".join(" ".join(map(str, row)) for row in rows)


def rows_of(targets, columns=6):
    return np.array(targets, np.float64).reshape(-1, columns)


@pytest.fixture
def mixed_set(write_set, noise_image):
    """Eight images of many shapes: boxes, polygons, both kinds of nothing."""
    sizes = [(48, 64), (64, 48), (30, 90), (90, 31), (64, 64), (20, 33), (120, 100), (77, 55)]
    texts = [
        "0 .5 .5 .6 .4\n1 .2 .3 .3 .3",
        "2 .1 .1 .9 .1 .5 .9\n0 .2 .2 .8 .2 .8 .8 .2 .8",
        "",
        "1 .5 .5 1 1",
        "0 .95 .5 .4 .3",  # leaves the image
        "2 .3 .3 .7 .3 .7 .7 .3 .7",
        None,
        "1 .25 .75 .2 .3\n0 .6 .4 .5 .5",
    ]
    images = {f"{i} ü": noise_image(*size, seed=i) for i, size in enumerate(sizes)}
    return str(write_set(images, {f"{i} ü": text for i, text in enumerate(texts) if text is not None}))


# --- against the recording --------------------------------------------------------------------------------------------


def test_recorded_loading(parity, parity_inputs, write_set, same_pixels, tmp_path):
    record = parity("letterbox")
    for number, case in enumerate(record["load"]["cases"]):
        entry = write_set({"a": parity_inputs.build(case["image"])}, {"a": "0 .5 .5 .1 .1"}, tmp_path / str(number))
        dataset = open_dataset(str(entry), LoaderOptions(image_size=case["imgsz"], augment=case["augment"], hyp=PLAIN))
        image, (_, _, _, (original, _)) = dataset.store.load(0), dataset[0]
        assert list(original) == case["original_hw"] and list(image.shape[:2]) == case["resized_hw"]
        same_pixels(image, case["out"], record["env"], 1, case)


def test_recorded_rectangular_batches(parity, write_set):
    record = parity("letterbox")["rectangular"]
    sizes = record["sizes_wh"]
    entry = write_set({f"{i:02}": np.zeros((h, w, 3), np.uint8) for i, (w, h) in enumerate(sizes)}, {"00": ""})
    for case in record["cases"]:
        options = {name: case[name] for name in ("batch_size", "stride", "pad")}
        dataset = open_dataset(str(entry), LoaderOptions(image_size=case["imgsz"], rect=True, **options))
        order = [int(path[-6:-4]) for path in dataset.image_files]
        # images 0 and 5 have one aspect ratio: which comes first is up to numpy's sort on this processor
        assert sorted(order) == list(range(len(sizes)))
        assert [0 if i == 5 else i for i in order] == [0 if i == 5 else i for i in case["order"]]
        assert dataset.batch_index.tolist() == case["batch"]
        assert dataset.batch_shapes.tolist() == case["shapes_hw"]
        assert list(dataset[0][0].shape) == case["first_item"]
        for i in range(len(dataset)):
            assert list(dataset[i][0].shape[1:]) == case["shapes_hw"][case["batch"][i]]


def test_recorded_evaluation_items(parity, parity_inputs, write_set, same_pixels):
    record = parity("letterbox")
    items = record["items"]
    images = {str(i): parity_inputs.build(image) for i, image in enumerate(items["images"])}
    labels = {str(i): label_text(rows) for i, rows in enumerate(items["labels"]) if rows is not None}
    entry = str(write_set(images, labels))
    for case in items["cases"]:
        dataset = open_dataset(entry, LoaderOptions(image_size=64, **case["options"]))
        if "collated" in case:
            batch_images, targets, _, _ = collate([dataset[i] for i in range(4)])
            assert list(batch_images.shape) == case["collated"]["images"]
            np.testing.assert_allclose(targets, rows_of(case["collated"]["labels"]), atol=1e-6)
            continue
        image, targets, path, shapes = dataset[case["item"]]
        assert path.endswith(f"{case['file']}.png")
        np.testing.assert_allclose(targets, rows_of(case["labels"]), atol=1e-6)
        (original, (gain, pad)), recorded = shapes, case["shapes"]
        assert list(original) == recorded[0]
        np.testing.assert_allclose([*gain, *pad], np.ravel(recorded[1]), atol=1e-8)
        same_pixels(image.numpy(), case["out"], record["env"], 1, case)


@pytest.fixture
def recorded_mosaic_set(parity, parity_inputs, write_set, tmp_path):
    """`recorded_mosaic_set(kind)`: the entry of the five recorded images with "boxes" or "polygons"."""

    def make(kind):
        record = parity("augment")["mosaic"]
        images = {str(i): parity_inputs.build(image) for i, image in enumerate(record["images"])}
        labels = {str(i): label_text(rows) for i, rows in enumerate(record[kind])}
        return str(write_set(images, labels, tmp_path / kind))

    return make


def test_recorded_mosaics(parity, recorded_mosaic_set, same_pixels):
    record = parity("augment")
    size = record["mosaic"]["imgsz"]
    for case in record["mosaic"]["cases"]:
        name, hyp = case["name"], case["hyp"]
        dataset = open_dataset(
            recorded_mosaic_set(case["labels_in"]), LoaderOptions(image_size=size, augment=True, hyp=PLAIN)
        )
        images = [dataset.store.load(i) for i in case["tiles"]]
        shapes = [image.shape[:2] for image in images]
        tiles = mosaics.mosaic_tiles(shapes, tuple(case["centre_xy"]), size)
        polygons = [dataset.annotations.polygons_of(i) for i in case["tiles"]]
        labels, polygons = mosaics.mosaic_labels(
            [dataset.labels_of(i) for i in case["tiles"]], polygons, shapes, tiles, size
        )
        canvas = mosaics.mosaic_canvas(images, tiles, size)
        same_pixels(canvas, case["canvas"]["image"], record["env"], 2, name)
        np.testing.assert_allclose(labels, rows_of(case["canvas"]["labels"], 5), atol=1e-4, err_msg=name)
        assert sum(len(polygon) > 0 for polygon in polygons) == case["canvas"]["segments"]

        ranges = [hyp[n] for n in ("perspective", "perspective", "degrees", "scale", "shear", "shear")]
        ranges += [hyp["translate"]] * 2
        fractions = np.array(case["warp_draw_fractions"])
        warp = Warp(*(np.array(Warp()) + (2 * fractions - 1) * ranges).tolist())
        image, warped = aug.random_perspective(canvas, labels, polygons, warp, (size, size))
        same_pixels(image, case["out"], record["env"], 2, name)
        np.testing.assert_allclose(warped, rows_of(case["labels"], 5), atol=1e-4, err_msg=name)

        # and straight into the frame, as samples are made: these images are too busy to compare but by the average
        matrix = aug.warp_matrix(warp, canvas.shape[:2], (size, size))
        direct = mosaics.warp_mosaic(images, tiles, mosaics.tile_spans(tiles, matrix, size), matrix, size)
        if warp == Warp():
            assert np.array_equal(direct, image), name
        assert abs(direct.mean() - image.mean()) < 2, name


def test_recorded_training_items(parity, recorded_mosaic_set, same_pixels):
    record = parity("augment")
    for case in record["items"]["cases"]:
        hyp = {**PLAIN, "flipud": float(case["flip_up_down"]), "fliplr": float(case["flip_left_right"])}
        dataset = open_dataset(
            recorded_mosaic_set("boxes"), LoaderOptions(image_size=record["mosaic"]["imgsz"], augment=True, hyp=hyp)
        )
        image, targets, _, shapes = dataset[case["item"]]
        np.testing.assert_allclose(targets[:, 1:], rows_of(case["labels"])[:, 1:], atol=1e-4)
        np.testing.assert_allclose([*shapes[1][0], *shapes[1][1]], np.ravel(case["shapes"][1]), atol=1e-8)
        assert list(shapes[0]) == case["shapes"][0]
        same_pixels(image.numpy(), case["out"], record["env"], 2, case)


def test_recorded_single_class(parity, write_set):
    record = parity("labels")["folder"]
    texts = {case["name"]: case["text"] for case in parity("labels")["texts"]}
    names = [name.removesuffix(".png") for name in record["kept"]]
    images = {name: np.zeros((30, 40, 3), np.uint8) for name in names}
    labels = {name: texts[name.split("/")[-1]] for name in names}
    entry = str(write_set(images, {n: t for n, t in labels.items() if t is not None}))
    dataset = open_dataset(entry, LoaderOptions(single_cls=True))
    classes = [dataset.labels_of(i)[:, 0].tolist() for i in range(len(dataset))]
    recorded = record["single_class_without_polygons"]["ok"]
    # the recorded program fails on the two files of polygons; here they are of class 0 like the others
    assert [c for name, c in zip(names, classes) if "polygon" not in name] == [
        c for name, c in zip(names, recorded) if "polygon" not in name
    ]
    assert classes[names.index("two_polygons")] == [0, 0]
    assert (dataset.labels[:, 1:] == open_dataset(entry, LoaderOptions()).labels[:, 1:]).all()


def test_recorded_need_of_labels(parity, write_set):
    record = parity("labels")["folder"]
    entry = str(write_set({"a": np.zeros((30, 40, 3), np.uint8)}, {}))
    assert record["all_labels_missing_train"] == {"raises": "AssertionError"}
    with pytest.raises(ValueError, match=r"no label files, so there is nothing to learn; .*/labels/a.txt"):
        open_dataset(entry, LoaderOptions(augment=True, hyp=PLAIN))
    assert len(open_dataset(entry, LoaderOptions())) == record["all_labels_missing_val"]["ok"]


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_one_sample_by_hand(write_set):
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:, :, 2] = 200  # red in BGR order
    dataset = open_dataset(str(write_set({"a": stored}, {"a": "3 .5 .5 .5 1"})), LoaderOptions(image_size=80))
    image, targets, path, shapes = dataset[0]
    assert image.dtype == torch.uint8 and tuple(image.shape) == (3, 80, 80) and image.is_contiguous()
    # enlarged to 40 x 80, it lies in the middle; evaluation does not letterbox beyond that
    assert (image[0, 20:60] == 200).all() and (image[1:, 20:60] == 0).all()
    assert (image[:, :20] == 114).all() and (image[:, 60:] == 114).all()
    assert targets.dtype == torch.float32
    np.testing.assert_allclose(targets, [[0, 3, 0.5, 0.5, 0.5, 0.5]], atol=1e-5)
    assert path.endswith("a.png")
    assert shapes == ((20, 40), ((2.0, 2.0), (0.0, 20.0)))


def test_boxes_beyond_the_edge_are_clipped_to_the_image(write_set):
    dataset = open_dataset(
        str(write_set({"a": np.zeros((64, 64, 3), np.uint8)}, {"a": "0 .9 .5 .4 .2"})), LoaderOptions(image_size=64)
    )
    x, y, w, h = dataset[0][1][0, 2:].tolist()
    assert x - w / 2 == pytest.approx(0.7, abs=1e-6)
    assert x + w / 2 == pytest.approx(1 - 1e-3 / 64, abs=1e-6)
    assert (y, h) == (pytest.approx(0.5), pytest.approx(0.2))


@pytest.mark.parametrize(
    "sizes, frame",
    [
        ([(64, 32), (64, 40)], (64, 64)),  # flat: 0.625 * 64 = 40, up to 64
        ([(64, 30), (64, 32)], (32, 64)),
        ([(32, 64), (30, 64)], (64, 32)),  # tall
        ([(64, 32), (32, 64)], (64, 64)),  # one of each
    ],
)
def test_rectangular_frames_by_hand(sizes, frame):
    assert rect_shapes(np.array(sizes, float), 2, 64, 32, 0.0).tolist() == [list(frame)]


def test_rectangular_batches_use_the_sizes_of_upright_images(mixed_set):
    dataset = open_dataset(mixed_set, LoaderOptions(image_size=64, batch_size=3, rect=True))
    aspect = dataset.shapes[:, 1] / dataset.shapes[:, 0]
    assert (np.diff(aspect) >= 0).all()
    for i in range(len(dataset)):
        _, targets, path, shapes = dataset[i]
        assert shapes[0] == (dataset.shapes[i, 1], dataset.shapes[i, 0])
        assert path == dataset.image_files[i]
        assert len(targets) == len(dataset.labels_of(i))  # labels were sorted with their images


# --- augmented samples ------------------------------------------------------------------------------------------------


def equal(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2:] == b[2:]


@pytest.mark.parametrize("rect", [False, True])
def test_augmented_samples_hold_the_contract(mixed_set, rect):
    dataset = open_dataset(mixed_set, LoaderOptions(image_size=64, batch_size=4, augment=True, hyp=STRONG, rect=rect))
    found = 0
    for epoch in range(25):
        for i in range(len(dataset)):
            image, targets, path, shapes = dataset[epoch, i]
            frame = tuple(dataset.batch_shapes[dataset.batch_index[i]]) if rect else (64, 64)
            assert image.dtype == torch.uint8 and tuple(image.shape) == (3, *frame)
            assert targets.dtype == torch.float32 and targets.shape[1] == 6
            assert path == dataset.image_files[i]
            assert shapes is not None or not rect
            x, y, w, h = targets[:, 2:].T
            assert (targets[:, 2:] >= 0).all() and (targets[:, 2:] <= 1).all()
            edges = torch.stack([x - w / 2, y - h / 2, 1 - x - w / 2, 1 - y - h / 2])
            assert (edges > -1e-5).all()
            assert (w * frame[1] > 1.9).all() and (h * frame[0] > 1.9).all()  # of 2 pixels, less the clipped edge
            assert set(targets[:, 1].tolist()) <= {0, 1, 2} and (targets[:, 0] == 0).all()
            found += len(targets)
    assert found > 100


@pytest.mark.parametrize(
    "extra", [{"perspective": 0.0005}, {"copy_paste": 1.0}, {"mosaic": 1.0, "mixup": 1.0}, {"mosaic9": 1.0}]
)
def test_every_branch_keeps_boxes_in_the_image(mixed_set, extra):
    dataset = open_dataset(mixed_set, LoaderOptions(image_size=64, augment=True, hyp={**STRONG, **extra}))
    for i in range(len(dataset)):
        targets = dataset[3, i][1]
        assert (targets[:, 2:] >= 0).all() and (targets[:, 2:] <= 1).all()


def test_sample_depends_on_seed_epoch_and_index_alone(mixed_set):
    first, second = (
        open_dataset(mixed_set, LoaderOptions(image_size=64, augment=True, hyp=STRONG, seed=5)) for _ in range(2)
    )
    other_seed = open_dataset(mixed_set, LoaderOptions(image_size=64, augment=True, hyp=STRONG, seed=6))
    samples = [first[2, i] for i in range(8)]
    np.random.seed(1)  # no global generator has a say
    torch.manual_seed(1)
    for i in reversed(range(8)):
        assert equal(samples[i], second[2, i])
        assert not torch.equal(samples[i][0], second[3, i][0])
        assert not torch.equal(samples[i][0], other_seed[2, i][0])
    assert equal(second[0, 4], second[4])  # an index alone is one of epoch 0


def test_whole_objects_follow_their_pixels(write_set):
    # a white rectangle on black, boxed exactly: after any warp the box still bounds the white pixels
    stored = np.zeros((64, 64, 3), np.uint8)
    stored[20:44, 16:48] = 255
    entry = write_set({"a": stored}, {"a": "0 .5 .5 .5 .375"})
    hyp = {**PLAIN, "degrees": 30.0, "scale": 0.3, "shear": 10.0, "translate": 0.05, "flipud": 0.5, "fliplr": 0.5}
    dataset = open_dataset(str(entry), LoaderOptions(image_size=64, augment=True, hyp=hyp))
    for epoch in range(20):
        image, targets, _, _ = dataset[epoch, 0]
        rows, columns = np.nonzero((image > 184).all(0).numpy())  # beyond the middle of grey and white
        x, y, w, h = (targets[0, 2:] * 64).tolist()
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, bounds, atol=2.5)


def test_a_large_jpeg_is_decoded_small(tmp_path, noise_image, write_image):
    image = write_image(tmp_path / "images" / "a.jpg", cv2.resize(noise_image(30, 40), (402, 301)))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .5 .5")
    trained, measured = (
        open_dataset(str(image.parent), LoaderOptions(image_size=100, augment=a, hyp=PLAIN)) for a in (True, False)
    )
    small, whole, shape = trained.store.load(0), measured.store.load(0), measured[0][3][0]
    assert small.shape == whole.shape == (*trained.store.shape_of(0), 3) == (74, 100, 3) and shape == (301, 402)
    assert np.abs(small.astype(int) - whole).mean() < 2


def test_an_image_that_changes_its_size_is_named(mixed_set, tmp_path, write_image, noise_image):
    dataset = open_dataset(mixed_set, LoaderOptions(image_size=64))
    write_image(tmp_path / "set" / "images" / "0 ü.png", noise_image(90, 90))
    with pytest.raises(ValueError, match=r"0 ü.png: had 64 x 48 pixels .* but has 90 x 90 now"):
        dataset[0]


# --- memory, messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [False, True])
def test_images_in_memory_give_the_same_samples(mixed_set, augment, monkeypatch):
    options = {"image_size": 64, "augment": augment, "hyp": STRONG}
    plain, cached = (
        open_dataset(mixed_set, LoaderOptions(**options)),
        open_dataset(mixed_set, LoaderOptions(cache="ram", **options)),
    )
    expected = [plain[i] for i in range(8)]
    monkeypatch.setattr(store_module, "decode_image", None)  # no file is opened any more
    for _ in range(2):  # nor is a cached image changed by use
        assert all(equal(expected[i], cached[i]) for i in range(8))


def test_images_that_do_not_fit_in_memory_are_read_each_time(mixed_set, monkeypatch, capsys):
    monkeypatch.setattr(store_module, "free_memory", lambda: 50_000)
    dataset = open_dataset(mixed_set, LoaderOptions(image_size=64, cache="ram"))
    assert "more than 80% of the" in capsys.readouterr().err
    assert dataset[0][0].shape == (3, 64, 64)


def test_class_beyond_nc_names_file_and_line(mixed_set):
    assert len(open_dataset(mixed_set, LoaderOptions(image_size=64, nc=3))) == 8
    assert len(open_dataset(mixed_set, LoaderOptions(image_size=64, nc=1, single_cls=True))) == 8
    with pytest.raises(ValueError, match=r"labels/1 ü.txt:1: class must be a whole number, 0 to 1, got 2"):
        open_dataset(mixed_set, LoaderOptions(image_size=64, nc=2))
    with pytest.raises(ValueError, match=r"labels/1 ü.txt:1: .* got 2"):
        open_dataset(mixed_set, LoaderOptions(image_size=64, nc=2))  # also when labels come from the cache


def test_options_that_make_no_sense(mixed_set):
    with pytest.raises(ValueError, match="augment needs the augmentation hyperparameters"):
        open_dataset(mixed_set, LoaderOptions(augment=True))
    with pytest.raises(ValueError, match="cache must be one of ram, auto, disk, off, got 'tape'"):
        open_dataset(mixed_set, LoaderOptions(cache="tape"))


def test_image_that_is_gone_is_named(mixed_set, tmp_path):
    dataset = open_dataset(mixed_set, LoaderOptions(image_size=64))
    (tmp_path / "set" / "images" / "0 ü.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"0 ü\.png"):
        dataset[0]


def test_photographs(bccd, tmp_path):
    list_file = tmp_path / "photographs.txt"  # whose folder takes the cache, so that the photographs' stays as it is
    list_file.write_text("\n".join(list_images(str(bccd / "images"))))
    dataset = open_dataset(str(list_file), LoaderOptions(image_size=320, augment=True, hyp=STRONG, nc=3))
    rows = sum(len(file.read_text().splitlines()) for file in bccd.rglob("labels/*/*.txt"))
    assert len(dataset) == 24 and len(dataset.labels) == rows
    for i in range(0, len(dataset), 3):
        image, targets, _, _ = dataset[i]
        assert image.shape == (3, 320, 320)
        assert (targets[:, 2:] <= 1).all()


# --- a share of the images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rect", [False, True])
def test_a_fraction_is_a_fair_draw_by_seed(write_set, noise_image, rect):
    images = {f"{i:02}": noise_image(16 + i % 3 * 8, 24) for i in range(20)}
    entry = str(write_set(images, {name: f"{int(name)} .5 .5 .2 .3" for name in images}))
    whole = open_dataset(entry, LoaderOptions(image_size=32, rect=rect))
    times = dict.fromkeys(whole.image_files, 0)
    for seed in range(60):
        part = open_dataset(entry, LoaderOptions(image_size=32, rect=rect, fraction=0.3, seed=seed))
        assert len(part) == len(set(part.image_files)) == 6
        for i, file in enumerate(part.image_files):
            times[file] += 1
            assert part.labels_of(i)[0, 0] == int(file[-6:-4])  # images keep their labels
    assert sum(times.values()) == 360 and min(times.values()) >= 6 and max(times.values()) <= 32
    again = open_dataset(entry, LoaderOptions(image_size=32, rect=rect, fraction=0.3, seed=59))
    assert again.image_files == part.image_files
    if not rect:
        assert part.image_files == sorted(part.image_files)
    assert len(open_dataset(entry, LoaderOptions(image_size=32, fraction=0.001))) == 1


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_a_fraction_out_of_range(tmp_path, fraction):
    with pytest.raises(ValueError, match="fraction must be above 0 and at most 1"):
        open_dataset(str(tmp_path), LoaderOptions(fraction=fraction))


# --- padding of frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, pad, says",
    [
        (160, 0.5, "padded by 0.5 strides: 192 x 192 pixels where detect.py has 160 x 160"),
        (160, 0.0, ""),
        (320, 0.5, ""),  # 352: a tenth, and no more
        (288, 0.5, "320 x 320 pixels where detect.py has 288 x 288"),
        (640, 0.5, ""),
        (640, 3.0, "736 x 736 pixels where detect.py has 640 x 640"),
    ],
)
def test_padding_that_changes_the_frame_is_told_of(write_set, noise_image, caplog, size, pad, says):
    entry = str(write_set({"a": noise_image(100, 100)}, {"a": "0 .5 .5 .2 .2"}))
    dataset = open_dataset(entry, LoaderOptions(image_size=size, rect=True, pad=pad))
    frame = to_input(noise_image(100, 100), size, 32)[1]  # as detect.py makes it
    assert (tuple(dataset.batch_shapes[0]) == frame) == (pad == 0)
    assert ("frames are padded" in caplog.text) == bool(says) and says in caplog.text


def test_without_padding_single_images_have_the_frames_of_detect(mixed_set):
    dataset = open_dataset(mixed_set, LoaderOptions(image_size=96, batch_size=1, rect=True, pad=0.0))
    for i, path in enumerate(dataset.image_files):
        assert dataset[i][0].shape[1:] == to_input(read_image(path), 96, 32)[1]
