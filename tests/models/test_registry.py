"""The grammar of model YAMLs: rules, rows, and errors about wrong rows."""

import copy

import pytest
import torch
from torch import nn

from models import common, registry
from models.backend import load_model
from models.registry import Row, convolves, keeps_channels, lookup, register, widens, widens_repeating
from models.yolo import Model, parse_model
from utils import checkpoint
from utils.files import ROOT

SMALL = {
    "nc": 2,
    "depth_multiple": 0.5,
    "width_multiple": 0.5,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Conv", [32, 3, 2]],  # 0  stride 2
        [-1, 1, "Conv", [64, 3, 2]],  # 1  4
        [-1, 2, "C3", [64]],  # 2
        [-1, 1, "Conv", [96, 3, 2]],  # 3  8
    ],
    "head": [
        [-1, 1, "Conv", [64, 1, 1]],  # 4
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],  # 5  4
        [[-1, 2], 1, "Concat", [1]],  # 6
        [[6, 4], 1, "Detect", ["nc", "anchors"]],  # 7
    ],
}


def small(**changes) -> dict:
    """The small model with changes; `head__2=row` puts a row in the place of row 2 of the head."""
    d = copy.deepcopy(SMALL)
    for key, value in changes.items():
        if "__" in key:
            section, k = key.split("__")
            d[section][int(k)] = value
        else:
            d[key] = value
    return d


def with_row(row: list) -> dict:
    """The small model with a row between the backbone (48 channels) and the head."""
    d = copy.deepcopy(SMALL)
    d["backbone"].append(row)
    d["head"][2][0], d["head"][3][0] = [-1, 2], [7, 5]
    return d


@pytest.fixture
def own_table(monkeypatch):
    """Registrations of a test vanish with it."""
    monkeypatch.setattr(registry, "_BLOCKS", dict(registry._BLOCKS))


def test_the_small_model():
    model = Model(small())
    assert model.stride.tolist() == [4, 8]
    assert [m.type.split(".")[-1] for m in model.model] == "Conv Conv C3 Conv Conv Upsample Concat Detect".split()
    assert [m.weight.shape[1] for m in model.model[-1].m] == [32 + 32, 32]
    assert model.save == [2, 4, 6]
    assert len(model.model[2].m) == 1  # two blocks at half the depth


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "row", "expected"),
    [
        (widens, Row([3], 1, [64, 5], 0.5, 255), ([3, 32, 5], 32, 1, 1)),
        (widens, Row([3], 2, [20], 0.25, 255), ([3, 8], 8, 2, 1)),  # 5 rounded up to 8
        (widens, Row([3], 1, [255], 0.5, 255), ([3, 255], 255, 1, 1)),  # a detection map's width is never scaled
        (widens, Row([3], 1, [100], 1.25, 255), ([3, 128], 128, 1, 1)),
        (convolves, Row([3], 1, [64, 6, 2], 0.5, 255), ([3, 32, 6, 2], 32, 1, 2)),
        (convolves, Row([3], 1, [64, 3, [4, 1]], 0.5, 255), ([3, 32, 3, [4, 1]], 32, 1, 4)),
        (convolves, Row([3], 1, [64, 3], 0.5, 255), ([3, 32, 3], 32, 1, 1)),
        (widens_repeating, Row([64], 3, [128, False], 0.5, 255), ([64, 64, 3, False], 64, 1, 1)),
        (keeps_channels, Row([512], 1, [1024], 0.5, 255), ([512], 512, 1, 1)),
        (keeps_channels, Row([512], 1, [1024, 4], 0.5, 255), ([512, 4], 512, 1, 1)),
        (keeps_channels, Row([512], 1, [], 0.5, 255), ([512], 512, 1, 1)),
        (registry.joins, Row([64, 128, 3], 1, [1], 0.5, 255, True), ([1], 195, 1, 1)),
        (registry.passes, Row([64], 2, [[0, 1, 0, 1]], 0.5, 255), ([[0, 1, 0, 1]], 64, 2, 1)),
        (registry.upsamples, Row([64], 1, [None, 2, "nearest"], 0.5, 255), ([None, 2, "nearest"], 64, 1, 0.5)),
        (registry.upsamples_by_convolution, Row([64], 1, [256, 2, 2], 0.5, 255), ([64, 128, 2, 2], 128, 1, 0.5)),
        (registry.pools, Row([64], 1, [2, 1, 0], 0.5, 255), ([2, 1, 0], 64, 1, 1)),
        (registry.pools, Row([64], 1, [3], 0.5, 255), ([3], 64, 1, 3)),
        (registry.pools, Row([64], 1, [3, None, 1], 0.5, 255), ([3, None, 1], 64, 1, 3)),
        (registry.normalises, Row([64], 1, [7], 0.5, 255), ([64], 64, 1, 1)),
        (registry.contracts, Row([16], 1, [2], 0.5, 255), ([2], 64, 1, 2)),
        (registry.expands, Row([64], 1, [2], 0.5, 255), ([2], 16, 1, 0.5)),
        (
            registry.detects,
            Row([64, 128], 1, [2, [[1, 2], [3, 4]]], 0.5, 7, True),
            ([2, [[1, 2], [3, 4]], [64, 128]], 7, 1, None),
        ),
        (registry.detects, Row([64, 128], 1, [2, 2], 0.5, 14, True), ([2, [[0, 1, 2, 3]] * 2, [64, 128]], 14, 1, None)),
    ],
)
def test_rules(rule, row, expected):
    before = copy.deepcopy(row)
    assert rule(row) == expected
    assert row == before


