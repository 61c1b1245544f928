"""Given the recorded draws, images and labels come out as recorded; given a generator, draws stay in their ranges."""

import inspect
import math
import pickle
import sys

import numpy as np
import pytest

from utils.data import augmentations as aug
from utils.data import letterbox as letterboxing
from utils.data import mosaic as mosaics
from utils.data.augmentations import Warp


def table(rows, columns=5):
    return np.array(rows, np.float64).reshape(-1, columns)


def warp_of(draws):
    names = (
        "perspective_x",
        "perspective_y",
        "angle_deg",
        "scale",
        "shear_x_deg",
        "shear_y_deg",
        "translate_x",
        "translate_y",
    )
    return Warp(*(draws[name] for name in names))


# --- letterbox --------------------------------------------------------------------------------------------------------


def letterbox_options(case):
    options = {("stretch" if name == "scaleFill" else name): value for name, value in case["args"].items()}
    new_shape = case["new"] if isinstance(case["new"], int) else tuple(case["new"])
    return {**options, "new_shape": new_shape}


def test_recorded_letterbox_pixels(parity, parity_inputs, same_pixels):
    record = parity("letterbox")
    for case in record["cases"]:
        image = parity_inputs.build(case["image"])
        out, ratio, pad = letterboxing.letterbox(image, **letterbox_options(case))
        same_pixels(out, case["out"], record["env"], 1, case)
        np.testing.assert_allclose(ratio, case["ratio"], rtol=1e-8, err_msg=str(case))
        np.testing.assert_allclose(pad, case["pad"], atol=1e-9, err_msg=str(case))


def test_planes_of_recorded_letterboxes(parity, parity_inputs):
    for case in parity("letterbox")["cases"]:
        image, options = parity_inputs.build(case["image"]), letterbox_options(case)
        if {"stretch", "color"} & set(options):
            continue  # which networks' inputs do not use
        framed, *place = letterboxing.letterbox(image, **options)
        planes, *same_place = letterboxing.letterbox_planes(image, **options)
        assert np.array_equal(planes, framed[:, :, ::-1].transpose(2, 0, 1)) and place == same_place, case
        assert planes.flags.c_contiguous


def test_recorded_letterbox_geometry(parity):
    for case in parity("letterbox")["geometry"]["cases"]:
        place = letterboxing.letterbox_geometry(tuple(case["hw"]), **letterbox_options(case))
        top, bottom, left, right = place.border
        height, width = place.inner
        assert [top + height + bottom, left + width + right] == case["out_hw"], case
        assert [top, left, height, width] == case["inside"], case
        np.testing.assert_allclose(place.ratio, case["ratio"], rtol=1e-8, err_msg=str(case))
        np.testing.assert_allclose(place.pad, case["pad"], atol=1e-9, err_msg=str(case))


@pytest.mark.parametrize(
    "shape, options, inner, border, pad",
    [
        ((480, 640), {"new_shape": 640, "auto": False}, (480, 640), (80, 80, 0, 0), (0, 80)),
        ((480, 640), {"new_shape": 640}, (480, 640), (0, 0, 0, 0), (0, 0)),  # 480 is a multiple of 32
        ((50, 101), {"new_shape": 101, "auto": False}, (50, 101), (25, 26, 0, 0), (0, 25.5)),  # odd padding
        ((50, 50), {"new_shape": 100, "auto": False, "scaleup": False}, (50, 50), (25, 25, 25, 25), (25, 25)),
        ((50, 80), {"new_shape": (64, 96), "auto": False, "stretch": True}, (64, 96), (0, 0, 0, 0), (0, 0)),
    ],
)
def test_letterbox_by_hand(shape, options, inner, border, pad):
    place = letterboxing.letterbox_geometry(shape, **options)
    assert (place.inner, place.border, place.pad) == (inner, border, pad)


# --- random perspective -----------------------------------------------------------------------------------------------


