"""Files move both ways: official ones are read here, ours hold nothing that v6.1 does not know, and what was trained
with the SOCA that is usually pasted into v6.1 gives the same boxes.
"""

import collections
import hashlib
import io
import pickle
import pickletools
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from models import common
from models.backend import load_checkpoint, load_model
from models.common import SOCA
from models.rebuild import Names
from models.yolo import Model
from utils import checkpoint
from utils.nms import non_max_suppression


@pytest.fixture(scope="module")
def recorded(parity):
    return parity("checkpoints")


def close(value: torch.Tensor, summary: dict, inputs, tolerance: float) -> None:
    """Samples of a tensor against a recorded summary, relative to max(1, |reference|)."""
    assert list(value.shape) == summary["shape"]
    flat = value.detach().double().flatten()
    indices = inputs.indices(flat.numel(), len(summary["samples"]))
    reference = torch.tensor(summary["samples"], dtype=torch.float64)
    assert ((flat[indices] - reference).abs() / reference.abs().clamp(min=1)).max() <= tolerance
    assert flat.sum().item() == pytest.approx(summary["sum"], rel=tolerance)


# --- looking into a pickle without executing it -----------------------------------------------------------------------


def members(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pickle_of(path) -> bytes:
    return next(content for name, content in members(path).items() if name.endswith("/data.pkl"))


def globals_of(path) -> list[list[str]]:
    """[module, name] of everything the pickle asks for."""
    found = {arg for op, arg, _ in pickletools.genops(pickle_of(path)) if op.name == "GLOBAL"}
    assert not any(op.name in ("STACK_GLOBAL", "INST") for op, _, _ in pickletools.genops(pickle_of(path)))
    return sorted(arg.split(" ") for arg in found)


class Dummies(pickle.Unpickler):
    """Unpickles with a lifeless stand-in for every class and function."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))
        self.made = []

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if name == "set":
            return set
        unpickler = self

        class Dummy:
            kind = f"{module}.{name}"

            def __new__(cls, *arguments):
                dummy = super().__new__(cls)
                unpickler.made.append(dummy)
                return dummy

            def __init__(self, *arguments):
                pass

            def __setstate__(self, state):
                self.state = state

        return Dummy

    def persistent_load(self, identifier):
        return None


def kind_of(value) -> str:
    return getattr(value, "kind", None) or type(value).__name__.replace("NoneType", "None")


def objects_of(path) -> tuple[dict, dict[str, dict]]:
    """The top level, and class -> {count, attributes: name -> set of kinds, private: names}."""
    unpickler = Dummies(pickle_of(path))
    top = unpickler.load()
    objects = {}
    for made in unpickler.made:
        if not isinstance(getattr(made, "state", None), dict):
            continue
        entry = objects.setdefault(made.kind, {"count": 0, "attributes": {}, "private": set()})
        entry["count"] += 1
        for name, value in made.state.items():
            if name.startswith("_"):
                entry["private"].add(name)
            else:
                entry["attributes"].setdefault(name, set()).add(kind_of(value))
    return top, objects


# --- the official file ------------------------------------------------------------------------------------------------


def test_the_file_itself(official_weights, recorded):
    """Also shows that the scan sees what was recorded with another one."""
    reference = recorded["official"]
    content = official_weights.read_bytes()
    assert hashlib.sha256(content).hexdigest() == reference["sha256"]
    assert len(content) == reference["bytes"]
    names = members(official_weights)
    assert len(names) == reference["archive"]["members"]
    assert {name.split("/")[0] for name in names} == {reference["archive"]["root"]}
    plain = sorted(
        name.split("/")[1] for name in names if not name.split("/")[1].startswith("data/") and "/data/" not in name
    )
    assert plain == reference["archive"]["non_tensor_members"]
    assert len(pickle_of(official_weights)) == reference["archive"]["pickle_bytes"]
    assert globals_of(official_weights) == reference["globals"]
    top, objects = objects_of(official_weights)
    assert {key: kind_of(value) for key, value in top.items()} == reference["top_level"]
    for kind, entry in reference["objects"].items():
        assert objects[kind]["count"] == entry["count"]
        assert {k: sorted(v) for k, v in objects[kind]["attributes"].items()} == entry["attributes"]
    assert set().union(*(entry["private"] for entry in objects.values())) <= {
        *reference["module_private_attributes"],
        "_version",
    }


def test_the_official_file_is_read(official_weights, recorded):
    reference = recorded["official"]
    content = load_checkpoint(official_weights)
    names = {type(None): "None", Model: "models.yolo.Model"}
    assert {k: names.get(type(v), type(v).__name__) for k, v in content.items()} == reference["top_level"]
    assert {k: content[k] for k in reference["top_values"]} == reference["top_values"]
    model, values = content["model"], reference["model_values"]
    for name in ("save", "inplace", "nc", "yaml_file", "training"):
        assert getattr(model, name) == values[name]
    assert sorted(model.yaml) == values["yaml_keys"]
    assert type(model.names).__name__ == values["names_type"]
    assert len(model.names) == values["names_count"]
    assert hashlib.sha256("\n".join(model.names).encode()).hexdigest() == values["names_sha256"]
    head, first = model.model[-1], model.model[0]
    assert {k: getattr(head, k) for k in values["detect"]} == values["detect"]
    assert [name for name, _ in head.named_buffers(recurse=False)] == values["detect_buffers"]
    assert {k: getattr(first, k) for k in values["conv_layer0"]} == values["conv_layer0"]
    assert sorted(name for name, _ in first.named_children()) == values["first_children"]
    # attributes of every object survive the reading
    for module in model.modules():
        kind = f"{type(module).__module__}.{type(module).__name__}"
        if kind in ("models.yolo.Detect", "models.yolo.Model", "models.common.SPPF"):
            assert set(reference["objects"][kind]["attributes"]) <= set(vars(module))


def test_the_official_tensors(official_weights, recorded):
    reference = recorded["official"]["tensors"]
    model = load_checkpoint(official_weights)["model"]
    state = model.state_dict()
    assert sorted({str(v.dtype) for v in state.values()}) == reference["dtype"]
    assert len(state) == reference["keys"]
    lines = sorted(f"{k} {'x'.join(map(str, v.shape)) or 'scalar'}" for k, v in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == reference["sha256"]
    assert sorted({p.requires_grad for p in model.parameters()}) == reference["requires_grad"]
    for name, (total, mean_abs) in reference["some"].items():
        assert state[name].double().sum().item() == pytest.approx(total, rel=1e-6)
        assert state[name].double().abs().mean().item() == pytest.approx(mean_abs, rel=1e-6)
    assert model.model[-1].anchors.tolist() == reference["anchors"]
    assert model.stride.tolist() == reference["stride"]


def test_the_official_outputs(official_weights, recorded, parity_inputs):
    reference = recorded["official_forward"]
    image = torch.from_numpy(parity_inputs.build(reference["image"]))
    pattern = parity_inputs.build(reference["pattern"])[:, :, ::-1].transpose(2, 0, 1)  # BGR to RGB
    pattern = torch.from_numpy(np.ascontiguousarray(pattern))[None].float() / 255
    model, fused = load_model(official_weights, fuse=False), load_model(official_weights, fuse=True)
    with torch.no_grad():
        close(model(image)[0], reference["eval"], parity_inputs, 2e-4)
        close(model(pattern)[0], reference["pattern_eval"], parity_inputs, 2e-4)
        close(fused(image)[0], reference["fused"], parity_inputs, 2e-4)
        (found,) = non_max_suppression(model(pattern)[0], 0.001, 0.6)
    expected = torch.tensor(reference["nms_on_pattern"])
    assert found.shape == expected.shape
    assert (found[:, :4] - expected[:, :4]).abs().max() <= 1e-3
    assert (found[:, 4] - expected[:, 4]).abs().max() <= 1e-5
    assert torch.equal(found[:, 5], expected[:, 5])


# --- what stripping changes -------------------------------------------------------------------------------------------


def kinds(content: dict) -> dict[str, str]:
    names = {type(None): "None", Model: "models.yolo.Model", np.ndarray: "numpy.ndarray"}
    return {k: names.get(type(v), type(v).__name__) for k, v in content.items()}


def facts(content: dict) -> dict:
    model = content["model"]
    return {
        "keys": kinds(content),
        "epoch": content["epoch"],
        "model_dtype": sorted({str(v.dtype) for v in model.state_dict().values() if v.dim() < 3}),
        "model_training": model.training,
        "requires_grad": sorted({p.requires_grad for p in model.parameters()}),
        "first_weight": pytest.approx(model.model[0].conv.weight.flatten()[:6].tolist(), abs=1e-7),
    }


def test_no_recorded_case_is_left_out(recorded):
    assert len(recorded["strip"]["cases"]) == 3
    assert set(recorded) == {"topic", "variant", "how", "official", "official_forward", "strip", "env"}


@pytest.mark.parametrize("number", [0, 1])
def test_stripping(number, recorded, parity_inputs, tmp_path):
    case = recorded["strip"]["cases"][number]
    path, output = tmp_path / "last.pt", tmp_path / "out.pt"
    model, average = Model("yolov5n.yaml", nc=2), Model("yolov5n.yaml", nc=2).eval()
    parity_inputs.fill(model, "A/strip2", 6)
    parity_inputs.fill(average, "A/strip", 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    content = checkpoint.pack(
        model,
        epoch=7,
        best_fitness=np.array([0.5]),
        ema=average if case["with_ema"] else None,
        updates=3,
        optimizer=optimizer.state_dict(),
    )
    checkpoint.save(path, content)
    assert facts(load_checkpoint(path)) == case["before"]
    before = path.read_bytes()
    checkpoint.strip(path, output, read=load_checkpoint)
    assert (path.read_bytes() == before) == case["separate_output"]["source_unchanged"]
    assert load_checkpoint(output)["epoch"] == case["separate_output"]["output_epoch"]
    checkpoint.strip(path, read=load_checkpoint)
    assert facts(load_checkpoint(path)) == case["after"]
    assert (path.stat().st_size < len(before)) == case["smaller"]


def test_stripping_a_minimal_checkpoint(recorded, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"model": Model("yolov5n.yaml", nc=2)}, path)
    checkpoint.strip(path, read=load_checkpoint)
    stripped = kinds(load_checkpoint(path))
    assert stripped.pop("date") == "None"  # ours always have every key
    assert stripped == recorded["strip"]["cases"][2]["minimal_checkpoint"]["ok"]


# --- our files hold nothing that v6.1 does not know -------------------------------------------------------------------

# Besides the blocks of models.common and models.experimental: docs/v6.1/03-modules.md, section 7
KNOWN = [
    *(["models.yolo", name] for name in ("Model", "Detect")),
    *(["torch._utils", name] for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(["torch", f"{name}Storage"] for name in ("Half", "Float", "Double", "Long")),
    ["collections", "OrderedDict"],
    ["__builtin__", "set"],
    *(["numpy.core.multiarray", name] for name in ("_reconstruct", "scalar")),
    *(["numpy._core.multiarray", name] for name in ("_reconstruct", "scalar")),
    *(["numpy", name] for name in ("ndarray", "dtype")),
    ["_codecs", "encode"],
]
# set by training, as v6.1 does
TRAINED = {"nc": 80, "hyp": {"lr0": 0.01}, "class_weights": torch.ones(80)}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "last.pt"
    model = Model("yolov5n.yaml")
    vars(model).update(TRAINED)
    model(torch.rand(1, 3, 64, 64))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    content = {"epoch": 3, "best_fitness": np.array([0.5]), "updates": 9, "optimizer": optimizer.state_dict()}
    checkpoint.save(path, checkpoint.pack(model, ema=model, **content))
    return path


def test_globals_of_a_written_file(written, recorded):
    known = KNOWN + recorded["official"]["globals"]
    assert [name for name in globals_of(written) if name not in known] == []
    checkpoint.strip(written, read=load_checkpoint)
    assert [name for name in globals_of(written) if name not in recorded["official"]["globals"]] == []


def test_attributes_of_a_written_file(written, recorded):
    reference = recorded["official"]
    top, objects = objects_of(written)
    assert list(top) == list(reference["top_level"])
    layers = reference["objects"]
    assert set(objects) - set(layers) <= {"numpy.dtype", "numpy.ndarray"}
    bare = vars(nn.Module()).keys() | vars(nn.Conv2d(1, 1, 1)).keys() | vars(nn.Upsample()).keys()
    for kind, entry in layers.items():
        own = set(objects[kind]["attributes"])
        # torch may have given its layers more since; ours have no more
        assert own - set(entry["attributes"]) <= (set(bare) if kind.startswith("torch.") else set()), kind
        assert set(entry["attributes"]) <= own | {"add"}, kind
        for name, found in objects[kind]["attributes"].items():
            if name in entry["attributes"] and name != "grid":
                assert found <= {*entry["attributes"][name]}, (kind, name)
        assert objects[kind]["private"] <= {*reference["module_private_attributes"], *bare}
        assert objects[kind]["count"] == 2 * entry["count"]  # model and ema


def live(path) -> dict:
    """The file as v6.1 reads it: live modules, by the pickle."""
    return torch.load(path, weights_only=False)


def assert_v61_can_fuse(model: nn.Module) -> None:
    """v6.1's arithmetic: a weight is cloned, which keeps its order in memory, and viewed as a matrix."""
    for tensor in (*model.parameters(), *model.buffers()):
        assert tensor.stride() == torch.empty(tensor.shape).stride()
    pairs = [(m.conv, m.bn) for m in model.float().modules() if isinstance(m, common.Conv)]
    for conv, bn in pairs:
        matrix = torch.diag(bn.weight / torch.sqrt(bn.eps + bn.running_var)) @ conv.weight.clone().view(
            conv.out_channels, -1
        )
        assert matrix.shape == (conv.out_channels, conv.weight[0].numel())
    assert pairs


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_v61_can_fuse_what_was_trained_here(world, name, recorded):
    path = world.run / "weights" / name
    assert_v61_can_fuse(live(path)["model"])
    known = KNOWN + recorded["official"]["globals"] + [["torch", "ByteStorage"]]  # ByteStorage: states of generators
    known += [["models.common", "SOCA"], ["torch.nn.modules.activation", "ReLU"]]
    known += [["torch.nn.modules.activation", "Sigmoid"]]
    assert [g for g in globals_of(path) if g not in known] == []
    _, objects = objects_of(path)
    layers = recorded["official"]["objects"]
    # attributes that v6.1 gives its modules; what torch gives its own layers may differ from release to release
    for kind in ("models.yolo.Model", "models.yolo.Detect", "models.common.Conv", "models.common.C3"):
        if kind in objects:
            assert set(objects[kind]["attributes"]) <= set(layers[kind]["attributes"]), kind


def test_a_file_in_training_needs_no_numpy_2(here, command, usual):
    """v6.1 runs under older releases, which cannot read an array of NumPy 2."""
    code, _ = command("train", *usual["train"], "--epochs", 2, "--save-period", 1)
    assert code == 0
    assert not [name for name in globals_of("out/exp/weights/epoch1.pt") if name[0].startswith("numpy")]
    content = live("out/exp/weights/epoch1.pt")
    assert type(content["best_fitness"]) is float
    assert_v61_can_fuse(content["model"])
    assert_v61_can_fuse(content["ema"])


def test_v61_can_fuse_what_is_still_in_training(tmp_path):
    """Training is channels-last, and so were the files."""
    model = Model("SOCA-n.yaml", nc=2).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        assert model.model[0].conv.weight.clone().view(16, -1).shape
    checkpoint.save(tmp_path / "last.pt", checkpoint.pack(model, ema=model))
    content = live(tmp_path / "last.pt")
    assert_v61_can_fuse(content["model"])
    assert_v61_can_fuse(content["ema"])
    assert not model.model[0].conv.weight.is_contiguous()  # the model in training stays as it is
    torch.save({"model": model}, tmp_path / "old.pt")
    checkpoint.strip(tmp_path / "old.pt", read=load_checkpoint)
    assert_v61_can_fuse(live(tmp_path / "old.pt")["model"])


def test_every_block_is_defined_where_v61_looks_for_it():
    """A pickle names the module a class is defined in; re-exporting would not do."""
    known = {
        *(
            "Conv",
            "DWConv",
            "TransformerLayer",
            "TransformerBlock",
            "Bottleneck",
            "BottleneckCSP",
            "C3",
            "C3TR",
            "C3SPP",
        ),
        *(
            "C3Ghost",
            "SPP",
            "SPPF",
            "Focus",
            "GhostConv",
            "GhostBottleneck",
            "Contract",
            "Expand",
            "Concat",
            "Classify",
        ),
    }
    names = {f"models.common.{name}" for name in known} | {"models.yolo.Model", "models.yolo.Detect"}
    names |= {f"models.experimental.{name}" for name in ("CrossConv", "Sum", "MixConv2d", "Ensemble")}
    classes = {name: Names().find(name) for name in names}
    assert {name: f"{c.__module__}.{c.__qualname__}" for name, c in classes.items()} == {name: name for name in names}


# --- older and other files --------------------------------------------------------------------------------------------


def test_an_official_file_written_again(official_weights, tmp_path):
    path = tmp_path / "again.pt"
    content = load_checkpoint(official_weights)
    checkpoint.save(path, content)
    known = globals_of(official_weights)
    assert [name for name in globals_of(path) if name not in known] == []
    again = load_checkpoint(path)
    for (key, a), b in zip(content["model"].state_dict().items(), again["model"].state_dict().values()):
        assert torch.equal(a, b), key


def test_a_head_of_an_older_release(tmp_path):
    """No `inplace`, the grids of the last image, `anchor_grid` as a buffer, names as a dict, bare upsampling."""
    path = tmp_path / "old.pt"
    model = Model("yolov5n.yaml", nc=2)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(image)[0]
    head = model.model[-1]
    del head.inplace
    del head.anchor_grid
    head.register_buffer("anchor_grid", torch.zeros(3, 1, 3, 1, 1, 2))
    head.grid = [torch.zeros(1, 1, 20, 20, 2)] * 3
    model.names = {1: "dog", 0: "cat"}
    for m in model.modules():
        if isinstance(m, nn.Upsample):
            del m.recompute_scale_factor
        if isinstance(m, nn.SiLU):
            del m.inplace
    torch.save({"model": model}, path)
    loaded = load_model(path, fuse=False)
    assert loaded.names == ["cat", "dog"]
    assert not any("anchor_grid" in key for key in loaded.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(image)[0], expected)


# --- trained with the pasted class ------------------------------------------------------------------------------------


class PastedSOCA(nn.Module):
    """A SOCA of the usual kind: an unused max-pool, an M x M centring matrix, five coupled steps on the covariance."""

    __module__, __qualname__ = "models.common", "SOCA"  # what a pickle says of it

    def __init__(self, channel, reduction=8):
        super().__init__()
        self.max_pool = nn.MaxPool2d(kernel_size=2)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channel, channel // reduction, 1, padding=0, bias=True),
            nn.ReLU(inplace=True),
            nn.Conv2d(channel // reduction, channel, 1, padding=0, bias=True),
            nn.Sigmoid(),
        )

    def forward(self, x):
        N, C, H, W = x.shape
        X = x.reshape(N, C, H * W)
        J = (torch.eye(H * W) - torch.ones(H * W, H * W) / (H * W)) / (H * W)
        S = X @ J @ X.transpose(1, 2)
        rows = []
        for one in S:
            t = one.trace()
            Y, Z = one / t, torch.eye(C)
            for _ in range(5):
                T = (3 * torch.eye(C) - Z @ Y) / 2
                Y, Z = Y @ T, T @ Z
            rows.append((t.sqrt() * Y).mean(0))
        return self.conv_du(torch.stack(rows)[:, :, None, None]) * x


@pytest.fixture
def pasted(tmp_path, monkeypatch):
    """A file pickled with that class under the name models.common.SOCA, and the model that went into it."""
    torch.manual_seed(0)
    model = Model("SOCA-n.yaml", nc=2)
    ours = model.model[24]
    theirs = PastedSOCA(256)
    nn.init.normal_(theirs.conv_du[2].weight, std=3)  # gates far from one half
    theirs.i, theirs.f, theirs.np, theirs.type = ours.i, ours.f, ours.np, ours.type
    model.model[24] = theirs
    for conv in model.model[-1].m:
        nn.init.normal_(conv.bias, std=1)  # as if it had learnt to see something
        nn.init.normal_(conv.weight, std=0.3)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for momentum in (0.5, 0.5, 0.5, 0.03):  # statistics that keep the features alive
        for m in norms:
            m.momentum = momentum
        with torch.no_grad():
            model.train()(torch.rand(4, 3, 96, 96))
    # half-precision numbers from here on, which is what the file holds
    model.half().float()
    path = tmp_path / "pasted.pt"
    with monkeypatch.context() as patch:
        patch.setattr(common, "SOCA", PastedSOCA)
        torch.save(checkpoint.pack(model), path)
    assert ["models.common", "SOCA"] in globals_of(path)
    _, objects = objects_of(path)
    assert objects["models.common.SOCA"]["count"] == 1
    return path, model.eval()


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (320, 256), (32, 96)], ids=str)
def test_the_pasted_class(pasted, size):
    path, theirs = pasted
    ours = load_model(path, fuse=False)
    assert type(ours.model[24]) is SOCA
    assert dict(ours.model[24].named_children()).keys() == {"conv_du"}  # the max-pool has no use
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = theirs(image)[0], ours(image)[0]
    assert ((got - expected).abs() <= 1e-4 * expected.abs().clamp(min=1)).all()
    for a, b in zip(non_max_suppression(got, 0.2), non_max_suppression(expected, 0.2)):
        assert len(b) > 3
        assert a.shape == b.shape
        assert (a[:, :4] - b[:, :4]).abs().max() <= 1e-2
        assert (a[:, 4] - b[:, 4]).abs().max() <= 1e-4
        assert torch.equal(a[:, 5], b[:, 5])
    # the gate matters to these boxes
    with torch.no_grad():
        ours.model[24].conv_du[2].bias -= 3
        assert (ours(image)[0] - expected).abs().max() > 1e-2


def test_the_pasted_class_goes_on(pasted, tmp_path):
    """Fused, stripped, written again, trained on."""
    path, theirs = pasted
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    checkpoint.strip(path, read=load_checkpoint)
    with torch.no_grad():
        expected, fused = theirs(image)[0], load_model(path)(image)[0]
    assert ((fused - expected).abs() <= 2e-4 * expected.abs().clamp(min=1)).all()
    model = load_model(path, fuse=False).train()
    for p in model.parameters():
        p.requires_grad = True
    sum(level.square().mean() for level in model(torch.rand(2, 3, 64, 96))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_same_state_dict(pasted):
    """Weights alone also move: the keys are those of our own model."""
    _, theirs = pasted
    ours = Model("SOCA-n.yaml", nc=2)
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = theirs(image)[0], ours.eval()(image)[0]
    assert ((got - expected).abs() <= 1e-4 * expected.abs().clamp(min=1)).all()