def test_depth_rounds_half_to_even():
    for number, depth, expected in [(3, 0.5, 2), (5, 0.5, 2), (3, 0.33, 1), (9, 0.33, 3), (1, 0.1, 1), (2, 0.1, 1)]:
        model = Model(with_row([-1, number, "C3", [96]]) | {"depth_multiple": depth})
        assert len(model.model[4].m) == expected


# --- one class, one decorator -----------------------------------------------------------------------------------------


def test_a_block_of_your_own(own_table):
    @register(keeps_channels)
    class Loudness(nn.Module):
        def __init__(self, channels, start=1.0):
            super().__init__()
            self.gain = nn.Parameter(torch.full((channels, 1, 1), start))

        def forward(self, x):
            return x * self.gain

    model = Model(with_row([-1, 1, "Loudness", [96, 0.25]]))
    assert model.model[4].gain.shape == (48, 1, 1)
    assert (model.model[4].gain == 0.25).all()
    assert model.model[4].type.endswith("Loudness")
    raw = model.train()(torch.rand(2, 3, 64, 64))
    assert [tuple(m.shape) for m in raw] == [(2, 2, 16, 16, 7), (2, 2, 8, 8, 7)]
    sum(m.square().sum() for m in raw).backward()
    assert model.model[4].gain.grad.abs().min() > 0


