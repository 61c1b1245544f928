"""SOCA and SE as modules: the gate against a formula written out here, types, edges, exports, and the names that pasted
SOCA code calls.
"""

import copy

import pytest
import torch
from test_second_order import coupled, make, near
from torch import nn

from models.common import SE, SOCA, Covpool, CovpoolLayer, Sqrtm, SqrtmLayer
from models.second_order import second_order_statistic

ATTENTION = [SOCA, SE]


def gate_by_hand(block: nn.Module, s: torch.Tensor) -> torch.Tensor:
    """s (N, C) -> (N, C, 1, 1), from the state dict alone."""
    state = {k: v.double() for k, v in block.state_dict().items()}
    hidden = (s.double() @ state["conv_du.0.weight"][:, :, 0, 0].T + state["conv_du.0.bias"]).clamp(min=0)
    logits = hidden @ state["conv_du.2.weight"][:, :, 0, 0].T + state["conv_du.2.bias"]
    return (1 / (1 + torch.exp(-logits)))[:, :, None, None]


# --- what they compute ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["white", "correlated", "offset"])
@pytest.mark.parametrize("shape", [(2, 64, 9, 9), (3, 40, 5, 7), (1, 256, 20, 20)], ids=str)
def test_soca_by_hand(shape, kind):
    block, x = SOCA(shape[1]), make(kind, shape)
    assert near(block(x).double(), gate_by_hand(block, coupled(x.double())) * x.double(), 1e-5)


@pytest.mark.parametrize("shape", [(2, 64, 9, 9), (3, 40, 5, 7), (1, 32, 1, 1)], ids=str)
def test_se_by_hand(shape):
    block, x = SE(shape[1]), make("offset", shape) / 100
    assert near(block(x).double(), gate_by_hand(block, x.double().mean((2, 3))) * x.double(), 1e-6)


@pytest.mark.parametrize("block", ATTENTION)
def test_state_keys(block):
    shapes = {k: tuple(v.shape) for k, v in block(64, 8).state_dict().items()}
    assert shapes == {
        "conv_du.0.weight": (8, 64, 1, 1),
        "conv_du.0.bias": (8,),
        "conv_du.2.weight": (64, 8, 1, 1),
        "conv_du.2.bias": (64,),
    }


@pytest.mark.parametrize(
    ("block", "arguments", "hidden"),
    [
        (SOCA, (64,), 8),  # reduction 8 unless given
        (SE, (64,), 4),  # and 16
        (SOCA, (64, 4), 16),
        (SOCA, (60,), 7),  # rounded down
        (SOCA, (8,), 1),
        (SOCA, (7,), 1),  # never below 1
        (SOCA, (1,), 1),
        (SE, (12,), 1),
    ],
)
def test_hidden_width(block, arguments, hidden):
    built = block(*arguments)
    assert built.conv_du[0].out_channels == hidden
    x = torch.randn(2, arguments[0], 3, 3)
    assert built(x).shape == x.shape


@pytest.mark.parametrize("shape", [(2, 6, 3, 3), (1, 10, 2, 2)], ids=str)
@pytest.mark.parametrize("block", ATTENTION)
def test_gradient_by_differences(block, shape):
    built, x = block(shape[1], 2).double(), make("white", shape).double().requires_grad_()
    assert torch.autograd.gradcheck(built, (x,))
    parameters = tuple(p.detach().requires_grad_() for p in built.parameters())
    names = [name for name, _ in built.named_parameters()]
    call = lambda *p: torch.func.functional_call(built, dict(zip(names, p)), (x.detach(),))  # noqa: E731
    assert torch.autograd.gradcheck(call, parameters)


def test_the_gate_sees_more_than_the_input_it_multiplies():
    """The gradient of x through s alone, without the part that goes through the product."""
    block, x = SOCA(32), make("correlated", (2, 32, 9, 9)).requires_grad_()
    (whole,) = torch.autograd.grad(block(x).square().sum(), x)
    gate = block.conv_du(second_order_statistic(x)[:, :, None, None]).detach()
    (product,) = torch.autograd.grad((gate * x).square().sum(), x)
    assert (whole - product).abs().max() > 1e-3 * product.abs().max()


@pytest.mark.parametrize("block", ATTENTION)
def test_every_parameter_learns(block):
    built = block(32, 2)
    built(make("white", (4, 32, 9, 9)).abs()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in built.parameters())


@pytest.mark.parametrize("shape", [(4, 64, 7, 7), (4, 24, 9, 9)], ids=str)
@pytest.mark.parametrize("block", ATTENTION)
def test_images_are_independent_of_their_batch(block, shape):
    built, x = block(shape[1]), make("white", shape)
    for k, together in enumerate(built(x)):
        assert near(built(x[k : k + 1])[0], together, 1e-6)


def test_the_gate_does_not_know_where_things_are():
    block, x = SOCA(24), make("correlated", (2, 24, 8, 8))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    assert near(block(shuffled), block(x).flatten(2)[:, :, order].view_as(x), 1e-5)


@pytest.mark.parametrize(("height", "width"), [(1000, 2), (1001, 2), (2, 1203)])
def test_the_whole_map_is_multiplied(height, width):
    block, x = SOCA(4), make("white", (1, 4, height, width))
    y = block(x)
    assert y.shape == x.shape
    gate = y[:, :, :1, :1] / x[:, :, :1, :1]
    assert torch.allclose(y, gate * x, rtol=1e-5, atol=0)


# --- without variance -------------------------------------------------------------------------------------------------


def without_variance() -> dict[str, torch.Tensor]:
    channels = 0.1 * (1 + torch.arange(24) / 7)
    return {
        "zeros": torch.zeros(1, 24, 6, 6),
        "constants float32 cannot hold": channels.view(1, 24, 1, 1).repeat(1, 1, 6, 6),
        "one position": channels.view(1, 24, 1, 1).clone(),
    }


