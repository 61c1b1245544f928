import math

import pytest

from utils.files import ROOT
from utils.training.hyperparameters import (
    CHOICES,
    RANGES,
    accumulation,
    check_hyp,
    choose_hyp,
    load_hyp,
    scale_hyp,
    scale_weight_decay,
)

HYPS = ROOT / "data/hyps"
FILES = ("scratch-low", "scratch-med", "scratch-high", "VOC", "Objects365")

# v6.1's five files, column by column as in FILES; None: the key is absent
VALUES = {
    "lr0": (0.01, 0.01, 0.01, 0.0033, 0.00258),
    "lrf": (0.01, 0.1, 0.1, 0.15184, 0.17),
    "momentum": (0.937, 0.937, 0.937, 0.74747, 0.779),
    "weight_decay": (0.0005, 0.0005, 0.0005, 0.00025, 0.00058),
    "warmup_epochs": (3.0, 3.0, 3.0, 3.4278, 1.33),
    "warmup_momentum": (0.8, 0.8, 0.8, 0.59032, 0.86),
    "warmup_bias_lr": (0.1, 0.1, 0.1, 0.18742, 0.0711),
    "box": (0.05, 0.05, 0.05, 0.02, 0.0539),
    "cls": (0.5, 0.3, 0.3, 0.21563, 0.299),
    "cls_pw": (1.0, 1.0, 1.0, 0.5, 0.825),
    "obj": (1.0, 0.7, 0.7, 0.50843, 0.632),
    "obj_pw": (1.0, 1.0, 1.0, 0.6729, 1.0),
    "iou_t": (0.2, 0.2, 0.2, 0.2, 0.2),
    "anchor_t": (4.0, 4.0, 4.0, 3.4172, 3.44),
    "anchors": (None, None, None, 3.3556, 3.2),
    "fl_gamma": (0.0, 0.0, 0.0, 0.0, 0.0),
    "hsv_h": (0.015, 0.015, 0.015, 0.01032, 0.0188),
    "hsv_s": (0.7, 0.7, 0.7, 0.5562, 0.704),
    "hsv_v": (0.4, 0.4, 0.4, 0.28255, 0.36),
    "degrees": (0.0, 0.0, 0.0, 0.0, 0.0),
    "translate": (0.1, 0.1, 0.1, 0.04575, 0.0902),
    "scale": (0.5, 0.9, 0.9, 0.73711, 0.491),
    "shear": (0.0, 0.0, 0.0, 0.0, 0.0),
    "perspective": (0.0, 0.0, 0.0, 0.0, 0.0),
    "flipud": (0.0, 0.0, 0.0, 0.0, 0.0),
    "fliplr": (0.5, 0.5, 0.5, 0.5, 0.5),
    "mosaic": (1.0, 1.0, 1.0, 0.87158, 1.0),
    "mixup": (0.0, 0.1, 0.1, 0.04294, 0.0),
    "copy_paste": (0.0, 0.0, 0.1, 0.0, 0.0),
}


@pytest.fixture
def edited(tmp_path):
    """`edited(old, new)`: a copy of the default file with one text replaced."""

    def edit(old: str, new: str):
        text = (HYPS / "hyp.scratch-low.yaml").read_text()
        assert text.count(old) == 1
        path = tmp_path / "hyp.yaml"
        path.write_text(text.replace(old, new))
        return path

    return edit


@pytest.mark.parametrize("column, name", list(enumerate(FILES)))
def test_files_hold_the_published_values(column, name):
    hyp = load_hyp(HYPS / f"hyp.{name}.yaml")
    expected = {key: row[column] for key, row in VALUES.items() if row[column] is not None}
    assert hyp == expected
    # the order is that of evolve.csv; VOC keeps its anchors at the end
    order = sorted(expected, key=lambda key: (name == "VOC" and key == "anchors", list(VALUES).index(key)))
    assert list(hyp) == order