def test_recorded_perspective(parity, parity_inputs, same_pixels):
    record = parity("augment")
    for case in record["perspective"]["cases"]:
        image = parity_inputs.build(case["image"])
        height, width = image.shape[:2]
        new_shape = height + 2 * case["border"][0], width + 2 * case["border"][1]
        warp = warp_of(case["draws"])
        polygons = [table(polygon, 2) for polygon in case["segments"]]
        out, labels = aug.random_perspective(image, table(case["targets"]), polygons, warp, new_shape)
        same_pixels(out, case["out"], record["env"], 2, case["name"])
        np.testing.assert_allclose(labels, table(case["labels"]), atol=1e-4, err_msg=case["name"])
        matrix = aug.warp_matrix(warp, (height, width), new_shape)
        recorded = np.eye(3) if case["matrix"] is None else np.array(case["matrix"])
        np.testing.assert_allclose(matrix[: len(recorded)], recorded, atol=1e-7, err_msg=case["name"])


def test_recorded_box_filter(parity):
    names = {"wh_thr": "min_side", "ar_thr": "max_aspect", "area_thr": "min_area"}
    for case in parity("boxes")["candidates"]:
        options = {names[name]: value for name, value in case["options"].items()}
        keep = aug.keep_boxes(table(case["before"], 4), table(case["after"], 4), **options)
        assert keep.tolist() == case["keep"]


@pytest.mark.parametrize(
    "after, keep",
    [
        ([0, 0, 10, 10], True),
        ([0, 0, 2, 50], False),  # not wider than 2 pixels
        ([0, 0, 3.1, 3.2], False),  # 9.92 of 100: under a tenth of the area
        ([0, 0, 3.2, 3.2], True),
        ([0, 0, 3, 300], False),  # 100 times as high as wide
        ([5, 5, 5, 5], False),  # nothing left
    ],
)
def test_box_filter_by_hand(after, keep):
    assert aug.keep_boxes(table([0, 0, 10, 10], 4), table(after, 4)).tolist() == [keep]


@pytest.mark.parametrize(
    "warp, point, moved",
    [
        (Warp(), (3, 4), (3, 4)),
        (Warp(translate_x=0.6, translate_y=0.3), (3, 4), (13, -6)),  # by a tenth of 100 and a fifth of 50
        (Warp(scale=2), (60, 25), (70, 25)),  # away from the centre (50, 25)
        (Warp(angle=90), (60, 25), (50, 15)),  # anticlockwise: right becomes up
        (Warp(shear_x=45), (50, 30), (55, 30)),
        (Warp(shear_y=45), (60, 25), (60, 35)),
        (Warp(perspective_x=0.1), (60, 25), (55, 25)),  # 10 right of the centre: divided by 1 + 0.1 * 10
    ],
)
def test_each_part_of_a_warp_by_hand(warp, point, moved):
    matrix = aug.warp_matrix(warp, (50, 100), (50, 100))
    np.testing.assert_allclose(aug.warp_points(np.array(point), matrix), moved, atol=1e-9)


def test_boxes_and_polygons_may_share_an_image():
    # a quarter turn about the centre of 100 x 100; the polygon is a triangle that fills half its box
    matrix = aug.warp_matrix(Warp(angle=45), (100, 100), (100, 100))
    labels = table([[0, 40, 40, 60, 60], [1, 40, 40, 60, 60]])
    polygons = [np.zeros((0, 2)), np.array([[40.0, 40], [60, 40], [60, 60]])]
    box, outlined = aug.warp_labels(labels, polygons, matrix, (100, 100), 1.0)
    r = math.hypot(10, 10)
    np.testing.assert_allclose(box, [0, 50 - r, 50 - r, 50 + r, 50 + r], atol=1e-9)
    np.testing.assert_allclose(outlined, [1, 50 - r, 50 - r, 50 + r, 50], atol=0.05)  # only its upper half


def test_draws_are_even_over_their_ranges():
    rng = np.random.default_rng(0)
    ranges = {"degrees": 10, "translate": 0.1, "scale": 0.5, "shear": 5, "perspective": 0.001}
    draws = np.array([aug.draw_warp(rng, **ranges) for _ in range(4000)])
    spread = np.array([0.001, 0.001, 10, 0.5, 5, 5, 0.1, 0.1])
    away = (draws - np.array(Warp())) / spread
    assert np.abs(away).max() <= 1
    assert np.abs(away).max(0).min() > 0.99
    assert np.abs(away.mean(0)).max() < 0.05
    assert aug.draw_warp(rng) == Warp()


# --- mosaic -----------------------------------------------------------------------------------------------------------


