"""Blocks inserted by place: which layers a place names, that nothing else changes, and errors about wrong rows."""

import copy

import numpy as np
import pytest
import torch
from test_registry import small

from models.insert import insert_rows, parse_attention
from models.yolo import Model, layer_strides
from utils.files import ROOT, read_yaml

NARROW = {**read_yaml(ROOT / "models" / "yolov5n.yaml"), "depth_multiple": 0.1, "width_multiple": 0.1}
STRIDES = [2.0, 4.0, 4.0, 8.0, 8.0, 4.0, 4.0, None]  # of the small model


def with_insert(*rows: dict, **changes) -> dict:
    return {**small(**changes), "insert": list(rows)}


def blocks(model: Model, kind: str = "SOCA") -> list[int]:
    return [layer.i for layer in model.model if layer.type.endswith(f".{kind}")]


# --- the same network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "name"), [("yolov5s", "SOCA"), ("yolov5n", "SOCA-n"), ("yolov5m", "SOCA-m")])
def test_soca_yaml_in_three_lines(base, name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {base}.yaml\ninsert:\n  - {{after: P5, module: SOCA, args: [1024]}}\n")
    torch.manual_seed(0)
    short = Model(path)
    torch.manual_seed(0)
    long = Model(f"{name}.yaml")
    assert short.yaml == long.yaml
    assert short.save == long.save
    assert short.yaml_file == "mine.yaml"
    ours, theirs = short.state_dict(), long.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_small_models_strides():
    assert layer_strides(small()) == STRIDES


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["yolov5n", "hub/yolov3-tiny", "hub/yolov5-bifpn", "hub/yolov5-fpn", "hub/yolov5n6"])
def test_blocks_that_do_nothing_change_nothing(name, seed):
    """Identity layers after random layers: the same weights give the same outputs, whatever layers the rows name."""
    d = {**read_yaml(ROOT / "models" / f"{name}.yaml"), "depth_multiple": 0.1, "width_multiple": 0.1}
    count = len(d["backbone"]) + len(d["head"])
    rng = np.random.default_rng(seed)
    chosen = rng.choice(count - 1, rng.integers(1, count), replace=False).tolist()
    rows = [{"after": j, "module": "nn.Identity"} for j in [*chosen, chosen[0]]]  # two after the same layer
    strides = [8.0] * (count - 1) + [None]  # layer numbers need none
    plain, longer = Model(d).eval(), Model(insert_rows(d, rows, strides)).eval()
    assert len(longer.model) == len(plain.model) + len(rows)
    state = longer.state_dict()
    for key, value in zip(state, plain.state_dict().values(), strict=True):
        assert state[key].shape == value.shape
        state[key].copy_(value)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        assert torch.equal(plain(image)[0], longer(image)[0])


def test_relative_rows_stay_relative():
    """YOLOv3's two rows from -2."""
    d = read_yaml(ROOT / "models" / "hub" / "yolov3-tiny.yaml")
    strides = [8.0] * 20 + [None]
    rows = insert_rows(d, [{"after": 15, "module": "SOCA"}, {"after": 14, "module": "SE"}], strides)["head"]
    assert rows[2][2] == "SE"
    assert rows[4][2] == "SOCA"
    assert rows[5] == [-3, 1, "Conv", [128, 1, 1]]  # 16 took 14, now the SE after it: 15; it is 18 itself
    assert rows[-1][0] == [21, 17]


def test_the_given_content_is_left_alone():
    d, rows = small(), [{"after": 2, "module": "SOCA"}]
    before = copy.deepcopy((d, rows))
    expanded = insert_rows(d, rows, STRIDES)
    expanded["head"][0][3].append(7)
    given = with_insert(*rows)
    Model(given, insert=rows)
    assert (d, rows) == before
    assert given == with_insert(*rows)


def test_the_random_numbers_are_those_of_the_written_out_model():
    torch.manual_seed(0)
    short = Model(with_insert({"after": 2, "module": "SOCA"}))
    torch.manual_seed(0)
    long = Model(short.yaml)
    assert all(torch.equal(a, b) for a, b in zip(short.state_dict().values(), long.state_dict().values(), strict=True))


def test_what_is_built_is_a_plain_yaml():
    model = Model({"base": "yolov5n.yaml", "nc": 3, "insert": [{"after": "P3", "module": "SE"}]})
    assert set(model.yaml) == set(read_yaml(ROOT / "models" / "yolov5n.yaml")) | {"ch"}
    assert model.yaml["nc"] == model.model[-1].nc == 3
    assert Model(model.yaml).yaml == model.yaml


# --- places -----------------------------------------------------------------------------------------------------------