def test_ranges_follow_the_order_of_the_files():
    assert list(RANGES)[: len(VALUES)] == list(VALUES)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("lr0: 0.01 ", "#", r"hyp.yaml: missing key 'lr0'"),
        ("mosaic: 1.0", "mosiac: 1.0", r"hyp.yaml:\d+: unknown key 'mosiac'; did you mean 'mosaic'\?"),
        ("mosaic: 1.0", "mosaic: 1.0\nanchor: 3", r"hyp.yaml:\d+: unknown key 'anchor'; did you mean 'anchors'\?"),
        ("lr0: 0.01 ", "lr0: 0.0 ", r"hyp.yaml:3: lr0 must be above 0, got 0.0"),
        ("lr0: 0.01 ", "lr0: -1 ", r"hyp.yaml:3: lr0 must be above 0, got -1"),
        ("lr0: 0.01 ", "lr0: '0.01' ", r"hyp.yaml:3: lr0 must be a number, got the text '0.01'; write it without"),
        ("lr0: 0.01 ", "lr0: 1e999 ", r"hyp.yaml:3: lr0 must be a number, got the text '1e999'"),
        ("lr0: 0.01 ", "lr0: fast ", r"hyp.yaml:3: lr0 must be a number, got the text 'fast'$"),
        ("lr0: 0.01 ", "lr0: ", r"hyp.yaml:3: lr0 must be a number, got None"),
        ("lr0: 0.01 ", "lr0: [0.01, 0.02] ", r"hyp.yaml:3: lr0 must be a number, got \[0.01, 0.02\]"),
        ("lr0: 0.01 ", "lr0: true ", r"hyp.yaml:3: lr0 must be a number, got True"),
        ("lr0: 0.01 ", "lr0: .nan ", r"hyp.yaml:3: lr0 must be above 0, got nan"),
        ("lr0: 0.01 ", "lr0: .inf ", r"hyp.yaml:3: lr0 must be above 0, got inf"),
        ("fliplr: 0.5", "fliplr: 50", r"fliplr must be between 0 and 1, got 50"),
        ("momentum: 0.937", "momentum: 1", r"momentum must be at least 0 and below 1, got 1"),
        ("anchor_t: 4.0", "anchor_t: 1", r"anchor_t must be above 1, got 1"),
        ("mosaic: 1.0", "mosaic: [1.0", r"hyp.yaml:\d+: not valid YAML"),
        (
            "mosaic: 1.0",
            "mosaic: 1.0\noptimizer: Adamw",
            r"hyp.yaml:\d+: optimizer must be SGD, Adam or AdamW, got Adamw",
        ),
        ("mosaic: 1.0", "mosaic: 1.0\noptimizer: 3", r"optimizer must be SGD, Adam or AdamW, got 3"),
        ("mosaic: 1.0", "mosaic: 1.0\ncos_lr: 1", r"cos_lr must be true or false, got 1$"),
        ("mosaic: 1.0", "mosaic: 1.0\nscale_cls: text", r"scale_cls must be true or false, got text"),
        ("mosaic: 1.0", "mosaic: 1.0\noptimiser: SGD", r"unknown key 'optimiser'; did you mean 'optimizer'\?"),
        ("mosaic: 1.0", "mosaic: 1.0\nema_shard: 0.2", r"unknown key 'ema_shard'; did you mean 'ema_share'\?"),
        ("lr0: 0.01", "LR0: 0.01", r"unknown key 'LR0'; did you mean 'lr0'\?"),
        ("mosaic: 1.0", "mosaic: 1.0\nema_share: 0", r"ema_share must be above 0 and at most 1, got 0"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(edited, old, new, message):
    with pytest.raises(ValueError, match=message):
        load_hyp(edited(old, new))


def test_all_problems_are_told_at_once(edited):
    with pytest.raises(ValueError) as error:
        load_hyp(edited("scale: 0.5", "scael: 0.5\nhsv_h: 7"))
    assert len(str(error.value).splitlines()) == 3  # scale is missing, scael is unknown, hsv_h is out of range


def test_empty_and_absent_files(tmp_path):
    path = tmp_path / "hyp.yaml"
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="empty"):
        load_hyp(path)
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_hyp(tmp_path / "none.yaml")


def test_label_smoothing_and_anchors_are_optional(edited):
    path = edited("mosaic: 1.0", "mosaic: 1.0\nlabel_smoothing: 0.1\nanchors: 3")
    assert load_hyp(path)["anchors"] == 3


@pytest.mark.parametrize("text", ["1e-2", "1E-2", "1.0e-2", "10e-3", "+1e-2", ".1e-1"])
def test_numbers_with_an_exponent(edited, text):
    """YAML 1.1 reads those without a point or without a sign as text."""
    assert load_hyp(edited("lr0: 0.01 ", f"lr0: {text} "))["lr0"] == 0.01


def test_keys_of_other_programs_are_left_out(edited, caplog):
    hyp = load_hyp(edited("mosaic: 1.0", "mosaic: 1.0\npaste_in: 0.15\nloss_ota: 1\n7: 8"))
    assert hyp == load_hyp(HYPS / "hyp.scratch-low.yaml")
    assert [key for key in ("paste_in", "loss_ota", "7") if f"unknown key '{key}' is ignored" in caplog.text] == [
        "paste_in",
        "loss_ota",
        "7",
    ]
    assert "hyp.yaml:29: unknown key 'paste_in'" in caplog.text