def test_mosaic_tiles_by_hand():
    # canvas 20 x 20, centre (8, 12): an image too large is cut, a small one leaves grey
    shapes = [(6, 5), (20, 20), (4, 20), (30, 3)]
    tiles = mosaics.mosaic_tiles(shapes, (8, 12), 10)
    assert tiles == [
        ((3, 6, 8, 12), (3, 6)),
        ((8, 0, 20, 12), (8, -8)),
        ((0, 12, 8, 16), (-12, 12)),
        ((8, 12, 11, 20), (8, 12)),
    ]
    images = [np.full((*shape, 3), k, np.uint8) for k, shape in enumerate(shapes)]
    canvas = mosaics.mosaic_canvas(images, tiles, 10)
    assert (canvas[6:12, 3:8] == 0).all() and (canvas[:12, 8:] == 1).all()
    assert (canvas[12:16, :8] == 2).all() and (canvas[12:, 8:11] == 3).all()
    assert (canvas == 114).all(2).sum() == 400 - 30 - 144 - 32 - 24


def test_mosaic_labels_by_hand():
    tiles = mosaics.mosaic_tiles([(10, 10)] * 4, (8, 12), 10)
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    none = np.zeros((0, 5))
    labels, polygons = mosaics.mosaic_labels(
        [table([3, 0.5, 0.5, 1, 1]), none, none, table([1, 0.5, 0.5, 0.2, 0.2])],
        [[square], [], [], [np.zeros((0, 2))]],
        [(10, 10)] * 4,
        tiles,
        10,
    )
    np.testing.assert_allclose(labels, [[3, 0, 2, 8, 12], [1, 12, 16, 14, 18]])  # the first cut at the left border
    assert polygons[0].tolist() == [[0, 2], [8, 2], [8, 12], [0, 12]] and len(polygons[1]) == 0


def test_mosaic_centre_stays_in_the_middle_half():
    rng = np.random.default_rng(0)
    centres = np.array([mosaics.draw_mosaic_centre(rng, 64) for _ in range(2000)])
    assert centres.min() == 32 and centres.max() == 95


def test_nine_tiles_by_hand():
    # all 10 x 10 but the first, 12 wide and 8 high; the canvas of 20 x 20 begins at (4, 3) of 30 x 30
    tiles = mosaics.mosaic9_tiles([(8, 12)] + [(10, 10)] * 8, (4, 3), 10)
    assert [tile.pad for tile in tiles] == [
        (6, 7), (6, -3), (16, -3), (18, 7), (18, 17), (8, 15), (-2, 15), (-4, 5), (-4, -5),
    ]  # fmt: skip
    assert [tile.canvas for tile in tiles] == [
        (6, 7, 18, 15), (6, 0, 16, 7), (16, 0, 20, 7), (18, 7, 20, 17), (18, 17, 20, 20),
        (8, 15, 18, 20), (0, 15, 8, 20), (0, 5, 6, 15), (0, 0, 6, 5),
    ]  # fmt: skip


@pytest.mark.parametrize("corner", [(0, 0), (17, 63), (40, 21)])
def test_nine_tiles_without_a_canvas_look_the_same(corner, noise_image):
    size = 64
    shapes = [(64, 48), (30, 64), (64, 64), (64, 20), (10, 64), (64, 64), (50, 64), (64, 33), (64, 64)]
    images = [noise_image(*shape, seed=k) for k, shape in enumerate(shapes)]
    whole = np.full((3 * size, 3 * size, 3), 114, np.uint8)  # all of the nine, then the crop
    for image, tile in zip(images, mosaics.mosaic9_tiles(shapes, (0, 0), size)):
        left, top = tile.pad
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        inside = (y + top >= 0) & (y + top < 3 * size) & (x + left >= 0) & (x + left < 3 * size)
        whole[(y + top)[inside], (x + left)[inside]] = image[inside]
    crop = whole[corner[1] : corner[1] + 2 * size, corner[0] : corner[0] + 2 * size]
    tiles = mosaics.mosaic9_tiles(shapes, corner, size)
    assert np.array_equal(mosaics.mosaic_canvas(images, tiles, size), crop)
    matrix = aug.warp_matrix(Warp(scale=0.8), (2 * size, 2 * size), (size, size))
    direct = warp_mosaic(images, tiles, matrix, size).astype(int)
    assert np.abs(direct - aug.warp_image(crop, matrix, (size, size))).mean() < 4  # a tenth of a pixel


