"""A detector built anew from a file: hostile attributes are refused or have no effect; files of other releases load."""

import math
import pathlib
import zipfile
from copy import deepcopy
from random import Random

import pytest
import torch
from torch import nn

from models import common
from models.backend import load_checkpoint, load_model
from models.rebuild import Names, rebuild
from models.yolo import Detect, Model
from utils import activations, checkpoint, pickles
from utils.pickles import StandIn

SMALL = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Conv", [32, 6, 2, 2]],
        [-1, 2, "C3", [32]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "SPPF", [64, 5]],
        [-1, 1, "SOCA", []],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 1], 1, "Concat", [1]],
        [[6, 4], 1, "Detect", ["nc", "anchors"]],
    ],
}
IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small() -> Model:
    torch.manual_seed(0)
    return Model(SMALL).eval()


@pytest.fixture(scope="module")
def expected(small) -> torch.Tensor:
    with torch.no_grad():
        return small(IMAGE)[0]


@pytest.fixture(scope="module")
def described(small, tmp_path_factory) -> StandIn:
    """What a file says of that model, not yet built."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    torch.save({"model": small}, path)
    return checkpoint.load(path, Names().known)["model"]


def saved(path: pathlib.Path, model: nn.Module, **entries) -> pathlib.Path:
    torch.save({"model": model, **entries}, path)
    return path


def outputs(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IMAGE)[0]


# --- attributes that no honest file has -------------------------------------------------------------------------------


def parts(found: StandIn, name: str = "") -> dict[str, StandIn]:
    """Every stand-in of a tree by its path."""
    found_here = {name: found}
    for key, child in found.state["_modules"].items():
        if child is not None:
            found_here.update(parts(child, f"{name}.{key}"))
    return found_here


def strange_values() -> list:
    module = pickles.stand_in("torch.nn.modules.linear.Identity")()
    loop = {}
    loop["a"] = loop
    numbers = [-1, 0, 7, 2.5, math.nan, math.inf, 10**30, True]
    return [
        None,
        *numbers,
        "a",
        [],
        {},
        [99],
        (1, 2, 3),
        [[]],
        {"a": None},
        torch.zeros(3),
        module,
        loop,
        pickles.StandIn,
    ]


PLACES = ["", ".model", ".model.0", ".model.0.conv", ".model.0.bn", ".model.0.act", ".model.1", ".model.1.m.0"]
PLACES += [".model.3.m", ".model.4.conv_du", ".model.4.conv_du.0", ".model.5", ".model.6", ".model.7", ".model.7.m"]
# what a file may choose
FREE = {"eps", "momentum", "names", "training"}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place or "model")
def test_strange_attributes(place, described, expected):
    """Each attribute of each kind of module is replaced by strange values."""
    state = parts(described)[place].state
    random, refused = Random(place), 0
    for name, honest in list(state.items()):
        for value in random.sample(strange_values(), 4):
            state[name] = value
            try:
                built = rebuild(described, Names(), 10**6)
            except ValueError as error:
                refused += 1
                assert str(error)
            else:
                assert name in FREE or torch.equal(outputs(built), expected), (place, name, value)
                assert len(built.names) == 2 and all(isinstance(n, str) for n in built.names)
            finally:
                state[name] = honest
    assert refused > 3
    assert torch.equal(outputs(rebuild(described, Names(), 10**6)), expected)


@pytest.mark.parametrize("place", [p for p in PLACES if p])
def test_another_module_in_a_place(place, described):
    for kind in ("torch.nn.modules.conv.Conv2d", "models.yolo.Model", "models.common.C3", "models.yolo.Detect"):
        parent, _, name = place.rpartition(".")
        children = parts(described)[parent].state["_modules"]
        honest = children[name]
        children[name] = pickles.stand_in(kind)()
        children[name].state = honest.state
        try:
            if honest.of != kind:
                with pytest.raises(ValueError):
                    rebuild(described, Names(), 10**6)
        finally:
            children[name] = honest


YAML_VALUES = [None, -1, 0, 7, 10**9, 0.5, math.nan, math.inf, "a", [], {}, [[]], True, [10**9], "Conv", {"base": 1}]


def yaml_changes() -> list[tuple]:
    """Keys, or places in the rows, and a value."""
    keys = [(key,) for key in (*SMALL, "ch", "inplace", "base", "insert", "activation")]
    keys += [(part, row) for part in ("backbone", "head") for row in range(len(SMALL[part]))]
    keys += [(*row, k) for row in keys if len(row) == 2 for k in range(4)]
    keys += [("backbone", 0, 3, k) for k in range(4)] + [("head", 0, 3, k) for k in range(3)] + [("anchors", 0)]
    return keys


@pytest.mark.parametrize("where", yaml_changes(), ids=str)
def test_a_yaml_that_does_not_fit(where, described, expected, tmp_path):
    (tmp_path / "a.yaml").write_text("nc: 7\n")
    for value in [*Random(str(where)).sample(YAML_VALUES, 6), str(tmp_path / "a.yaml")]:
        yaml = deepcopy(SMALL)
        target = yaml
        for key in where[:-1]:
            target = target[key]
        target[where[-1]] = value
        honest, described.state["yaml"] = described.state["yaml"], yaml
        try:
            built = rebuild(described, Names(), 10**6)
        except ValueError as error:
            assert "nc: 7" not in str(error)
        else:
            assert torch.equal(outputs(built), expected), (where, value)
            assert where[0] not in ("base", "insert")
        finally:
            described.state["yaml"] = honest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nc": 10**9}, "nc must be a positive number up to 32768"),
        ({"width_multiple": 10**4}, "width_multiple must be a positive number up to 1000"),
        ({"width_multiple": 100}, "a larger network than the file can hold"),
        ({"depth_multiple": 10**6}, "depth_multiple must be a positive number up to 1000"),
        ({"anchors": 10**9}, "a number of anchors from 1 to 1000, got 1000000000"),
        ({"base": "yolov5s.yaml"}, r"must not use base, which name other files"),
        ({"insert": [{"after": 1, "module": "SE"}]}, r"must not use insert, which name other files"),
        ({"head": [[-1, 1, "Conv", [8]]]}, "ends in Conv, not in the head of a detector"),
        ({"head": [*SMALL["head"][:2], [-1, 1, "No\x1b[31m", []]]}, "unknown module"),
    ],
    ids=str,
)
def test_limits_of_a_yaml(changes, said, described):
    honest, described.state["yaml"] = described.state["yaml"], {**deepcopy(SMALL), **changes}
    with pytest.raises(ValueError, match=said):
        rebuild(described, Names(), 10**6)
    described.state["yaml"] = honest


def test_a_message_names_the_file_and_the_layer_on_one_line(small, tmp_path):
    model = deepcopy(small)
    model.model[1].m[0].cv2.conv.stride = (2, 2)
    path = saved(tmp_path / "a.pt", model)
    with pytest.raises(ValueError) as error:
        load_checkpoint(path)
    said = "layer 1 (C3), m.0.cv2.conv.stride is (2, 2) in the file, but its YAML says (1, 1)"
    assert str(error.value) == f"{path}: {said}"
    model = deepcopy(small)
    model.model[2].conv.weight = nn.Parameter(torch.zeros(16, 8, 1, 1))
    model.model[1].add_module("\x1b[31m\n", nn.Identity())
    with pytest.raises(ValueError) as error:
        load_checkpoint(saved(path, model))
    assert str(error.value).isprintable() and "layer 1 (C3), its C3 has" in str(error.value)
    del model.model[1]._modules["\x1b[31m\n"]
    with pytest.raises(
        ValueError, match=r"layer 2 \(Conv\), conv.weight: .* says 16 x 8 x 3 x 3 .* has 16 x 8 x 1 x 1"
    ):
        load_checkpoint(saved(path, model))


def test_hooks_and_methods_of_a_file_have_no_effect(small, expected, tmp_path):
    """What torch would have called in a module of the file."""
    model = deepcopy(small)
    for m in model.modules():
        m._forward_hooks[0] = m._forward_pre_hooks[0] = m._load_state_dict_post_hooks[0] = nn.Identity()
        m.__dict__["forward"] = m.__dict__["fuse"] = m.__dict__["eval"] = nn.Identity()
    path = saved(tmp_path / "a.pt", model)
    torch.manual_seed(3)
    random = torch.get_rng_state()
    loaded = load_model(path, fuse=False)
    assert torch.equal(torch.get_rng_state(), random)  # building draws numbers, but not from the program's generator
    assert torch.equal(outputs(loaded), expected)
    for m in loaded.modules():
        assert not m._forward_hooks and not m._forward_pre_hooks and "forward" not in vars(m)
    load_model(path).fuse()


def test_one_number_for_many(small, tmp_path):
    """A tensor may repeat a number; it becomes one of its own, which training can write to."""
    model = deepcopy(small)
    model.model[0].bn.running_mean = torch.zeros(8).as_strided((8,), (0,))
    loaded = load_checkpoint(saved(tmp_path / "a.pt", model))["model"]
    loaded.train()(torch.rand(2, 3, 32, 32))
    assert loaded.model[0].bn.running_mean.unique().numel() > 1


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ({1: "b", 0: "a"}, ["a", "b"]),
        ({0: "a"}, ["a", "1"]),
        ({1: "b"}, ["0", "b"]),
        (["a"], ["a", "1"]),
        (["a", "b", "c"], ["a", "b"]),
        ([0, 1], ["0", "1"]),
        (("a", 2.5), ["a", "2.5"]),
        ([], ["0", "1"]),
    ],
    ids=str,
)
def test_names(names, expected, small, tmp_path):
    model = deepcopy(small)
    model.names = names
    assert load_checkpoint(saved(tmp_path / "a.pt", model))["model"].names == expected


@pytest.mark.parametrize(
    "names",
    [None, 7, "ab", [None, "b"], [["a"], "b"], {"a": "b"}, {None: "a"}, ["a" * 1001, "b"], {0.5: "a"}],
    ids=repr,
)
def test_names_that_are_none(names, small, tmp_path):
    model = deepcopy(small)
    model.names = names
    path = saved(tmp_path / "a.pt", model)
    with pytest.raises(ValueError, match=r"a\.pt: names must"):
        load_checkpoint(path)


# --- values without end, in short files -------------------------------------------------------------------------------

LONG = "A" * 10**6


def endless(numbers: tuple = (6,)) -> list:
    """60 lists, each with the one before twice: 2^60 numbers where they are written out or compared one by one."""
    value = list(numbers)
    for _ in range(60):
        value = [value, value]
    return value


def in_itself() -> list:
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("place", "attribute", "value"),
    [
        ("model.0.conv", "kernel_size", (endless((3,)), endless((3,)))),
        ("model.0.conv", "groups", endless((1,))),
        ("model.0.conv", "groups", in_itself()),
        ("model.0.bn", "eps", [LONG] * 10**5),  # 100 GB of text in a message that is cut to 80 characters
        ("", "names", [[LONG] * 10**5, "b"]),
        ("", "yaml", [LONG] * 10**5),
    ],
    ids=["kernel", "groups", "groups in themselves", "eps", "names", "yaml"],
)
def test_values_without_end(place, attribute, value, small, tmp_path):
    model = deepcopy(small)
    model.get_submodule(place).__dict__[attribute] = value
    path = saved(tmp_path / "a.pt", model)
    assert path.stat().st_size < 3e6
    with pytest.raises(ValueError, match=r"a\.pt: ") as error:
        load_checkpoint(path)
    assert len(str(error.value)) < 600 + len(str(path))


@pytest.mark.parametrize("length", [1, 2])
def test_wrappers_around_themselves(length, tmp_path):
    wrappers = [nn.DataParallel(nn.Identity()) for _ in range(length)]
    for wrapper, other in zip(wrappers, [*wrappers[1:], wrappers[0]]):
        wrapper.__dict__["_modules"]["module"] = other
    with pytest.raises(ValueError, match=r"a\.pt: holds a DataParallel, not a detector"):
        load_checkpoint(saved(tmp_path / "a.pt", wrappers[0]))


# --- files of other releases and programs -----------------------------------------------------------------------------


def renamed(path: pathlib.Path, **names: str) -> pathlib.Path:
    """Writes the file with other names of classes in its pickle: old__name="new.name"."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in members if name.endswith("/data.pkl"))
    for old, new in names.items():
        lines = ["c{}\n{}\n".format(*name.rsplit(".", 1)).encode() for name in (old.replace("__", "."), new)]
        assert lines[0] in members[pickle]
        members[pickle] = members[pickle].replace(*lines)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_file_as_release_7_writes_it(small, expected, tmp_path):
    model = deepcopy(small)
    model.names = {0: "cat", 1: "dog"}
    head = model.model[-1]
    head.export, head.dynamic, head.anchor_grid = False, False, [torch.empty(0)] * 2
    for m in model.modules():
        if isinstance(m, common.Conv):
            m.act = small.model[0].act  # one activation for all
    options = {"data": pathlib.PosixPath("data/coco.yaml"), "epochs": 3, "save_dir": pathlib.PosixPath("runs/exp")}
    git = {"remote": None, "branch": "main", "commit": "a" * 40}
    path = saved(tmp_path / "a.pt", model, ema=model, opt=options, git=git, best_fitness=0.5)
    content = load_checkpoint(renamed(path, models__yolo__Model="models.yolo.DetectionModel"))
    assert content["opt"] == {"data": "data/coco.yaml", "epochs": 3, "save_dir": "runs/exp"} and content["git"] == git
    for key in ("model", "ema"):
        assert content[key].names == ["cat", "dog"] and torch.equal(outputs(content[key]), expected)