def test_a_name_is_taken_once(own_table):
    with pytest.raises(ValueError, match=r"'Conv' is taken by .*models\.common\.Conv.*choose another"):
        register(widens)(type("Conv", (nn.Module,), {}))
    with pytest.raises(ValueError, match=r"'nn.Upsample' is taken"):
        register(widens, "nn.Upsample")(nn.Identity)
    assert lookup("Conv")[0] is common.Conv


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SOKA", "did you mean 'SOCA'?"),
        ("conv", "did you mean 'Conv'?"),
        ("SPFF", "did you mean 'SPPF'?"),
        ("nn.Upsampel", "did you mean 'nn.Upsample'?"),
        ("Bottelneck", "did you mean 'Bottleneck'?"),
        ("soca", "did you mean 'SOCA'?"),
        ("se", "did you mean 'SE'?"),
        ("simam_module", "did you mean 'SimAM'?"),
        ("CA", "did you mean 'CoordAttention'?"),
        ("CA_Block", "did you mean 'CoordAttention'?"),
        ("CoordAtt", "did you mean 'CoordAttention'?"),
        ("SELayer", "did you mean 'SE'?"),
        ("SEAttention", "did you mean 'SE'?"),
        ("SqueezeExcitation", "did you mean 'SE'?"),
        ("CBAMBlock", "did you mean 'CBAM'?"),
        ("eca_layer", "did you mean 'ECA'?"),
        ("SecondOrderChannelAttention", "did you mean 'SOCA'?"),
        ("NONLocalBlock2D", "did you mean 'RLNL'?"),
        ("FcaNet", "did you mean 'FCA'?"),
        ("SRMLayer", "did you mean 'SRM'?"),
        ("GSoPBlock", "did you mean 'GSoP'?"),
        ("MomentChannelAttention", "did you mean 'MCA'?"),
        ("Upsample", "did you mean 'nn.Upsample'?"),
        ("torch.nn.Upsample", "did you mean 'nn.Upsample'?"),
        ("EMA", "known modules: "),  # another block, not a slip of ECA
        ("ShuffleAttention", "known modules: "),
        ("zzz", "known modules: "),
        ("__import__('os').getcwd()", ""),  # looked up, never evaluated
    ],
)
def test_unknown_modules(name, hint):
    with pytest.raises(ValueError, match="unknown module") as error:
        Model(with_row([-1, 1, name, [96]]))
    assert hint in str(error.value)
    assert repr(name) in str(error.value)
    assert "backbone row 4" in str(error.value)


def test_errors_name_file_section_and_row(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((ROOT / "models" / "SOCA.yaml").read_text().replace("SOCA, [1024]", "SOKA, [1024]"))
    with pytest.raises(ValueError, match=r"mine\.yaml, head row 14 \(layer 24\).*unknown module 'SOKA'.*'SOCA'"):
        Model(path)


# --- SOCA rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "hidden"),
    [
        ([], 6),  # the width that comes in is 48
        ([96], 6),  # as the convolution's row states it: before the multiple
        ([96, 8], 6),
        ([96, 16], 3),
        ([90], 6),  # 45, rounded up to 48 like a convolution's
        (["None", 16], 3),  # whatever comes in
        ([None], 6),
    ],
)
def test_soca_rows(args, hidden):
    model = Model(with_row([-1, 1, "SOCA", args]))
    assert model.model[4].conv_du[0].weight.shape == (hidden, 48, 1, 1)


@pytest.mark.parametrize("args", [[48], [1024], [1024, 8], [8]])
def test_soca_of_another_width(args):
    with pytest.raises(ValueError, match="backbone row 4") as error:
        Model(with_row([-1, 1, "SOCA", args]))
    for part in ("SOCA", "takes the 48 channels that come in", f"states {args[0]}", "write [96] or []"):
        assert part in str(error.value)


@pytest.mark.parametrize("args", [["many"], [[96]], [96, 8, 3]])
def test_soca_with_wrong_arguments(args):
    with pytest.raises(ValueError, match=r"model, backbone row 4 \(layer 4\): SOCA"):
        Model(with_row([-1, 1, "SOCA", args]))


# --- wrong rows -------------------------------------------------------------------------------------------------------