def test_albumentations_by_generator(noise_image):
    pytest.importorskip("albumentations", reason="needs the library albumentations")
    image, apply = noise_image(60, 80), aug.Albumentations()
    first = [apply(image, np.random.default_rng(i)) for i in range(150)]
    changed = [i for i, out in enumerate(first) if not np.array_equal(out, image)]
    assert 0 < len(changed) < 15 and all(out.shape == image.shape for out in first)
    copy = pickle.loads(pickle.dumps(apply))  # as a worker that is not forked gets it
    for i in reversed(changed):
        assert np.array_equal(copy(image, np.random.default_rng(i)), first[i])


def test_albumentations_that_are_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ValueError, match="pip install 'albumentations>=2'"):
        aug.Albumentations()


def warp_mosaic(images, tiles, matrix, size):
    return mosaics.warp_mosaic(images, tiles, mosaics.tile_spans(tiles, matrix, size), matrix, size)


WARPS = [
    Warp(),
    Warp(scale=1.5, translate_x=0.55, translate_y=0.42),
    Warp(scale=0.6, translate_x=0.47),
    Warp(angle=9, scale=0.9, shear_x=4, shear_y=-3, translate_y=0.56),
    Warp(angle=-170, scale=1.2),
]


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("centre", [(128, 128), (70, 190), (191, 64)])
def test_mosaic_without_a_canvas_looks_the_same(warp, centre, noise_image):
    size = 128
    shapes = [(128, 96), (72, 128), (128, 128), (40, 60)]
    images = [noise_image(*shape, seed=k) for k, shape in enumerate(shapes)]
    tiles = mosaics.mosaic_tiles(shapes, centre, size)
    matrix = aug.warp_matrix(warp, (2 * size, 2 * size), (size, size))
    painted = aug.warp_image(mosaics.mosaic_canvas(images, tiles, size), matrix, (size, size)).astype(int)
    direct = warp_mosaic(images, tiles, matrix, size).astype(int)
    off = np.abs(painted - direct).max(2)
    if warp == Warp():
        assert off.max() == 0
    # whatever is further off is a seam of a pixel or two
    assert (off > 4).mean() < 0.03
    assert np.abs(painted - direct).mean() < 1.0