@pytest.mark.parametrize("wrapper", ["data_parallel.DataParallel", "distributed.DistributedDataParallel"])
def test_wrapped_for_several_devices(wrapper, small, expected, tmp_path):
    """v6.1 then keeps the names on the wrapper."""
    wrapped = nn.DataParallel(deepcopy(small))
    wrapped.names, wrapped.nc = ["cat", "dog"], 2
    del wrapped.module.names
    path = saved(tmp_path / "a.pt", wrapped)
    renamed(path, torch__nn__parallel__data_parallel__DataParallel=f"torch.nn.parallel.{wrapper}")
    loaded = load_model(path, fuse=False)
    assert type(loaded) is Model and loaded.names == ["cat", "dog"] and torch.equal(outputs(loaded), expected)


def test_the_package_yolov5(small, expected, tmp_path):
    path = saved(tmp_path / "a.pt", small)
    names = {
        "models__yolo__Model": "yolov5.models.yolo.DetectionModel",
        "models__yolo__Detect": "yolov5.models.yolo.Detect",
    }
    names |= {
        f"models__common__{n}": f"yolov5.models.common.{n}" for n in ("Conv", "C3", "Bottleneck", "SPPF", "Concat")
    }
    assert torch.equal(outputs(load_model(renamed(path, **names), fuse=False)), expected)


