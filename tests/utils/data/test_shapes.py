"""The drawn data set: its labels agree with what is painted, and it is as hard, and as fair, as it claims."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from utils.data import shapes
from utils.data.shapes import DISTRACTOR, NAMES, SIZES, draw_scene, write_dataset
from utils.files import ROOT, read_yaml

SCENES = 400


@pytest.fixture(scope="module")
def scenes():
    """Scenes of the usual sizes: image, labels (n, 5), figures, boxes (n, 4) x1, y1, x2, y2 in pixels."""
    made = []
    for seed in range(SCENES):
        h, w = SIZES[seed % len(SIZES)]
        image, labels, figures = draw_scene(np.random.default_rng(seed), (h, w))
        centre, half = labels[:, 1:3] * (w, h), labels[:, 3:5] * (w, h) / 2
        boxes = np.concatenate([centre - half, centre + half], 1)
        made.append(SimpleNamespace(image=image, labels=labels, figures=figures, boxes=boxes))
    return made


def objects(scene):
    return [f for f in scene.figures if f.kind != DISTRACTOR]


def tree(root):
    """Relative path -> bytes of every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# --- one scene --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(240, 320), (336, 252), (480, 640), (64, 48)])
def test_scene_has_the_size_asked_for(size):
    image, labels, _ = draw_scene(np.random.default_rng(3), size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert labels.shape[1] == 5 and labels.dtype == np.float32


def test_same_generator_same_scene():
    first, again, other = (draw_scene(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_lengths_grow_with_the_image():
    """The longest side of the objects, as a share of the image, is the same at twice the size."""

    def mean_side(size):
        figures = [f for seed in range(30) for f in draw_scene(np.random.default_rng(seed), size)[2]]
        return np.mean([f.longest for f in figures]) / max(size)

    assert mean_side((480, 640)) == pytest.approx(mean_side((240, 320)), rel=0.1)


def test_labels_are_in_range_and_in_the_order_of_the_objects(scenes):
    for scene in scenes:
        h, w = scene.image.shape[:2]
        assert scene.labels[:, 0].tolist() == [f.kind for f in objects(scene)]
        assert (scene.boxes >= -1e-3).all() and (scene.boxes <= np.array([w, h, w, h]) + 1e-3).all()
        assert (scene.labels[:, 3:] > 0).all()


def inside(outline, x, y):
    """Even-odd rule, one edge at a time: whether the points x, y, arrays of one shape, lie inside the polygon."""
    result = np.zeros(x.shape, bool)
    for (x1, y1), (x2, y2) in zip(outline, np.roll(outline, -1, axis=0)):
        if y1 != y2:
            result ^= ((y1 > y) != (y2 > y)) & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return result


def visible_masks(figures, h, w, fine=5):
    """Per figure (h, w): pixels of which at least half belongs to it and that no later figure takes."""
    masks = []
    for figure in figures:
        x1, y1 = np.maximum(np.floor(figure.outline.min(0)).astype(int), 0)
        x2, y2 = np.minimum(np.ceil(figure.outline.max(0)).astype(int), (w, h))
        y, x = np.mgrid[y1 * fine : y2 * fine, x1 * fine : x2 * fine]
        share = inside(figure.outline, (x + 0.5) / fine, (y + 0.5) / fine)
        mask = np.zeros((h, w), bool)
        mask[y1:y2, x1:x2] = share.reshape(y2 - y1, fine, x2 - x1, fine).mean((1, 3)) >= 0.5
        masks = [m & ~mask for m in masks] + [mask]
    return masks


def polygon_area(outline):
    x, y = outline.T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def test_boxes_and_hidden_shares_follow_from_the_polygons(scenes):
    off, count = 0.0, 0
    for scene in scenes[:40]:
        masks = visible_masks(scene.figures, *scene.image.shape[:2])
        boxes = iter(scene.boxes)
        for figure, mask in zip(scene.figures, masks):
            area = polygon_area(figure.outline)
            around = np.linalg.norm(figure.outline - np.roll(figure.outline, 1, axis=0), axis=1).sum()
            assert figure.hidden + figure.visible == pytest.approx(1)
            assert figure.visible == pytest.approx(min(mask.sum() / area, 1), abs=0.2 * around / area)
            if figure.kind == DISTRACTOR:
                continue
            ys, xs = mask.nonzero()
            truth = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            differences = np.abs(next(boxes) - truth)
            assert differences.max() <= 2.01, "a thin tip may end a pixel or two earlier, no more"
            off, count = off + differences.sum(), count + 4
    assert count > 500
    assert off / count < 0.35, "OpenCV fills every sub-pixel that an edge touches, an eighth of a pixel too many"


@pytest.mark.parametrize("kind", range(len(NAMES)))
def test_labels_follow_from_the_painted_pixels(kind, monkeypatch):
    """One light object on black, without anything that hides its edge, against the extent of the light pixels."""
    for name, value in {
        "EMPTY": 0,
        "OBJECTS": (1, 1),
        "LOOSE": (0, 0),
        "OCCLUDERS": (0, 0),
        "CUT": 0,
        "RIM": 0,
    }.items():
        monkeypatch.setattr(shapes, name, value)
    monkeypatch.setattr(shapes, "NAMES", (NAMES[kind],))
    monkeypatch.setattr(shapes, "_background", lambda rng, h, w: np.zeros((h, w, 3), np.uint8))
    monkeypatch.setattr(shapes, "_photograph", lambda rng, image: image)
    monkeypatch.setattr(shapes, "_clear_colour", lambda rng, around: np.full(3, 255, np.float32))
    monkeypatch.setattr(shapes, "GRADIENT", 0)
    monkeypatch.setattr(shapes, "TEXTURE", 0)
    for seed in range(10):
        image, labels, _ = draw_scene(np.random.default_rng(seed), (200, 300))
        ys, xs = (image[..., 0] >= 128).nonzero()
        x1, y1, x2, y2 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        truth = [(x1 + x2) / 2 / 300, (y1 + y2) / 2 / 200, (x2 - x1) / 300, (y2 - y1) / 200]
        assert labels[0, 1:] == pytest.approx(truth, abs=1e-6)


# corners, and how many of them point inwards
@pytest.mark.parametrize(
    "name, corners, inward",
    [("circle", 60, 0), ("triangle", 3, 0), ("rectangle", 4, 0), ("star", 10, 5)],
)
def test_outlines_have_the_corners_of_their_class(name, corners, inward):
    rng = np.random.default_rng(0)
    for _ in range(20):
        outline = shapes._view_outline(rng, shapes._class_outline(rng, NAMES.index(name)), 100.0)
        back, ahead = outline - np.roll(outline, 1, 0), np.roll(outline, -1, 0) - outline
        turn = np.sign(back[:, 0] * ahead[:, 1] - back[:, 1] * ahead[:, 0])
        assert len(outline) == corners
        assert min((turn > 0).sum(), (turn < 0).sum()) == inward
        assert np.ptp(outline, axis=0).max() == pytest.approx(100)


# --- how hard it is ---------------------------------------------------------------------------------------------------


def test_a_fair_share_is_hidden_and_never_too_much(scenes):
    hidden = np.array([f.hidden for scene in scenes for f in objects(scene)])
    assert (hidden >= 0.1).mean() >= 0.2
    assert hidden.max() <= shapes.HIDDEN[1]
    beyond = [(b < 0.5).any() or (b[2:] > np.array(s.image.shape[1::-1]) - 0.5).any() for s in scenes for b in s.boxes]
    assert 0.05 < np.mean(beyond) < 0.3, "some are cut by the border"


def test_sizes_span_a_factor_of_ten(scenes):
    sides = np.array([max(b[2:] - b[:2]) * 320 / max(s.image.shape) for s in scenes for b in s.boxes])
    assert sides.max() / sides.min() >= 10
    assert sides.min() >= 17
    assert 50 < np.median(sides) < 100


def test_classes_are_balanced_and_some_scenes_are_empty(scenes):
    kinds = np.concatenate([s.labels[:, 0] for s in scenes]).astype(int)
    counts = np.bincount(kinds, minlength=len(NAMES))
    assert counts.min() > 0.75 * counts.max()
    assert 0 < sum(len(s.labels) == 0 for s in scenes) < 0.06 * SCENES


def test_colour_does_not_tell_the_class(scenes):
    """Nearest mean colour, learnt from some scenes' boxes, is near chance (0.2) on those of the others."""

    def colours(part):
        x = [s.image[int(y1) : int(y2), int(x1) : int(x2)].mean((0, 1)) for s in part for x1, y1, x2, y2 in s.boxes]
        return np.array(x), np.concatenate([s.labels[:, 0] for s in part])

    (x, y), (test_x, test_y) = colours(scenes[: SCENES // 2]), colours(scenes[SCENES // 2 :])
    means = np.array([x[y == k].mean(0) for k in range(len(NAMES))])
    guess = np.linalg.norm(test_x[:, None] - means, axis=2).argmin(1)
    assert (guess == test_y).mean() < 0.6, "a star lets more of the ground into its box, which tells it a little"


def test_figures_stand_out_from_what_was_there():
    """The colour chosen keeps its distance from all but one in twenty of the colours around, where it can."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        around = np.clip(rng.uniform(0, 255, 3) + rng.normal(0, 20, (64, 3)), 0, 255).astype(np.uint8)
        colour = shapes._clear_colour(rng, around)
        both = np.concatenate([colour[None], around]).astype(np.float32)[None] / 255
        lab = cv2.cvtColor(both, cv2.COLOR_BGR2LAB)[0]
        distance = np.linalg.norm(lab[1:] - lab[0], axis=1)
        assert (distance < shapes.CONTRAST).sum() <= 3


# --- the set ----------------------------------------------------------------------------------------------------------

SMALL = {"train": 3, "val": 2}


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_dataset(tmp_path / name, SMALL, seed)
    a, b, c = (tree(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == set(c) and not any(a[name] == c[name] for name in a if name.endswith(".jpg"))
    assert a["images/train/000001.jpg"] != a["images/val/000001.jpg"]


def test_more_images_leave_the_first_ones_as_they_are(tmp_path):
    write_dataset(tmp_path / "few", SMALL)
    write_dataset(tmp_path / "more", {"train": 5, "val": 2})
    few, more = tree(tmp_path / "few"), tree(tmp_path / "more")
    assert all(more[name] == few[name] for name in few if name != shapes.NOTE)


def test_files_hold_the_scenes(tmp_path):
    write_dataset(tmp_path / "set", {"val": 8})
    for i in range(1, 9):
        image = cv2.imread(str(tmp_path / f"set/images/val/{i:06}.jpg"))
        text = (tmp_path / f"set/labels/val/{i:06}.txt").read_text()
        assert image.shape[:2] in SIZES
        for line in text.splitlines():
            kind, *box = line.split()
            assert int(kind) in range(len(NAMES)) and len(box) == 4
            assert all(0 < float(x) <= 1 and len(x.replace("0.", "").lstrip("0")) <= 6 for x in box)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail_at_the_third(root, seed, split, index):
        if index == 3:
            raise OSError("disk full")
        write_pair(root, seed, split, index)

    write_pair = shapes._write_pair
    monkeypatch.setattr(shapes, "_write_pair", fail_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "set", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_faster_process_wins_without_harm(tmp_path, monkeypatch):
    """While the first process draws, a second one starts, draws the same set and finishes."""

    def with_a_rival(root, seed, split, index):
        monkeypatch.setattr(shapes, "_write_pair", write_pair)
        assert not (tmp_path / "set").exists(), "it appears only when it is whole"
        write_dataset(tmp_path / "set", SMALL)
        write_pair(root, seed, split, index)

    write_pair = shapes._write_pair
    write_dataset(tmp_path / "alone", SMALL)
    monkeypatch.setattr(shapes, "_write_pair", with_a_rival)
    write_dataset(tmp_path / "set", SMALL)
    assert tree(tmp_path / "set") == tree(tmp_path / "alone")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "set"]


def test_a_set_in_place_is_left_alone(tmp_path, monkeypatch):
    write_dataset(tmp_path / "set", SMALL)
    (tmp_path / "set" / "labels" / "train.cache").write_text("made by a reader")
    monkeypatch.setattr(shapes, "_write_pair", lambda *job: pytest.fail("drawn again"))
    write_dataset(tmp_path / "set", SMALL)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    write_dataset(tmp_path / "set", SMALL)
    assert len(list((tmp_path / "set/images/train").iterdir())) == 3


def spoil_with_another_file(root):
    root.mkdir()
    (root / "notes.txt").write_text("mine")


def spoil_with_a_file_in_its_place(root):
    root.write_text("mine")


def spoil_with_another_seed(root):
    write_dataset(root, SMALL, seed=7)


def spoil_by_losing_an_image(root):
    write_dataset(root, SMALL)
    (root / "images/val/000002.jpg").unlink()


@pytest.mark.parametrize(
    "spoil, says",
    [
        (spoil_with_another_file, "holds something else"),
        (spoil_with_a_file_in_its_place, "holds something else"),
        (spoil_with_another_seed, "seed 7"),
        (spoil_by_losing_an_image, "not all of them"),
    ],
)
def test_a_place_that_is_taken_is_named_and_kept(spoil, says, tmp_path):
    spoil(tmp_path / "set")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=says):
        write_dataset(tmp_path / "set", SMALL)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("splits", [{}, {"train": -1}])
def test_splits_must_make_sense(splits, tmp_path):
    with pytest.raises(ValueError, match="splits must name"):
        write_dataset(tmp_path / "set", splits)


# --- what goes with it ------------------------------------------------------------------------------------------------


def test_yaml_names_the_same_classes_and_splits():
    data = read_yaml(ROOT / "data" / "shapes.yaml")
    assert data["draw"] == "shapes" and data["path"] == "data/shapes"
    assert data["nc"] == len(NAMES) and data["names"] == list(NAMES)
    assert {split: data[split] for split in shapes.COUNTS} == {split: f"images/{split}" for split in shapes.COUNTS}


@pytest.mark.parametrize("name", ["shapes_1.jpg", "shapes_2.jpg"])
def test_example_images_are_there_and_small(name):
    file = ROOT / "data" / "images" / name
    assert file.stat().st_size < 150_000
    assert max(cv2.imread(str(file)).shape) == 640