PLACES = {  # of yolov5n -> the layers of the blocks, and what Detect takes
    "P3": ([18], [18, 21, 24]),
    "P4": ([21], [17, 21, 24]),
    "P5": ([24], [17, 20, 24]),
    "P3+P4+P5": ([18, 22, 26], [18, 22, 26]),
    "P5 + P3": ([18, 25], [18, 21, 25]),
    "B2": ([3], [18, 21, 24]),
    "B3": ([5], [18, 21, 24]),
    "B4": ([7], [18, 21, 24]),
    "B5": ([10], [18, 21, 24]),
    "backbone": ([10], [18, 21, 24]),
    "SPPF": ([10], [18, 21, 24]),
    "0": ([1], [18, 21, 24]),
    23: ([24], [17, 20, 24]),
    "C3": ([3, 6, 9, 12, 18, 23, 27, 31], [23, 27, 31]),
}


@pytest.mark.parametrize("after", PLACES, ids=str)
def test_places(after):
    layers, detect = PLACES[after]
    model = Model(NARROW, insert=[{"after": after, "module": "SOCA"}])
    assert blocks(model) == layers
    assert model.model[-1].f == detect
    assert model.stride.tolist() == [8, 16, 32]


def test_everything_that_took_the_layer_takes_the_block():
    model = Model(with_insert({"after": 2, "module": "SOCA"}))  # layer 3 took it as -1, Concat by number
    assert model.yaml["backbone"][3] == [-1, 1, "SOCA", []]
    assert model.yaml["backbone"][4] == small()["backbone"][3]
    assert model.yaml["head"][2][0] == [-1, 3]
    assert model.yaml["head"][3][0] == [7, 5]


def test_several_after_one_layer_follow_in_order():
    model = Model(with_insert({"after": 4, "module": "SE"}, {"after": "P3", "module": "SOCA"}))
    assert (blocks(model, "SE"), blocks(model)) == ([5], [6])
    assert model.model[-1].f == [8, 6]


def test_arguments():
    model = Model(with_insert({"after": 3, "module": "SOCA", "args": ["None", 16]}))
    assert model.model[4].conv_du[0].weight.shape == (3, 48, 1, 1)


def test_a_base_upon_a_base(tmp_path):
    """Files beside the file come first, and numbers are those of the base as it is written out."""
    (tmp_path / "a.yaml").write_text("base: yolov5n.yaml\nwidth_multiple: 0.125\ninsert: [{after: B3, module: SE}]\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ninsert: [{after: 5, module: SOCA}]\n")
    model = Model(tmp_path / "b.yaml")
    assert (blocks(model, "SE"), blocks(model)) == ([5], [6])
    assert model.yaml["width_multiple"] == 0.125


def test_a_base_without_rows(tmp_path):
    assert Model({"base": "yolov5n.yaml"}).yaml == Model("yolov5n.yaml").yaml


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        ("none", []),
        ("SOCA@P5", [{"after": "P5", "module": "SOCA"}]),
        ("SE@P3+P4+B5+17", [{"after": "P3+P4+B5+17", "module": "SE"}]),
        ("SE[8]@P5", [{"after": "P5", "module": "SE", "args": [None, 8]}]),
        ("RLNL[2, 4]@P5", [{"after": "P5", "module": "RLNL", "args": [None, 2, 4]}]),
        ("SimAM[1.0e-3]@P5", [{"after": "P5", "module": "SimAM", "args": [None, 0.001]}]),
        ("C3[256, False]@P3", [{"after": "P3", "module": "C3", "args": [256, False]}]),  # which gives any width
        ("SE[]@P3 & SOCA@P5", [{"after": "P3", "module": "SE", "args": [None]}, {"after": "P5", "module": "SOCA"}]),
    ],
)
def test_attention_as_one_word(text, rows):
    assert parse_attention(text) == rows


@pytest.mark.parametrize("text", ["SOCA", "@P5", "SOCA@", "P5", "SE[8@P5", "SE[[8]]@P5", "SE@P5&", "SE[8]"])
def test_attention_that_is_none(text):
    with pytest.raises(ValueError, match=r"attention must be MODULE@PLACE.*such as SOCA@P3\+P4\+P5.*, got"):
        parse_attention(text)


# --- the files of models/places ---------------------------------------------------------------------------------------

READY = {  # base, block, place -> the layers of the blocks, and what Detect takes
    f"yolov5{size}-{block}-{place}": (size, block, *PLACES[place])
    for size in "nsmlx"
    for block in ("SOCA", "SE")
    for place in ("P5", "backbone", "C3")
    if (block, place) != ("SOCA", "P5")  # that is SOCA.yaml and its sisters
}


def test_every_ready_file_is_here():
    assert sorted(p.stem for p in (ROOT / "models" / "places").iterdir()) == sorted(READY)


