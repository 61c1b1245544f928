"""Whole models: every YAML from scratch, the SOCA family, the head's bookkeeping, fusing.

Numbers recorded from release 6.1 are in test_yolo_parity.py.
"""

import copy
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from models.common import SOCA, Conv
from models.experimental import Ensemble
from models.yolo import Detect, DetectionModel, Model, main, make_parser, scale_image
from utils import cli
from utils.files import ROOT, read_yaml

YAMLS = sorted(  # those of models/places are built in test_insert.py
    p for p in (ROOT / "models").rglob("*.yaml") if p.name != "anchors.yaml" and p.parent.name != "places"
)
FAMILY = {  # and the plain sister, and the width of what goes to the coarsest map
    "SOCA-n": ("yolov5n", 256),
    "SOCA": ("yolov5s", 512),
    "SOCA-m": ("yolov5m", 768),
    "SOCA-l": ("yolov5l", 1024),
    "SOCA-x": ("yolov5x", 1280),
}


@pytest.fixture(scope="module")
def soca() -> Model:
    torch.manual_seed(0)
    return Model("SOCA.yaml")


# --- from scratch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_every_yaml_from_scratch(path):
    model = Model(path)
    assert model.yaml_file == path.name
    assert all(b.isfinite().all() for b in model.buffers())
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.training
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:  # nothing has been learned
        assert m.num_batches_tracked == 0
        assert (m.running_mean == 0).all()
        assert (m.running_var == 1).all()
    assert norms
    assert [layer.i for layer in model.model] == list(range(len(model.model)))
    assert sum(layer.np for layer in model.model) == sum(p.numel() for p in model.parameters())
    assert model.names == [str(i) for i in range(80)]
    assert model.stride.tolist() == model.model[-1].stride.tolist()


@pytest.mark.parametrize(
    ("cfg", "multiple"), [("hub/yolov5-p34.yaml", 32), ("yolov5n.yaml", 32), ("hub/yolov5n6.yaml", 64)]
)
def test_image_sides_are_multiples_of_the_largest_stride_and_of_32(cfg, multiple):
    model = Model(ROOT / "models" / cfg)
    assert model.image_multiple == multiple
    assert Ensemble([Model("yolov5n.yaml"), model]).image_multiple == multiple


def test_the_soca_model(soca):
    assert sum(p.numel() for p in soca.parameters()) == 7_301_501
    head = soca.model[-1]
    assert isinstance(soca.model[24], SOCA)
    assert isinstance(head, Detect)
    assert head.f == [17, 20, 24]
    assert soca.stride.tolist() == [8, 16, 32]
    assert soca.model[24].np == 512 * 64 + 64 + 64 * 512 + 512
    assert soca.save == [4, 6, 10, 14, 17, 20, 24]
    assert soca.model[24].type == "models.common.SOCA"


