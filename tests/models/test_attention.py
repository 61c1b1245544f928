"""The attention blocks: each against its paper as slow loops in numpy, all against the rules for every block."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from test_registry import small
from torch import nn

from models import attention, channel_attention
from models.attention import CBAM, ECA, GCT, LSRAG, NLRG, RLNL, Adapter, CoordAttention, Scale, SimAM
from models.backend import load_checkpoint
from models.channel_attention import FCA, MCA, SRM
from models.common import SE, SOCA
from models.registry import keeps_channels, registered
from models.yolo import Model
from utils import checkpoint
from utils.training.optimizer import parameter_groups

KEEPING = registered(planned_by=keeps_channels)
FORMS = [partial(SOCA, unit="sums", start="half"), partial(SOCA, unit="own", rate=0.1), partial(SE, start="half")]
FORMS += [partial(MCA, moment="S"), partial(Scale, start="half")]
BLOCKS = [*KEEPING, *FORMS, NLRG]
OPENING = [block for block in BLOCKS if hasattr(getattr(block, "func", block), "start_as_identity")]


def build(block: type, channels: int = 24) -> nn.Module:
    """A block with every parameter and every statistic of a norm away from its initial value, in float32."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    built = block(channels, channels) if block is NLRG else block(channels)
    with torch.no_grad():
        for p in built.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator) * (p.abs().mean() + 0.1)
        for m in built.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1, generator=generator)
                m.running_var.uniform_(0.5, 1.5, generator=generator)
    return built.eval()


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(block: nn.Module) -> dict[str, np.ndarray]:
    return {key: value.double().numpy() for key, value in block.state_dict().items()}


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def near(a: torch.Tensor, b: np.ndarray, tolerance: float = 2e-6) -> bool:
    return np.abs(a.detach().double().numpy() - b).max() <= tolerance * max(np.abs(b).max(), 1e-30)


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x (C, H, W), w (c, C, k, k), padded to the same size, position by position."""
    k = w.shape[-1]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    y = np.empty((len(w), *x.shape[1:]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            y[:, i, j] = np.tensordot(w, padded[:, i : i + k, j : j + k], 3) + b
    return y


# --- each by its formula ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "kernel"), [(2, 1), (16, 3), (64, 3), (128, 5), (256, 5), (1024, 5), (2048, 7)])
def test_ecas_kernel(channels, kernel):
    """The odd number next to (log2(C) + 1) / 2: (0.5 .. 6 for these)."""
    assert ECA(channels).conv.weight.shape == (1, 1, kernel)


def test_eca_by_hand():
    block, x = build(ECA), image(2, 24, 5, 7) + 1
    w = weights(block)["conv.weight"][0, 0]
    assert len(w) == 3
    expected = x.double().numpy().copy()
    for y in expected:
        means = np.concatenate([[0], y.mean((1, 2)), [0]])
        for c in range(24):
            y[c] *= sigma(sum(w[k] * means[c + k] for k in range(3)))
    assert near(block(x), expected)


def test_cbam_by_hand():
    block, x = build(CBAM), image(2, 24, 8, 9)
    state = weights(block)

    def mlp(v):
        hidden = np.maximum(state["mlp.0.weight"][:, :, 0, 0] @ v + state["mlp.0.bias"], 0)
        return state["mlp.2.weight"][:, :, 0, 0] @ hidden + state["mlp.2.bias"]

    expected = []
    for y in x.double().numpy():
        y = y * sigma(mlp(y.mean((1, 2))) + mlp(y.max((1, 2))))[:, None, None]
        pooled = np.stack([y.mean(0), y.max(0)])
        expected.append(y * sigma(conv(pooled, state["spatial.weight"], state["spatial.bias"])))
    assert near(block(x), np.stack(expected))


def test_coordinate_attention_by_hand():
    block, x = build(CoordAttention), image(2, 24, 5, 7)
    state = weights(block)

    def shared(v):  # v (C,), one row or column
        y = state["shared.0.weight"][:, :, 0, 0] @ v + state["shared.0.bias"]
        y = (y - state["shared.1.running_mean"]) / np.sqrt(state["shared.1.running_var"] + 1e-5)
        y = y * state["shared.1.weight"] + state["shared.1.bias"]
        return y * np.clip(y + 3, 0, 6) / 6

    expected = x.double().numpy().copy()
    for source, y in zip(x.double().numpy(), expected):
        for i in range(5):
            gate = state["rows.weight"][:, :, 0, 0] @ shared(source[:, i].mean(1)) + state["rows.bias"]
            y[:, i] *= sigma(gate)[:, None]
        for j in range(7):
            gate = state["columns.weight"][:, :, 0, 0] @ shared(source[:, :, j].mean(1)) + state["columns.bias"]
            y[:, :, j] *= sigma(gate)[:, None]
    assert near(block(x), expected)


def test_simam_by_hand():
    """The energy of equation 5, value by value."""
    x = image(2, 3, 4, 5)
    expected = x.double().numpy().copy()
    for channel in expected.reshape(6, 20):
        mean, variance = channel.mean(), channel.var(ddof=1)
        for m, t in enumerate(channel.copy()):
            energy = 4 * (variance + 1e-4) / ((t - mean) ** 2 + 2 * variance + 2e-4)
            channel[m] = t * sigma(1 / energy)
    assert near(SimAM(3)(x), expected)


def test_gct_by_hand():
    block, x = build(GCT), image(2, 24, 5, 7)
    state = {key: value.ravel() for key, value in weights(block).items()}
    expected = x.double().numpy().copy()
    for y in expected:
        s = np.array([a * np.sqrt((channel**2).sum() + 1e-5) for a, channel in zip(state["alpha"], y)])
        s = np.sqrt(24) * s / np.sqrt((s**2).sum() + 1e-5)
        y *= (1 + np.tanh(state["gamma"] * s + state["beta"]))[:, None, None]
    assert near(block(x), expected)


def non_local(x: np.ndarray, state: dict) -> np.ndarray:
    """x (C, h, w), position by position."""
    C, h, w = x.shape
    flat = x.reshape(C, h * w)
    theta, phi, g = (
        state[f"{k}.weight"][:, :, 0, 0] @ flat + state[f"{k}.bias"][:, None] for k in ("theta", "phi", "g")
    )
    y = flat.copy()
    for i in range(h * w):
        score = np.array([theta[:, i] @ phi[:, j] for j in range(h * w)])
        share = np.exp(score) / np.exp(score).sum()
        y[:, i] += state["W.weight"][:, :, 0, 0] @ (g @ share) + state["W.bias"]
    return y.reshape(C, h, w)


@pytest.mark.parametrize(("grid", "rows", "columns"), [(1, [6], [7]), (2, [3, 3], [3, 4]), (3, [2, 2, 2], [2, 2, 3])])
def test_rlnl_by_hand(grid, rows, columns):
    block, x = build(lambda channels: RLNL(channels, grid), 8), image(2, 8, 6, 7)
    state = weights(block)
    expected = x.double().numpy().copy()
    for y in expected:
        top = 0
        for h in rows:
            left = 0
            for w in columns:
                cell = np.s_[:, top : top + h, left : left + w]
                y[cell] = non_local(y[cell], state)
                left += w
            top += h
    assert near(block(x), expected, 1e-5)


def test_scale_by_hand():
    """One number per channel, whatever the image; as a gate it starts at 1/2, and at sigma(4) among trained layers."""
    block, x = build(Scale), image(2, 24, 6, 7)
    numbers = weights(block)["scale"].ravel()
    expected = x.double().numpy() * numbers[:, None, None]
    assert near(block(x), expected)
    assert block.gate(x).shape == (2, 24, 1, 1) and near(block.gate(x)[1].ravel(), numbers)
    assert (Scale(4).scale == 0.5).all()
    block.start_as_identity()
    assert near(block.gate(x), np.full((2, 24, 1, 1), sigma(np.float64(4))))


def test_adapter_by_hand():
    block, x = build(Adapter), image(2, 24, 6, 7)
    w = weights(block)
    pixels = x.double().numpy().transpose(0, 2, 3, 1)  # one position after another
    hidden = np.maximum(pixels @ w["down.weight"][:, :, 0, 0].T + w["down.bias"], 0)
    added = hidden @ w["up.weight"][:, :, 0, 0].T + w["up.bias"]
    assert near(block(x), (pixels + added).transpose(0, 3, 1, 2))


def test_regions_do_not_see_each_other():
    block, x = build(RLNL), image(1, 24, 8, 8)
    changed = x.clone()
    changed[:, :, :4, :4] += 1
    before, after = block(x), block(changed)
    assert torch.equal(before[:, :, 4:], after[:, :, 4:])
    assert torch.equal(before[:, :, :, 4:], after[:, :, :, 4:])
    assert not torch.isclose(before[:, :, :4, :4], after[:, :, :4, :4]).any()


def group_by_hand(x: np.ndarray, state: dict, prefix: str, count: int, soca: nn.Module) -> np.ndarray:
    """One image through a group; SOCA itself is proven in test_attention.py."""
    y = x
    for k in range(count):
        names = [f"{prefix}blocks.{k}.conv{i}" for i in (1, 2)]
        hidden = np.maximum(conv(y, state[f"{names[0]}.weight"], state[f"{names[0]}.bias"]), 0)
        y = y + conv(hidden, state[f"{names[1]}.weight"], state[f"{names[1]}.bias"])
    y = soca.double()(torch.from_numpy(y)[None])[0].detach().numpy()
    return x + conv(y, state[f"{prefix}conv.weight"], state[f"{prefix}conv.bias"])


def test_lsrag_by_hand():
    block, x = build(LSRAG, 8), image(2, 8, 5, 6)
    soca = copy.deepcopy(block.soca)
    expected = [group_by_hand(y, weights(block), "", 2, soca) for y in x.double().numpy()]
    assert near(block(x), np.stack(expected), 1e-5)


def test_nlrg_by_hand():
    """The source is added to the output of every group, weighted by one number."""
    block, x = build(lambda _: NLRG(8, 12, 3, 1, 2, 4, 0.5)), image(1, 8, 6, 5)
    state = weights(block)
    part = lambda name: {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}  # noqa: E731

    def regions(y, w):
        y = y.copy()
        for cell in (np.s_[:, :3, :2], np.s_[:, :3, 2:], np.s_[:, 3:, :2], np.s_[:, 3:, 2:]):
            y[cell] = non_local(y[cell], w)
        return y

    y = source = regions(block.cv1(x)[0].detach().double().numpy(), part("head"))
    assert y.shape == (6, 6, 5)
    for k in range(3):
        y = group_by_hand(y, state, f"groups.{k}.", 1, copy.deepcopy(block.groups[k].soca)) + state["share"] * source
    expected = block.cv2(torch.from_numpy(regions(y, part("tail"))[None]).float())
    assert near(block(x), expected.detach().double().numpy(), 2e-5)


# --- what every block does --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 24, 6, 9), (1, 24, 1, 1), (3, 24, 1, 5), (1, 24, 3, 2)], ids=str)
@pytest.mark.parametrize("block", BLOCKS)
def test_any_map(block, shape):
    built, x = build(block), image(*shape).requires_grad_()
    for mode in (False, True):
        if mode and block is NLRG and shape[0] * shape[2] * shape[3] == 1:
            continue  # batch norm has nothing to average
        y = built.train(mode)(x)
        assert y.shape == x.shape
        assert y.isfinite().all()
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.1])
@pytest.mark.parametrize("block", BLOCKS)
def test_maps_without_variance(block, value):
    x = torch.full((2, 24, 4, 4), value, requires_grad=True)
    y = build(block)(x)
    y.square().sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_learns_and_is_optimised(block):
    built = build(block, 128)  # wide enough that no ReLU is silent throughout
    built.train()(image(4, 128, 6, 6).abs().requires_grad_()).square().sum().backward()
    names = dict(built.named_parameters())
    assert [name for name, p in names.items() if p.grad is None or not p.grad.abs().max() > 0] == []
    groups = parameter_groups(built)
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert not {"alpha", "gamma", "beta", "share"} & (set(groups.weights) | set(groups.biases))


@pytest.mark.parametrize("block", BLOCKS)
def test_gradient_by_differences(block):
    built, x = build(block, 6).double(), image(2, 6, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(built, (x,), atol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_images_are_independent_of_their_batch(block):
    built, x = build(block), image(3, 24, 6, 7)
    for k, together in enumerate(built(x)):
        assert near(built(x[k : k + 1])[0], together.detach().double().numpy(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("block", BLOCKS)
def test_other_types(block, dtype):
    built, x = build(block), image(2, 24, 6, 7)
    y = copy.deepcopy(built).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert near(y, built(x).detach().double().numpy(), 16 * torch.finfo(dtype).eps + 1e-5)


@pytest.mark.parametrize("block", [ECA, CBAM, CoordAttention, SimAM, GCT, SE, SOCA, SRM, MCA, FCA])
def test_loud_maps_in_half_precision(block):
    """Values whose squares and sums overflow in half precision."""
    built, x = build(block).half(), (1000 * image(2, 24, 20, 20)).half()
    assert built(x).isfinite().all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("half", [False, True])  # what comes in is float32, or what a convolution gives
@pytest.mark.parametrize("block", BLOCKS)
def test_autocast(block, half, kind):
    given = kind if half else torch.float32
    built, x = build(block), image(2, 24, 6, 7).to(given).requires_grad_()
    with torch.autocast("cpu", kind):
        y = built(x)
    y.float().square().sum().backward()
    assert y.dtype == (kind if block is NLRG else given)
    assert all(t.grad.isfinite().all() for t in (x, *built.parameters()))
    assert near(y, built(x.float()).detach().double().numpy(), 16 * max(torch.finfo(t).eps for t in (kind, given)))


def test_scores_are_never_all_held():
    """A region of M positions has M^2 scores; forward and backward hold far fewer numbers."""
    block, x = RLNL(8, grid=1), image(1, 8, 48, 48).requires_grad_()
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
        y = block(x)
    y.sum().backward()
    assert max(held) < 48**4 / 100


@pytest.mark.parametrize("block", BLOCKS)
def test_deterministic_and_any_memory_format(block):
    built, x = build(block), image(2, 24, 6, 7).requires_grad_()
    y = [built(x) for _ in range(2)]
    gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in y]
    assert torch.equal(*y)
    assert torch.equal(*gradients)
    last = built.to(memory_format=torch.channels_last)(x.detach().contiguous(memory_format=torch.channels_last))
    assert near(last, y[0].detach().double().numpy(), 1e-5)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("block", BLOCKS)
def test_exported_and_traced(block):
    built, x, other = build(block), image(2, 24, 6, 8), image(2, 24, 6, 8, seed=1)
    expected = built(other).detach().double().numpy()
    assert near(torch.export.export(built, (x,)).module()(other), expected, 1e-5)
    with torch.no_grad():
        assert near(torch.jit.trace(built, x)(other), expected, 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_onnx(tmp_path):
    """All blocks one after another, as ONNX Runtime computes them."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    blocks = nn.Sequential(*(build(block) for block in BLOCKS)).eval()
    path = tmp_path / "blocks.onnx"
    torch.onnx.export(blocks, (image(2, 24, 6, 8),), path, dynamo=False, opset_version=17)
    session, other = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]), image(2, 24, 6, 8, seed=1)
    (y,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    assert near(blocks(other), y.astype(np.float64), 2e-5)


@pytest.mark.parametrize("block", OPENING)
def test_start_as_identity(block):
    built, x = build(block), image(2, 24, 6, 7)
    with torch.no_grad():
        for name, p in built.named_parameters():  # as built, but for what start_as_identity sets
            p *= 0.1 if name.endswith("weight") else 1
    built.start_as_identity()
    assert near(built(x), x.double().numpy(), 0.06)
    built(x).square().sum().backward()
    assert any(p.grad.abs().max() > 0 for p in built.parameters())


@pytest.mark.parametrize("block", [GCT, RLNL, Adapter, FORMS[-1]])
def test_identity_as_built(block):
    x = image(2, 24, 6, 7)
    assert torch.equal(block(24)(x), x)


def test_which_blocks_open():
    assert set(BLOCKS) - set(OPENING) == {SimAM, NLRG}


@pytest.mark.parametrize("block", KEEPING)
def test_in_a_model(block):
    model = Model({**small(), "insert": [{"after": "P2+B3", "module": block.__name__}]})
    assert [layer.i for layer in model.model if isinstance(layer, block)] == [4, 8]
    raw = model.train()(torch.rand(2, 3, 64, 64))
    sum(m.square().sum() for m in raw).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_checkpoints_hold_every_block(tmp_path):
    rows = [{"after": 2, "module": block.__name__} for block in KEEPING]
    model = Model({**small(backbone__2=[-1, 1, "NLRG", [64]]), "insert": rows}).eval()
    checkpoint.save(tmp_path / "all.pt", {"model": model, "ema": None})
    loaded = load_checkpoint(tmp_path / "all.pt")["model"]
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x)[0], model(x)[0])
    assert Model(loaded.yaml).load_state_dict(model.state_dict())  # the YAML inside builds the same


def test_nlrg_is_a_stage():
    model = Model(small(backbone__2=[-1, 4, "NLRG", [64, 1, 2, 4]]))
    stage = model.model[2]
    assert (len(stage.groups), len(stage.groups[0].blocks)) == (2, 1)  # four at half the depth
    assert stage.cv2.conv.out_channels == 32
    assert stage.groups[0].soca.conv_du[0].out_channels == 4
    assert model.fuse().eval()(torch.rand(1, 3, 64, 64))[0].isfinite().all()


def test_every_block_of_the_files_is_registered():
    for file in (attention, channel_attention):
        found = {c for c in vars(file).values() if isinstance(c, type) and c.__module__ == file.__name__}
        assert found - {*KEEPING, NLRG} <= {attention.ResidualBlock}


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: ECA(24, 4), "odd, got 4"), (lambda: CBAM(24, 16, 6), "odd, got 6"), (lambda: RLNL(24, 0), "got 0")],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