@pytest.mark.parametrize("kind", without_variance())
def test_without_variance(kind):
    """The gate is the small network at 0, and x gets gate * dL/dy, exactly."""
    block, x = SOCA(24), without_variance()[kind].requires_grad_()
    grad_y = torch.randn_like(x)
    y = block(x)
    y.backward(grad_y)
    gate = block.conv_du(torch.zeros(1, 24, 1, 1))
    assert torch.equal(y, gate * x)
    assert torch.equal(x.grad, gate * grad_y)
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_without_variance_inside_a_batch():
    block = SOCA(24)
    x = torch.cat([make("white", (1, 24, 6, 6)), without_variance()["zeros"]]).requires_grad_()
    grad_y = torch.randn_like(x)
    block(x).backward(grad_y)
    gate = block.conv_du(torch.zeros(1, 24, 1, 1))
    assert x.grad.isfinite().all()
    assert near(x.grad[1:], gate * grad_y[1:], 1e-6)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["white", "zero"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("block", ATTENTION)
def test_whole_module_in_another_type(block, dtype, kind):
    built, x = block(48), make("white", (2, 48, 9, 9)) * (kind == "white")
    y = copy.deepcopy(built).to(dtype)(x.to(dtype).requires_grad_())
    assert y.dtype == dtype
    assert y.isfinite().all()
    y.square().sum().backward()
    assert near(y.float(), built(x), 4 * torch.finfo(dtype).eps + 1e-6) or kind == "zero"


@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block", ATTENTION)
def test_autocast(block, autocast, given):
    built, x = block(48), make("white", (2, 48, 9, 9)).to(given).requires_grad_()
    with torch.autocast("cpu", autocast):
        y = built(x)
        loss = y.float().square().sum()
    loss.backward()
    assert y.dtype == given
    assert y.isfinite().all()
    assert x.grad.dtype == given
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in built.parameters())
    assert near(y.float(), built(x.float()), 8 * max(torch.finfo(autocast).eps, torch.finfo(given).eps))


@pytest.mark.parametrize("block", ATTENTION)
def test_deterministic(block):
    built, x = block(64), make("white", (3, 64, 7, 7)).requires_grad_()
    y = [built(x) for _ in range(2)]
    gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in y]
    assert torch.equal(*y)
    assert torch.equal(*gradients)


# --- trace, export, compile, copy -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("block", ATTENTION)
def test_traced_saved_loaded(block, tmp_path):
    built, x = block(24).eval(), make("white", (2, 24, 6, 6))
    torch.jit.trace(built, x).save(tmp_path / "block.torchscript")
    loaded = torch.jit.load(tmp_path / "block.torchscript")
    for inputs in (x, make("correlated", (2, 24, 6, 6)), torch.zeros_like(x)):
        assert near(loaded(inputs), built(inputs), 1e-6)


@pytest.mark.parametrize("block", ATTENTION)
def test_exported(block):
    built, x = block(24).eval(), make("white", (2, 24, 6, 6))
    program = torch.export.export(built, (x,))
    for inputs in (x, torch.zeros_like(x)):
        assert near(program.module()(inputs), built(inputs), 1e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("block", ATTENTION)
def test_compiled(block, backend):
    built = block(24)
    compiled = torch.compile(built, backend=backend, fullgraph=True)
    x = torch.cat([make("white", (1, 24, 6, 6)), torch.zeros(1, 24, 6, 6)]).requires_grad_()
    y, expected = compiled(x), built(x)
    assert near(y, expected, 1e-6)
    inputs = [x, *built.parameters()]
    for a, b in zip(torch.autograd.grad(y.cos().sum(), inputs), torch.autograd.grad(expected.cos().sum(), inputs)):
        assert near(a, b, 2e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("block", ATTENTION)
def test_copies(block):
    built, x = block(24), make("white", (2, 24, 6, 6))
    assert torch.equal(copy.deepcopy(built)(x), built(x))


# --- the names that pasted code calls ---------------------------------------------------------------------------------


def test_pasted_names_compute_covariance_and_root():
    x = make("correlated", (2, 12, 6, 6)).double()
    flat = x.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    S = torch.einsum("ncm,nkm->nck", centred, centred) / 36
    for covariance in (CovpoolLayer, Covpool.apply):
        assert torch.allclose(covariance(x), S, rtol=1e-10, atol=1e-12)
    values, Q = torch.linalg.eigh(S)
    for count in (3, 5):
        y, z = values / values.sum(1, keepdim=True), torch.ones_like(values)
        for _ in range(count):
            t = (3 - z * y) / 2
            y, z = y * t, z * t
        root = (Q * (y * values.sum(1, keepdim=True).sqrt())[:, None]) @ Q.mT
        for square_root in (SqrtmLayer, Sqrtm.apply):
            assert torch.allclose(square_root(S, count), root, rtol=1e-9, atol=1e-12)
    assert torch.equal(Sqrtm.apply(S), SqrtmLayer(S, 5))


def test_pasted_names_build_the_same_attention():
    """A block that uses them gives the same output as SOCA."""
    block, x = SOCA(16), make("white", (2, 16, 6, 6))
    s = SqrtmLayer(CovpoolLayer(x), 5).mean(1)
    assert near(block.conv_du(s[:, :, None, None]) * x, block(x), 1e-6)


def test_pasted_names_differentiate_for_any_use():
    x = make("white", (2, 4, 3, 3)).double().requires_grad_()
    weights = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: (weights * Sqrtm.apply(Covpool.apply(x), 5)).cos(), (x,))
    assert torch.autograd.gradcheck(lambda x: SqrtmLayer(CovpoolLayer(x))[:, 0], (x,))