WRONG = {  # section, row number, row -> what is said
    "three entries": ("head", 2, [[-1, 2], 1, "Concat"], "a row is [from, number, module, args], got"),
    "not a list": ("backbone", 1, "Conv", "a row is [from, number, module, args], got 'Conv'"),
    "from a word": (
        "head",
        0,
        ["last", 1, "Conv", [64]],
        "`from` must be a layer number or a list of them, got 'last'",
    ),
    "from nothing": ("head", 2, [[], 1, "Concat", [1]], "`from` must be"),
    "from a later layer": ("head", 2, [[-1, 9], 1, "Concat", [1]], "names layer 9, but only layers 0 to 5 come"),
    "from itself": ("head", 2, [[-1, 6], 1, "Concat", [1]], "names layer 6, but only layers 0 to 5 come"),
    "from before the first": ("head", 2, [[-1, -7], 1, "Concat", [1]], "names layer -7, but only layers 0 to 5 come"),
    "the first from anything": ("backbone", 0, [3, 1, "Conv", [32, 3, 2]], "names layer 3, but no layer comes before"),
    "no repeats": ("backbone", 2, [-1, 0, "C3", [64]], "a whole number from 1 to 1000, got 0"),
    "repeats a word": ("backbone", 2, [-1, "n", "C3", [64]], "a whole number from 1 to 1000, got 'n'"),
    "args no list": ("backbone", 2, [-1, 1, "C3", 64], "args must be a list, got 64"),
    "args empty": ("backbone", 2, [-1, 1, "C3", []], "C3[]: the first argument must be a number of channels"),
    "too many args": ("backbone", 1, [-1, 1, "Conv", [64, 3, 2, 1, 1, True, 5, 6]], "Conv[64, 3, 2, 1, 1, True, 5, 6]"),
    "unknown word": ("backbone", 1, [-1, 1, "Conv", ["width"]], "the first argument must be a number of channels"),
    "odd groups": ("backbone", 1, [-1, 1, "Conv", [64, 3, 2, None, 7]], "divisible by groups"),
    "copies that do not fit": (
        "backbone",
        3,
        [-1, 4, "Conv", [96, 3, 2]],
        "Conv from -1: 2 copies in series",
    ),
    "one map for a list": ("head", 2, [-1, 1, "Concat", [1]], "Concat[1]: takes a list of maps"),
    "a list for one map": ("head", 0, [[-1, 2], 1, "Conv", [64]], "Conv[64]: takes one map"),
    "one map for Detect": ("head", 3, [6, 1, "Detect", ["nc", "anchors"]], "takes a list of maps"),
    "stride zero": ("backbone", 1, [-1, 1, "Conv", [64, 3, 0]], "a stride or scale must be a positive number, got 0"),
    "stride a word": ("backbone", 1, [-1, 1, "Conv", [64, 3, "two"]], "must be a positive number, got 'two'"),
    "stride too large": (
        "backbone",
        1,
        [-1, 1000, "nn.MaxPool2d", [2]],
        "and 65536 pixels, got ",
    ),
    "stride too small": ("head", 1, [-1, 99, "nn.Upsample", [None, 2]], "between 1 / 65536 and 65536 pixels, got 7.1"),
    "an unknown mode": ("head", 1, [-1, 1, "nn.Upsample", [None, 2, "linear"]], "the mode must be nearest"),
    "joined along rows": ("head", 2, [[-1, 2], 1, "Concat", [2]], "dimension 1: write"),
    "padded too much": ("head", 1, [-1, 1, "nn.MaxPool2d", [2, 1, 2]], "from 0 to half of the kernel 2, got 2"),
    "upsampled to a size": ("head", 1, [-1, 1, "nn.Upsample", [16]], "the arguments must name a scale factor"),
    "an odd map": ("head", 1, [-1, 1, "nn.ConvTranspose2d", [64, 3, 2, 1]], "as in [256, 2, 2] or [256, 4, 2, 1]"),
    "no kernel": ("head", 1, [-1, 1, "nn.ConvTranspose2d", [64]], "[channels, kernel, stride, padding, output"),
    "no class": ("backbone", 3, [-1, 1, None, [96]], "unknown module None"),
    "detect without anchors": ("head", 3, [[6, 4], 1, "Detect", ["nc"]], "write [nc, anchors]"),
    "detect with a level less": (
        "head",
        3,
        [[6], 1, "Detect", ["nc", "anchors"]],
        "1 maps come in, but there are anchors",
    ),
    "strides that differ": (
        "head",
        2,
        [[-1, 3], 1, "Concat", [1]],
        "Concat from [-1, 3]: the incoming maps must have the same stride",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_rows(kind):
    section, k, row, message = WRONG[kind]
    with pytest.raises(ValueError) as error:
        Model(small(**{f"{section}__{k}": row}))
    layer = k + (len(SMALL["backbone"]) if section == "head" else 0)
    assert str(error.value).startswith(f"model, {section} row {k} (layer {layer}): ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("sources", "strides"),
    [
        ([4, 6, 3], "[8.0, 4.0, 8.0]"),  # neither finer nor coarser throughout
        ([6, 2, 4], "[4.0, 4.0, 8.0]"),  # one of them twice
    ],
)
def test_strides_of_the_head(sources, strides):
    d = small(anchors=[[10, 13]] * 3, head__3=[sources, 1, "Detect", ["nc", "anchors"]])
    with pytest.raises(ValueError, match="model, Detect: its inputs must go from fine to coarse") as error:
        Model(d)
    assert strides in str(error.value)


def test_joined_maps_must_share_a_stride():
    with pytest.raises(ValueError, match=r"the incoming maps must have the same stride, got \[4.0, 8.0\]"):
        Model(small(head__2=[[-1, 3], 1, "Concat", [1]]))


def test_coarse_to_fine_is_allowed():
    """As in the `fpn` head; the anchors are then reversed."""
    model = Model(small(head__3=[[4, 6], 1, "Detect", ["nc", "anchors"]]))
    assert model.stride.tolist() == [8, 4]
    assert (model.model[-1].anchors * model.stride.view(-1, 1, 1))[0].tolist() != [[10, 13], [16, 30]]


# --- wrong files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head"])
def test_missing_keys(key):
    d = small()
    del d[key]
    with pytest.raises(ValueError, match=f"model: .*missing: {key}"):
        Model(d)


def test_every_missing_key_is_named():
    with pytest.raises(ValueError, match="missing: nc, anchors"):
        Model({k: v for k, v in small().items() if k not in ("nc", "anchors")})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("nc", v) for v in (0, -1, 2.5, "two", None, True)),
        *(("depth_multiple", v) for v in (0, -1, "deep", None)),
        *(("width_multiple", v) for v in (0, [1])),
        *(("anchors", v) for v in (0, [], [[]], [[1, 2, 3]], "auto", None, [1, 2], 2.5)),
        *((section, v) for section in ("backbone", "head") for v in ([], None, "Conv", {})),
    ],
)
def test_wrong_values(key, value):
    with pytest.raises(ValueError, match=f"model: {key} must be"):
        Model(small(**{key: value}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wrong.yaml: the file is empty"),
        ("# only a comment\n", "wrong.yaml: the file is empty"),
        ("- 1\n- 2\n", "wrong.yaml: expected lines of 'key: value' at the top, found a list"),
        ("nc: 80\nbackbone:\n  - [-1, 1, Conv, [64\nhead: 3\n", "wrong.yaml:4: not valid YAML"),
        ("nc: 80\ndepth: [\n", "wrong.yaml:3: not valid YAML"),
        ("nc: !!python/object/apply:os.getcwd []\n", "wrong.yaml:1: not valid YAML"),
    ],
)
def test_wrong_files(text, message, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        Model(path)
    assert message in str(error.value)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"no such file: 'yolov5q\.yaml'"):
        Model("yolov5q.yaml")