@pytest.mark.parametrize("name", FAMILY)
def test_the_family(name):
    """Each is its plain sister with one row more."""
    sister, channels = FAMILY[name]
    mine, plain = (read_yaml(ROOT / "models" / f"{name}.yaml") for name in (name, sister))
    assert mine.pop("head") == [
        *plain["head"][:-1],
        [-1, 1, "SOCA", [1024]],
        [[17, 20, 24], 1, "Detect", ["nc", "anchors"]],
    ]
    assert mine == {k: v for k, v in plain.items() if k != "head"}
    added = sum(p.numel() for p in Model(f"{name}.yaml").parameters())
    added -= sum(p.numel() for p in Model(f"{sister}.yaml").parameters())
    assert added == 2 * channels * (channels // 8) + channels // 8 + channels


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = Model("SOCA.yaml", nc=3)
    raw = model(torch.rand(2, 3, 128, 160))
    sum(level.square().mean() for level in raw).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_attention_reaches_only_the_coarsest_map(soca):
    changed = copy.deepcopy(soca).eval().double()  # a new network's features may be 1e-9 beside biases of -4
    image = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        before = changed(image)[1]
        changed.model[24].conv_du[2].bias += 1
        after = changed(image)[1]
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_short_way_of_decoding(dtype, memory_format):
    """Under inference mode every score is written once, to its final position: the same boxes and raw maps."""
    model = Model("yolov5n.yaml", nc=3).eval().to(dtype).to(memory_format=memory_format)
    image = torch.rand(2, 3, 64, 96).to(dtype)
    with torch.no_grad():
        decoded, raw = model(image)
    with torch.inference_mode():
        short, short_raw = model(image)
    assert short.dtype == decoded.dtype and short.is_contiguous()
    torch.testing.assert_close(short, decoded, rtol=1e-6, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(raw, short_raw))


# --- construction -----------------------------------------------------------------------------------------------------


def test_overrides(caplog):
    with caplog.at_level(logging.INFO, logger="yolov5"):
        model = Model("yolov5n.yaml", ch=1, nc=3, anchors=2.4)
    assert "yolov5n.yaml: nc is 80, but the data set has 3 classes; using 3" in caplog.text
    head = model.model[-1]
    assert model.yaml["ch"] == 1
    assert model.yaml["nc"] == head.nc == 3
    assert (head.na, head.no) == (2, 8)
    assert model.names == ["0", "1", "2"]
    assert model.model[0].conv.in_channels == 1


@pytest.mark.parametrize("nc", [None, 0, 80])
def test_no_override_no_message(nc, caplog):
    with caplog.at_level(logging.INFO, logger="yolov5"):
        model = Model("yolov5n.yaml", nc=nc)
    assert "becomes" not in caplog.text
    assert model.yaml["nc"] == 80


def test_anchors_go_with_the_strides_by_their_pixels(caplog):
    cfg = read_yaml(ROOT / "models" / "yolov5n.yaml")
    rising = [[20, 20], [30, 30], [40, 40]]  # in cells they shrink: 2.5, 1.9, 1.25
    for anchors in (rising, rising[::-1]):
        head = Model({**cfg, "anchors": anchors}).model[-1]
        assert (head.anchors * head.stride.view(-1, 1, 1)).flatten(1).tolist() == rising
    assert caplog.text.count("reversing") == 1


def test_the_file_may_be_named_in_several_ways(tmp_path, monkeypatch):
    for cfg in ("SOCA-n.yaml", "models/SOCA-n.yaml", ROOT / "models" / "SOCA-n.yaml", read_yaml(YAMLS[0])):
        Model(cfg)
    monkeypatch.chdir(tmp_path)
    Model("models/SOCA-n.yaml")


def test_its_later_name():
    assert DetectionModel is Model


def test_norm_settings(soca):
    norms = [m for m in soca.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}
    assert all(m.inplace for m in soca.modules() if isinstance(m, nn.SiLU | nn.ReLU))


# --- running ----------------------------------------------------------------------------------------------------------


def test_shapes_by_mode(soca):
    image = torch.rand(2, 3, 64, 96)
    raw = soca.train()(image)
    assert [tuple(m.shape) for m in raw] == [(2, 3, 8, 12, 85), (2, 3, 4, 6, 85), (2, 3, 2, 3, 85)]
    with torch.no_grad():
        decoded, raw = soca.eval()(image)
    soca.train()
    assert decoded.shape == (2, 3 * (96 + 24 + 6), 85)
    assert len(raw) == 3
    assert ((decoded[..., 4:] >= 0) & (decoded[..., 4:] <= 1)).all()


def test_one_position_at_the_coarsest_map(soca):
    """A 32-pixel image leaves SOCA a 1 x 1 map, without covariance."""
    model = copy.deepcopy(soca).eval()
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    decoded = model(x)[0]
    decoded.sum().backward()
    assert decoded.isfinite().all()
    assert x.grad.isfinite().all()


def test_an_empty_image(soca):
    model = copy.deepcopy(soca).train()
    raw = model(torch.zeros(2, 3, 64, 64))
    sum(m.square().mean() for m in raw).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_fusing_changes_nothing_but_the_speed(soca):
    model = copy.deepcopy(soca)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.normal_(m.running_mean, std=0.1)
    image = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        plain = model.eval()(image)[0]
        fused = model.fuse()(image)[0]
        again = model.fuse()(image)[0]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert ((plain - fused).abs() <= 2e-4 * plain.abs().clamp(min=1)).all()
    assert torch.equal(fused, again)


def test_fusing_keeps_the_mode():
    conv = Conv(3, 8)
    assert conv.training
    conv.fuse()
    assert conv.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(soca, dtype):
    model = copy.deepcopy(soca).eval().to(dtype)
    with torch.no_grad():
        decoded, raw = model(torch.rand(1, 3, 64, 64).to(dtype))
    assert decoded.isfinite().all()
    assert all(m.dtype == dtype for m in raw)
    # coordinates above 512 px need more than 11 bits
    assert decoded.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_under_autocast(soca):
    model = copy.deepcopy(soca).train()
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(torch.rand(2, 3, 64, 64))
        loss = sum(m.float().square().mean() for m in raw)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_augmented(soca):
    model = copy.deepcopy(soca).eval()
    with torch.no_grad():
        decoded, raw = model(torch.rand(1, 3, 64, 64), augment=True)
    assert raw is None
    # 64 px: 64 + 16 + 4 cells without the coarsest 4; 53 -> 64 px: all; 42 -> 64 px: without the finest 64
    assert decoded.shape == (1, 3 * (80 + 84 + 20), 85)


def test_negative_layer_numbers():
    d = read_yaml(ROOT / "models" / "SOCA-n.yaml")
    relative = copy.deepcopy(d)
    relative["head"][2][0] = [-1, -6]  # row 12 of the model: layers 11 and 6
    assert Model(relative).save == Model(d).save


def test_copies_are_independent(soca):
    twin = copy.deepcopy(soca)
    with torch.no_grad():
        twin.model[24].conv_du[0].weight.zero_()
    assert soca.model[24].conv_du[0].weight.abs().max() > 0


def test_channels_last(soca):
    model = copy.deepcopy(soca).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain = model(image)[0]
        last = model.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))[0]
    assert ((plain - last).abs() <= 1e-4 * plain.abs().clamp(min=1)).all()


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_traced(soca):
    model = copy.deepcopy(soca).eval()
    image, other = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, image)
        for x in (image, other):
            for a, b in zip(traced(x)[0], model(x)[0]):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_ensemble(soca):
    members = [copy.deepcopy(soca).eval() for _ in range(2)]
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        together = Ensemble(members).eval()(image)[0]
        alone = members[0](image)[0]
    assert together.shape[1] == 2 * alone.shape[1]