@pytest.mark.parametrize("gain", [0.37, 0.73, 0.999, 1.0, 1.31])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -0.45), (-0.5, 0.12)])
def test_a_resized_tile_lies_where_the_matrix_says(gain, shift):
    # the brightness of a ramp tells from which place of the source each pixel came
    size, rise = 32, 7
    ramp = 20 + rise * np.arange(size)
    image = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], 0), -1).astype(np.uint8)
    matrix = np.array([[gain, 0, 2 + shift[0]], [0, gain, 1 + shift[1]], [0, 0, 1]])
    tile = mosaics.Tile((0, 0, size, size), (0, 0))
    frame = warp_mosaic([image], [tile], matrix, size).astype(float)
    (left, top, right, bottom) = mosaics.tile_spans([tile], matrix, size)[0]
    for axis, start, stop in ((0, left, right), (1, top, bottom)):
        line = frame[(top + bottom) // 2, left:right, 0] if axis == 0 else frame[top:bottom, (left + right) // 2, 1]
        source = (np.arange(start, stop) - matrix[axis, 2]) / gain
        expected = np.interp(source, np.arange(size), ramp)
        off = gain * (line - expected)[2:-2] / rise  # in pixels of the frame; the outermost have no neighbour to blend
        assert np.abs(off).max() < 0.15 + gain * 0.5 / rise  # bytes are rounded


def test_an_image_that_shrinks_a_lot_is_averaged():
    # fine stripes: sampling them would show false broad ones, the mean is even grey
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 200
    tile = mosaics.Tile((0, 0, 256, 256), (0, 0))
    for angle in (0, 20):
        matrix = aug.warp_matrix(Warp(scale=0.24, angle=angle), (256, 256), (256, 256))
        frame = warp_mosaic([stripes], [tile], matrix, 256)[112:144, 112:144]
        assert np.abs(frame.astype(int) - 100).max() <= 2
        sampled = aug.warp_image(stripes, matrix, (256, 256))[112:144, 112:144]
        assert sampled.std() > 20


def test_hidden_tiles_are_not_looked_at(noise_image):
    size = 64
    images = [noise_image(64, 64, seed=k) for k in range(4)]
    tiles = mosaics.mosaic_tiles([(64, 64)] * 4, (32, 40), size)
    matrix = aug.warp_matrix(Warp(scale=2.5), (128, 128), (size, size))
    spans = mosaics.tile_spans(tiles, matrix, size)
    assert [span is None for span in spans] == [True, True, True, False]
    seen = [image if span else None for image, span in zip(images, spans)]
    assert np.array_equal(
        mosaics.warp_mosaic(seen, tiles, spans, matrix, size), warp_mosaic(images, tiles, matrix, size)
    )


# --- mixing, colour, mirror -------------------------------------------------------------------------------------------


def test_recorded_mixup(parity, parity_inputs, same_pixels):
    record = parity("augment")
    for case in record["mixup"]["cases"]:
        images = parity_inputs.build(case["image"]), parity_inputs.build(case["image2"])
        labels = table(case["labels1"]), table(case["labels2"])
        out, mixed = aug.mixup(images[0], labels[0], images[1], labels[1], case["ratio"])
        same_pixels(out, case["out"], record["env"], 2, case["ratio"])
        assert np.array_equal(mixed, table(case["labels"]))


def test_recorded_copy_paste(parity, parity_inputs, same_pixels):
    record = parity("augment")
    rng = np.random.default_rng(0)
    for case in record["copy_paste"]["cases"]:
        polygons = [table(polygon, 2) for polygon in case["segments"]]
        labels = table(case["labels"])
        out = aug.copy_paste(parity_inputs.build(case["image"]), labels, polygons, case["picked"])
        same_pixels(out[0], case["out"], record["env"], 2, case["picked"])
        np.testing.assert_allclose(out[1], table(case["labels_out"]), atol=1e-4)
        assert len(out[2]) == case["segments_out"] and len(polygons) == len(case["segments"])
        assert len(aug.draw_copy_paste(rng, polygons, case["probability"])) == case["number_picked"]


def test_copy_paste_picks_only_rows_with_polygons():
    square = np.array([[2.0, 2], [8, 2], [8, 8], [2, 8]])
    polygons = [np.zeros((0, 2)), square, np.zeros((0, 2)), square]
    rng = np.random.default_rng(0)
    assert {tuple(sorted(aug.draw_copy_paste(rng, polygons, 1.0))) for _ in range(10)} == {(1, 3)}
    assert {tuple(aug.draw_copy_paste(rng, polygons, 0.5)) for _ in range(50)} == {(1,), (3,)}
    assert aug.draw_copy_paste(rng, [], 1.0) == []


def test_copy_paste_leaves_objects_visible():
    image = np.full((20, 40, 3), 50, np.uint8)
    image[5:15, 2:12] = 200
    square = np.array([[2.0, 5], [11, 5], [11, 14], [2, 14]])
    labels = table([[0, 2, 5, 12, 15], [1, 28, 5, 38, 15]])  # the mirror image would cover the second
    out = aug.copy_paste(image, labels, [square, np.zeros((0, 2))], [0])
    assert np.array_equal(out[0], image) and len(out[1]) == 2
    out = aug.copy_paste(image, labels[:1], [square], [0])
    assert (out[0][5:15, 28:38] == 200).all() and (out[0] == 200).sum() == 2 * 300
    assert out[1].tolist() == [[0, 2, 5, 12, 15], [0, 28, 5, 38, 15]]


def test_recorded_hsv(parity, parity_inputs, same_pixels):
    record = parity("augment")
    for case in record["hsv"]["cases"]:
        multipliers = np.array(case["draws"]) * case["gains_hsv"] + 1
        np.testing.assert_allclose(multipliers, case["multipliers"], atol=1e-9)
        out = aug.adjust_hsv(parity_inputs.build(case["image"]), multipliers)
        same_pixels(out, case["out"], record["env"], 2, case["gains_hsv"])


def test_hsv_by_hand():
    blue = np.array([[[250, 0, 0]]], np.uint8)
    assert aug.adjust_hsv(blue, np.array([1, 1, 0.5])).tolist() == [[[125, 0, 0]]]
    assert aug.adjust_hsv(blue, np.array([0.5, 1, 1])).tolist() == [[[0, 250, 0]]]  # hue 240 degrees to 120
    assert aug.adjust_hsv(blue, np.array([1, 0, 1])).tolist() == [[[250, 250, 250]]]


@pytest.mark.parametrize("gains", [(0.015, 0.7, 0.4), (0.4, 0.9, 0.9), (0.5, 0.5, 0.5), (0, 0, 0)])
def test_planes_are_the_recoloured_image(noise_image, gains):
    rng = np.random.default_rng(0)
    image = np.concatenate([noise_image(100, 90), rng.integers(0, 256, (51, 90, 3), dtype=np.uint8)])
    for _ in range(10):
        multipliers = aug.draw_hsv(rng, *gains)
        exact = aug.adjust_hsv(image, multipliers)[:, :, ::-1].transpose(2, 0, 1).astype(int)
        planes = aug.to_planes(image, multipliers)
        assert planes.dtype == np.uint8 and planes.flags.c_contiguous
        off = np.abs(planes - exact)
        # one step of hue is two degrees
        assert off.max() <= 12 and off.mean() < 0.1, multipliers
    assert np.array_equal(aug.to_planes(image), image[:, :, ::-1].transpose(2, 0, 1))


def test_hsv_draws():
    rng = np.random.default_rng(0)
    draws = np.array([aug.draw_hsv(rng, 0.015, 0.7, 0.4) for _ in range(2000)])
    np.testing.assert_allclose(np.abs(draws - 1).max(0), [0.015, 0.7, 0.4], rtol=0.01)
    assert aug.draw_hsv(rng, 0, 0, 0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("flip, column", [(aug.flip_up_down, 2), (aug.flip_left_right, 1)])
def test_flips_move_boxes_with_their_pixels_and_back(flip, column):
    image = np.zeros((10, 20, 3), np.uint8)
    image[1:3, 4:8] = 255
    labels = np.array([[2, 0.3, 0.2, 0.2, 0.2]], np.float32)
    flipped, moved = flip(image, labels)
    height, width = flipped.shape[:2]
    x, y, w, h = moved[0, 1:] * (width, height, width, height)
    rows, columns = np.nonzero(flipped[..., 0])
    np.testing.assert_allclose(
        [x - w / 2, y - h / 2, x + w / 2, y + h / 2],
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
        atol=1e-5,
    )
    assert moved.dtype == np.float32 and moved[0, column] == 1 - labels[0, column]
    again = flip(flipped, moved)
    assert np.array_equal(again[0], image) and np.allclose(again[1], labels)


# --- all of them ------------------------------------------------------------------------------------------------------


def test_mixup_weights_are_near_one_half():
    rng = np.random.default_rng(0)
    draws = np.array([aug.draw_mixup(rng) for _ in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(draws.std() - math.sqrt(1 / (4 * 65))) < 0.003  # of Beta(32, 32)


def test_no_argument_is_changed(noise_image):
    image, other = noise_image(40, 60), noise_image(40, 60, 1)
    labels = np.array([[0, 5, 5, 30, 30], [1, 20, 10, 50, 35]], np.float32)
    polygons = [np.array([[5.0, 5], [30, 5], [30, 30]]), np.zeros((0, 2))]
    inputs = image, other, labels, *polygons
    copies = [array.copy() for array in inputs]
    for array in inputs:
        array.setflags(write=False)  # a change would raise
    letterboxing.letterbox(image, 64, auto=False)
    aug.random_perspective(image, labels, polygons, Warp(angle=5))
    aug.copy_paste(image, labels, polygons, [0])
    aug.mixup(image, labels, other, labels, 0.5)
    aug.adjust_hsv(image, np.array([1.1, 0.9, 1.2]))
    aug.flip_up_down(image, labels)
    tiles = mosaics.mosaic_tiles([(40, 60)] * 4, (32, 32), 32)
    mosaics.mosaic_labels([labels / 60] * 4, [polygons] * 4, [(40, 60)] * 4, tiles, 32)
    warp_mosaic([image] * 4, tiles, aug.warp_matrix(Warp(), (64, 64), (32, 32)), 32)
    assert all(map(np.array_equal, inputs, copies))


def test_every_draw_takes_its_generator_first():
    draws = [function for name, function in {**vars(aug), **vars(mosaics)}.items() if name.startswith("draw_")]
    assert len(draws) == 6
    assert all(next(iter(inspect.signature(draw).parameters)) == "rng" for draw in draws)