def test_the_given_dict_is_left_alone():
    d = small()
    before = copy.deepcopy(d)
    Model(d, ch=1, nc=5, anchors=3)
    parse_model(d, [3])
    assert d == before


def test_numbers_that_yaml_reads_as_text():
    model = Model(with_row([-1, 1, "SimAM", [96, "1e-3"]]) | {"width_multiple": "5e-1"})
    assert model.model[4].lambda_ == 0.001
    assert model.model[2].cv3.conv.out_channels == 32


# class -> what it gives for x, by its definition
LAYERS = {
    "nn.ReLU": ([True], lambda x: x.clamp(min=0)),
    "nn.LeakyReLU": ([0.25], lambda x: torch.where(x > 0, x, x / 4)),
    "nn.SiLU": ([], lambda x: x / (1 + (-x).exp())),
    "nn.GELU": ([], lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
    "nn.ELU": ([], lambda x: torch.where(x > 0, x, x.exp() - 1)),
    "nn.Tanh": ([], lambda x: 1 - 2 / ((2 * x).exp() + 1)),
    "nn.Dropout": ([0.5], lambda x: x),
    "nn.AvgPool2d": ([3, 1, 1], lambda x: nn.functional.conv2d(x, torch.full((x.shape[1], 1, 3, 3), 1 / 9),
                                                               padding=1, groups=x.shape[1])),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_torch_compute_what_they_say_also_from_a_checkpoint(name, tmp_path):
    args, by_definition = LAYERS[name]
    model = Model(with_row([-1, 1, name, args])).eval()
    checkpoint.save(tmp_path / "a.pt", checkpoint.pack(model))
    for layer in (model.model[4], load_model(tmp_path / "a.pt", fuse=False).model[4]):
        x = torch.randn(1, 8, 5, 5)
        assert torch.allclose(layer(x.clone()), by_definition(x), atol=1e-5)
        assert (layer.i, layer.f) == (4, -1)


def test_words_in_rows():
    model = Model(with_row([-1, 1, "Conv", [96, 1, 1, "None", 1, "False"]]))
    assert isinstance(model.model[4].act, nn.Identity)
    model = Model(with_row([-1, 1, "Conv", ["nc"]]))  # 2 classes, a width of 8
    assert model.model[4].conv.out_channels == 8


# --- rows that can be built, but hardly as they were meant ------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["CBAM", [96, 96, 3]], "CBAM has as many out as in and takes [width, reduction=16, kernel=7]: write [96] and"),
        (["SE", [96, 96]], "write [96] and"),
        (["SE", [96, 96, 16]], "takes [width, reduction="),
        (["SOCA", [96, 48]], "48, looks like a number of channels"),  # what comes in, after the width multiple
        (["CoordAttention", [96, 96, 32]], "takes [width, reduction=32]"),
        (["SimAM", [96, 96]], "or [None, 96] where 96 is meant"),
        (["GCT", [96, 96]], "write [96] and"),
    ],
)
def test_channels_in_and_out_are_not_a_reduction(row, message):
    with pytest.raises(ValueError, match=r"^model, backbone row 4 \(layer 4\): ") as error:
        Model(with_row([-1, 1, *row]))
    assert message in str(error.value)