@pytest.mark.parametrize("form", ["state dict", "state dict of a wrapper", "with updates"])
def test_forms_of_the_average(form, small, tmp_path):
    average = deepcopy(small)
    for p in average.parameters():
        p.data.mul_(1.01)
    state = average.state_dict()
    ema = {
        "state dict": state,
        "state dict of a wrapper": {f"module.{k}": v for k, v in state.items()},
        "with updates": (average, 700),
    }[form]
    path = saved(tmp_path / "a.pt", small, ema=ema)
    assert torch.equal(outputs(load_model(path, fuse=False)), outputs(average))


@pytest.mark.parametrize("ema", [5, "a", [], [5], {"a": 1}, torch.zeros(3), nn.Conv2d(1, 1, 1)], ids=repr)
def test_an_average_that_is_none(ema, small, tmp_path):
    with pytest.raises(ValueError, match=r"a\.pt: "):
        load_checkpoint(saved(tmp_path / "a.pt", small, ema=ema))


def replaced(model: Model, make) -> Model:
    """The model with other activations in its convolutions; `make` is given the channels."""
    for m in model.modules():
        if isinstance(m, common.Conv):
            m.act = make(m.conv.out_channels)
    return model


ACTIVATIONS = {
    "LeakyReLU": lambda c: nn.LeakyReLU(0.1),
    "Hardswish": lambda c: nn.Hardswish(),
    "Identity": lambda c: nn.Identity(),
    "GELU": lambda c: nn.GELU("tanh"),
    "ELU": lambda c: nn.ELU(0.5),
    "SiLU of utils": lambda c: activations.SiLU(),
    "Mish of utils": lambda c: activations.Mish(),
    "FReLU": lambda c: activations.FReLU(c),
    "AconC": lambda c: activations.AconC(c),
    "MetaAconC": lambda c: activations.MetaAconC(c),
    "MetaAconC of another width": lambda c: activations.MetaAconC(c, reduction=3),
}


@pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations(make, small, expected, tmp_path):
    """Files of releases before 4 have others than a YAML says."""
    model = replaced(deepcopy(small), make).eval()
    loaded = load_model(saved(tmp_path / "a.pt", model), fuse=False)
    assert torch.equal(outputs(loaded), outputs(model)) and not torch.equal(outputs(loaded), expected)
    assert type(loaded.model[0].act) is type(model.model[0].act)


@pytest.mark.parametrize("slope", [None, "a", math.nan, -1, math.inf, [0.1]], ids=repr)
def test_a_slope_that_is_none(slope, small, tmp_path):
    model = replaced(deepcopy(small), lambda c: nn.LeakyReLU(0.1))
    model.model[0].act.negative_slope = slope
    with pytest.raises(ValueError, match=r"layer 0 \(Conv\), act.negative_slope must be a number from 0"):
        load_checkpoint(saved(tmp_path / "a.pt", model))


def test_settings_of_batch_norm_are_taken_over(small, expected, tmp_path):
    model = deepcopy(small)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps, m.momentum = 0.5, None
    loaded = load_model(saved(tmp_path / "a.pt", model), fuse=False)
    assert torch.equal(outputs(loaded), outputs(model)) and not torch.equal(outputs(loaded), expected)
    assert {(m.eps, m.momentum) for m in loaded.modules() if isinstance(m, nn.BatchNorm2d)} == {(0.5, None)}