@pytest.mark.parametrize("line", ["copy_paste: 0.0", "mixup: 0.0", "perspective: 0.0", "iou_t: 0.20"])
def test_keys_of_later_releases_and_those_that_nothing_reads_may_be_missing(edited, line):
    key, value = line.split(": ")
    path = edited(line, "")
    assert f"\n{key}:" not in path.read_text()
    assert load_hyp(path)[key] == float(value)


def test_a_full_turn_in_either_direction_is_a_rotation(edited):
    assert load_hyp(edited("degrees: 0.0", "degrees: 360.0"))["degrees"] == 360
    with pytest.raises(ValueError, match="degrees must be between 0 and 360, got 361"):
        load_hyp(edited("degrees: 0.0", "degrees: 361"))


def test_a_dict_is_checked_the_same_way():
    hyp = load_hyp(HYPS / "hyp.scratch-low.yaml")
    check_hyp(hyp)
    with pytest.raises(ValueError, match=r"^hyp: mixup must be between 0 and 1, got 2$"):
        check_hyp({**hyp, "mixup": 2})


# --- which file a run gets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, epochs, batch_size, optimizer, name",
    [
        (118_287, 300, 64, None, "scratch-low"),  # COCO as v6.1 trains it
        (118_287, 1, 16, None, "scratch-low"),
        (205, 15, 16, None, "short"),  # 13 batches an epoch, the last one not full
        (205, 300, 16, None, "scratch-low"),  # 3900 iterations
        (128, 3, 16, None, "short"),
        (1600, 30, 16, None, "scratch-low"),  # 3000 exactly
        (1584, 30, 16, None, "short"),  # 2970
        (1585, 30, 16, None, "scratch-low"),  # a hundredth batch of one image
        (205, 15, 16, "AdamW", "short"),
        (205, 15, 16, "SGD", "scratch-low"),  # the short recipe's rates would be wrong
        (205, 0, 16, None, "short"),
    ],
)
def test_the_file_of_a_run_that_names_none(images, epochs, batch_size, optimizer, name):
    path, reason = choose_hyp(images, epochs, batch_size, optimizer)
    assert path == HYPS / f"hyp.{name}.yaml" and path.is_file()
    assert f"{-(-images // batch_size) * epochs:,} iterations" in reason


def test_the_recipes_of_this_project_are_whole_and_right():
    short, demo = (load_hyp(HYPS / f"hyp.{name}.yaml") for name in ("short", "demo"))
    assert {key: short[key] for key in CHOICES} == {"optimizer": "AdamW", "cos_lr": True, "scale_cls": False}
    assert not {*CHOICES, "ema_share"} & set(demo)


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_scaling_by_hand():
    hyp = {"box": 0.06, "cls": 0.8, "obj": 1.0, "lr0": 0.01}
    scaled = scale_hyp(hyp, nl=4, nc=20, image_size=1280, label_smoothing=0.1)
    assert scaled == pytest.approx({"box": 0.045, "cls": 0.15, "obj": 3.0, "lr0": 0.01, "label_smoothing": 0.1})
    assert hyp == {"box": 0.06, "cls": 0.8, "obj": 1.0, "lr0": 0.01}  # untouched


@pytest.mark.parametrize(
    "batch, batches",
    [
        (1, 64),
        (16, 4),
        (24, 3),  # 2.67
        (64, 1),
        (128, 1),  # never 0
        (25.6, 2),  # 2.5 rounds to even
    ],
)
def test_accumulation(batch, batches):
    assert accumulation(batch) == batches


def test_scaling_as_recorded(parity):
    for case in parity("schedule")["scaling"]["cases"]:
        scaled = scale_hyp({"box": 0.05, "obj": 1.0, "cls": 0.5}, case["levels"], case["nc"], case["imgsz"])
        assert all(math.isclose(scaled[key], case[key], rel_tol=1e-8) for key in ("box", "obj", "cls"))
        assert accumulation(case["batch_size"]) == case["accumulate"]
        assert scale_weight_decay(0.0005, case["batch_size"]) == pytest.approx(case["weight_decay"], rel=1e-8)


def test_a_class_weight_for_any_number_of_classes():
    hyp = {"box": 0.05, "cls": 0.3, "obj": 1.0, "scale_cls": False}
    assert [scale_hyp(hyp, 3, nc, 640)["cls"] for nc in (1, 3, 80)] == pytest.approx([0.3] * 3)
    assert scale_hyp({**hyp, "scale_cls": True}, 3, 8, 640)["cls"] == pytest.approx(0.03)