@pytest.mark.parametrize("row", [["CBAM", [96, 16, 3]], ["SE", [96, 32]], ["ECA", [96, 5]], ["SE", [None, 96]]])
def test_reductions_are_taken(row):
    assert type(Model(with_row([-1, 1, *row])).model[4]).__name__ == row[0]


def unread() -> dict:
    """A block behind the backbone, and no number changed: Detect takes the map before the last, the last is unread."""
    d = small()
    d["backbone"].append([-1, 1, "SE", [96]])
    d["head"][3][0] = [7, 4]
    d["head"].insert(3, [-1, 1, "C3", [64]])
    return d


def test_a_row_that_nobody_uses():
    with pytest.raises(
        ValueError, match=r"model, head row 3 \(layer 8\): C3\[64\]: no later row uses .* of layer 8, so"
    ):
        Model(unread())
    d = small(head__3=[[2, 4], 1, "Detect", ["nc", "anchors"]])
    with pytest.raises(ValueError, match=r"head row 2 \(layer 6\): Concat\[1\]: .* of layer 6 \(nor of layer 5\), so"):
        Model(d)


def test_a_trained_network_is_built_as_it_is():
    assert len(Model(unread(), trained=True).model) == 10
    Model(with_row([-1, 1, "SE", [96, 96]]), trained=True)