def forward_fuse(self, x):
    return self.act(self.conv(x))


@pytest.mark.parametrize("bound", [False, True], ids=["", "as v6.1 binds it"])
def test_a_fused_file(bound, small, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(common.Conv, "forward_fuse", forward_fuse, raising=False)
    model = deepcopy(small).fuse()
    for m in model.modules():
        if bound and isinstance(m, common.Conv):
            m.forward = m.forward_fuse
    path = saved(tmp_path / "a.pt", model)
    loaded = load_model(path)
    assert torch.equal(outputs(loaded), outputs(model))
    assert (outputs(loaded) - expected).abs().max() < 1e-2 and not any("bn" in key for key in loaded.state_dict())


def test_what_other_programs_leave_in_a_model(small, expected, tmp_path):
    """Counters of operations, SyncBatchNorm, no count of batches, tensors that are channels-last, an old head."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(deepcopy(small)).to(memory_format=torch.channels_last)
    for m in model.modules():
        m.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        if isinstance(m, nn.SyncBatchNorm):
            del m.num_batches_tracked
    head: Detect = model.model[-1]
    del head.anchor_grid
    head.register_buffer("anchor_grid", torch.zeros(2, 1, 2, 1, 1, 2))
    loaded = load_model(saved(tmp_path / "a.pt", model), fuse=False)
    assert torch.allclose(outputs(loaded), expected, rtol=1e-4, atol=1e-4)  # sums in another order
    assert not any("total_ops" in key or "anchor_grid" in key for key in loaded.state_dict())
    assert {type(m) for m in loaded.modules()} == {type(m) for m in small.modules()}


ELSEWHERE = {
    "models.common.C3x": "C3x is a block or a class of the program that wrote the file, a fork of YOLOv5",
    "models.yolo.SegmentationModel": "It is a segmentation model",
    "models.yolo.ClassificationModel": "It is a classification model",
    "models.yolo.IDetect": "It is of YOLOv7",
    "models.common.StemBlock": "It is of YOLOv5-face",
    "ultralytics.nn.modules.conv.Conv": "It is of the package ultralytics",
    "torch.nn.utils.prune.L1Unstructured": "It was pruned",
    "torch.ao.nn.quantized.modules.conv.Conv2d": "It is quantised",
    "torchvision.models.resnet.ResNet": "It was written by another program than YOLOv5",
    "__main__.Net": "It holds a class of the script that saved it",
    "subprocess.Popen": "No checkpoint of a detector needs it",
}


@pytest.mark.parametrize(("name", "said"), ELSEWHERE.items(), ids=ELSEWHERE)
def test_files_of_other_programs_are_told_apart(name, said, small, tmp_path):
    path = saved(tmp_path / "a.pt", small)
    with pytest.raises(ValueError) as error:
        load_checkpoint(renamed(path, models__common__SPPF=name))
    assert f"the file uses {name}, which is not" in str(error.value) and said in str(error.value)


def test_a_block_of_the_same_name(small, tmp_path):
    """A fork may have another CBAM; its parts tell."""
    model = deepcopy(small)
    model.model[3].add_module("extra", nn.Conv2d(1, 1, 1))
    with pytest.raises(
        ValueError, match=r"its SPPF has \['extra'\], that of this project has .* a block of another program"
    ):
        load_checkpoint(saved(tmp_path / "a.pt", model))