@pytest.mark.parametrize("name", READY)
def test_ready_files(name, monkeypatch):
    """Built in full size and run, with weights of 0, since drawing 90 million random ones would take seconds."""
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, **_: tensor.data.zero_())
    size, block, layers, detect = READY[name]
    model = Model(ROOT / "models" / "places" / f"{name}.yaml")
    assert blocks(model, block) == layers
    assert model.model[-1].f == detect
    assert model.yaml_file == f"{name}.yaml"
    assert "base" not in model.yaml
    plain = read_yaml(ROOT / "models" / f"yolov5{size}.yaml")
    assert all(model.yaml[key] == plain[key] for key in ("depth_multiple", "width_multiple"))
    assert all(b.isfinite().all() for b in model.buffers())
    with torch.no_grad():
        decoded, raw = model.eval()(torch.rand(1, 3, 64, 64))
    assert decoded.shape == (1, 3 * (64 + 16 + 4), 85)
    assert all(m.isfinite().all() for m in raw)


# --- wrong rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"after": "P5", "module": "SOKA"}, "unknown module 'SOKA'; did you mean 'SOCA'?"),
        ({"after": "P5", "module": None}, "unknown module None"),
        ({"after": "P5", "module": "SOCA"}, "no map of stride 32 goes into Detect; the places are P2, P3"),
        ({"after": "B5", "module": "SOCA"}, "no map of stride 32 is in the backbone; the places are B1, B2, B3"),
        ({"after": "P1", "module": "SOCA"}, "the places are P2, P3; the backbone has B1"),
        ({"after": "C4", "module": "SOCA"}, "the base has no place 'C4'; did you mean 'C3'?"),
        ({"after": "neck", "module": "SOCA"}, "the base has no place 'neck'; `after` must be P3"),
        ({"after": "P3+", "module": "SOCA"}, "the base has no place ''"),
        ({"after": 8, "module": "SOCA"}, "there is no layer 8; the base has layers 0 to 7"),
        ({"after": -1, "module": "SOCA"}, "there is no layer -1"),
        ({"after": 7, "module": "SOCA"}, "no block can stand after layer 7"),
        ({"after": "Detect", "module": "SOCA"}, "no block can stand after layer 7"),
        ({"after": "P3+4", "module": "SOCA"}, "after 'P3+4' names layer 4 twice"),
        ({"after": True, "module": "SOCA"}, "`after` must be P3"),
        ({"after": ["P3"], "module": "SOCA"}, "`after` must be P3"),
        ({"after": "P3", "module": "SOCA", "args": 16}, "args must be a list, got 16"),
        ({"after": "P3"}, "a row is {after: P5, module: SOCA}"),
        ({"module": "SOCA"}, "a row is {after: P5, module: SOCA}"),
        ({"after": "P3", "module": "SOCA", "number": 2}, "a row is {after: P5, module: SOCA}"),
        (["P3", "SOCA"], "a row is {after: P5, module: SOCA}"),
    ],
    ids=str,
)
def test_wrong_rows(row, message):
    with pytest.raises(ValueError) as error:
        insert_rows(small(), [{"after": 0, "module": "SE"}, row], STRIDES, "mine.yaml")
    assert str(error.value).startswith("mine.yaml, insert row 1: ")
    assert message in str(error.value)


@pytest.mark.parametrize("rows", [[], {}, "SOCA@P5", None, 3])
def test_rows_that_are_no_rows(rows):
    with pytest.raises(ValueError, match="model: insert must be a list of rows"):
        insert_rows(small(), rows, STRIDES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: yolov5n.yaml\nhead: []\n", "mine.yaml: a YAML with `base` may also have insert, nc, .*; got head"),
        ("base: 3\n", "mine.yaml: base must name a model YAML, such as yolov5s.yaml, got 3"),
        ("base: mine.yaml\n", "mine.yaml: base mine.yaml is based on itself"),
        ("base: yolov5n.yaml\nnc: many\n", "mine.yaml: nc must be a positive number"),
        ("base: yolov5n.yaml\ninsert: SOCA\n", "mine.yaml: insert must be a list of rows"),
        (
            "base: yolov5n.yaml\ninsert: [{after: P5, module: SOCA, args: [7]}]\n",
            "mine.yaml, head row 14.*SOCA.*states 7",
        ),
    ],
)
def test_wrong_files(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Model(tmp_path / "mine.yaml")


def test_a_base_that_is_not_there(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: yolov5q.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"no such file: 'yolov5q\.yaml'"):
        Model(tmp_path / "mine.yaml")


def test_errors_of_the_base_name_the_base(tmp_path):
    (tmp_path / "a.yaml").write_text((ROOT / "models/yolov5n.yaml").read_text().replace("SPPF", "SPFF"))
    (tmp_path / "b.yaml").write_text("base: a.yaml\ninsert: [{after: P5, module: SOCA}]\n")
    with pytest.raises(ValueError, match=r"backbone row 9 \(layer 9\).*'SPFF'.*'SPPF'"):
        Model(tmp_path / "b.yaml")