@pytest.mark.parametrize(
    ("ratio", "keep_shape", "size"),
    [
        (1, False, (48, 80)),
        (0.5, False, (32, 64)),  # 24 x 40, padded up to multiples of 32
        (0.83, False, (64, 96)),  # 39 x 66
        (0.5, True, (48, 80)),
    ],
)
def test_scaled_images(ratio, keep_shape, size):
    image = torch.rand(1, 3, 48, 80)
    scaled = scale_image(image, ratio, 32, keep_shape)
    assert tuple(scaled.shape[2:]) == size
    assert (scaled[..., int(48 * ratio) :, :] == 0.447).all()
    assert (scaled[..., int(80 * ratio) :] == 0.447).all()


# --- command line -----------------------------------------------------------------------------------------------------


def test_info(soca, caplog):
    with caplog.at_level(logging.INFO, logger="yolov5"):
        soca.info()
    assert "SOCA.yaml: " in caplog.text
    assert "7,301,501 parameters" in caplog.text
    assert "GFLOPs at 640 px" in caplog.text
    assert soca.training


def test_command_line(caplog):
    with caplog.at_level(logging.DEBUG, logger="yolov5"):  # which also puts the level back that main sets
        main(cli.parse(make_parser(), argv=["--cfg", "SOCA-n.yaml", "--device", "cpu"]))
    assert "models.common.SOCA" in caplog.text
    assert "SOCA-n.yaml: " in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cfg", "no.yaml"], "yolo.py: error: no such file: 'no.yaml'"),
        (["--cfg", "hub/anchors.yaml"], "yolo.py: error: anchors.yaml: a model YAML needs "),
        (["--test", "--cfg", "SOCA.yaml"], "yolo.py: error: --test builds every model YAML"),
        (["--device", "gpu"], "yolo.py: error: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(main, lambda: cli.parse(make_parser(), argv=options), "yolo.py")
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_run_as_a_script(tmp_path):
    command = [sys.executable, str(ROOT / "models" / "yolo.py"), "--cfg", "no.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "yolo.py: error: no such file: 'no.yaml'" in done.stderr and "Traceback" not in done.stderr
