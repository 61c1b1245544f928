"""SOCA's statistic against two truths in float64 that share nothing with it: the plain coupled iteration, and the
scalar iteration on eigenvalues. Its gradient against autograd through the coupled iteration. What it promises at the
edges.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models import second_order
from models.backend import load_model
from models.second_order import chebyshev_coefficients, covariance, newton_schulz_sqrt, second_order_statistic
from models.yolo import Model

SHAPES = [
    (1, 512, 20, 20),
    (2, 512, 20, 20),
    (2, 128, 80, 80),
    (1, 1024, 20, 20),
    (2, 200, 10, 10),  # fewer positions than channels
    (1, 230, 15, 15),  # just fewer
    (3, 33, 7, 5),  # odd everything, nearly as many channels as positions
    (1, 65, 1, 129),  # one row
    (2, 40, 2, 3),  # far fewer positions than channels
    (2, 1, 9, 9),  # one channel
    (4, 2, 1, 2),  # the smallest covariance of rank one
]


def coupled(x: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """s (N, C) of x (N, C, H, W), as the papers write it: S, its trace, five coupled steps, row means. For float64."""
    X = x.flatten(2)
    Xc = X - X.mean(2, keepdim=True)
    S = torch.einsum("ncm,nkm->nck", Xc, Xc) / X.shape[2]
    t = torch.einsum("ncc->n", S)[:, None, None]
    identity = torch.eye(S.shape[1], dtype=x.dtype).expand_as(S)
    Y, Z = S / t, identity
    for _ in range(iterations):
        T = 1.5 * identity - 0.5 * torch.matmul(Z, Y)
        Y, Z = torch.matmul(Y, T), torch.matmul(T, Z)
    return (t.sqrt() * Y).mean(1)


def of_eigenvalues(x: torch.Tensor) -> torch.Tensor:
    """The same s: Q f(eigenvalues) Q^T times (1/C, ..., 1/C), f being five steps on one number."""
    rows = []
    for image in x.double().flatten(2).numpy():
        S = np.cov(image, bias=True).reshape(len(image), len(image))
        t = np.trace(S)
        values, Q = np.linalg.eigh(S / t)
        y, z = values, np.ones_like(values)
        for _ in range(5):
            step = (3 - z * y) / 2
            y, z = y * step, step * z
        rows.append(np.sqrt(t) * (Q * y) @ Q.mean(0))
    return torch.from_numpy(np.stack(rows))


def make(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Inputs of one kind, float32."""
    generator = torch.Generator().manual_seed(sum(shape))
    N, C, H, W = shape
    white = torch.randn(shape, generator=generator)
    if kind == "white":
        return white
    if kind == "correlated":  # four sources seen by all channels, and 1 % of noise
        sources = torch.randn(N, 4, H, W, generator=generator)
        return torch.einsum("ck,nkhw->nchw", torch.rand(C, 4, generator=generator), sources) + 0.01 * white
    if kind == "offset":  # |mean| / std = 100
        return white + 100 * torch.randn(1, C, 1, 1, generator=generator).sign()
    if kind == "scales":  # channels from 1e-3 to 1e3
        return white * torch.logspace(-3, 3, C).view(1, C, 1, 1)
    raise AssertionError(kind)


def near(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    """max|a - b| <= tolerance * max|b|."""
    return float((a - b).detach().abs().max()) <= tolerance * float(b.detach().abs().max())


def against_truth(x: torch.Tensor) -> tuple[float, float]:
    """max|s - s64| / max|s64|, and the gradient's relative error in the 2-norm; the worst image of each."""
    u = torch.randn(x.shape[:2], generator=torch.Generator().manual_seed(1))
    x = x.clone().requires_grad_()
    s = second_order_statistic(x)
    (gradient,) = torch.autograd.grad(s, x, u)
    x64 = x.detach().double().requires_grad_()
    s64 = coupled(x64)
    (gradient64,) = torch.autograd.grad(s64, x64, u.double())
    error = (s.double() - s64).abs().amax(1) / s64.abs().amax(1)
    gradient_error = (gradient.double() - gradient64).flatten(1).norm(dim=1) / gradient64.flatten(1).norm(dim=1)
    return error.max().item(), gradient_error.max().item()


# --- against the truths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["white", "correlated", "offset", "scales"])
def test_equals_the_coupled_iteration(kind, shape):
    error, gradient_error = against_truth(make(kind, shape))
    assert error <= 1e-5
    assert gradient_error <= 2e-5


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] > 1], ids=str)
@pytest.mark.parametrize("kind", ["white", "correlated", "offset"])
def test_equals_the_scalar_steps_on_eigenvalues(kind, shape):
    x = make(kind, shape)
    truth = of_eigenvalues(x)
    error = (second_order_statistic(x).double() - truth).abs().amax(1) / truth.abs().amax(1)
    assert error.max() <= 1e-5
    # the series itself, without float32's rounding
    error = (second_order_statistic(x.double()) - truth).abs().amax(1) / truth.abs().amax(1)
    assert error.max() <= 2e-7


def test_large_means_lose_little():
    """|mean| / std = 1000, beyond what is promised."""
    x = make("white", (1, 128, 20, 20)) + 1000
    error, gradient_error = against_truth(x)
    assert error <= 1e-4
    assert gradient_error <= 2e-4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(2, 240, 15, 15), (2, 64, 20, 20), (2, 128, 10, 10)], ids=str)
def test_any_memory_layout(shape, layout):
    x = make("white", shape).contiguous(memory_format=layout)
    error, gradient_error = against_truth(x)
    assert error <= 1e-5
    assert gradient_error <= 2e-5


def features(model: torch.nn.Module, folder: Path) -> dict[int, list[torch.Tensor]]:
    """layer -> maps (1, C, H, W) of three photographs below a folder, inside a model of yolov5n's layers."""
    photographs = sorted(folder.rglob("*.jpg"))[:9:3]
    assert len(photographs) == 3
    maps = {i: [] for i in range(24)}
    hooks = [m.register_forward_hook(lambda m, _, y: maps[m.i].append(y)) for m in model.model[:24]]
    for path in photographs:
        image = cv2.resize(cv2.imread(str(path)), (416, 320))[:, :, ::-1]
        with torch.no_grad():
            model(torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None])
    for hook in hooks:
        hook.remove()
    return maps


@pytest.fixture(scope="module")
def photograph_features(bccd, parity_inputs):
    return features(parity_inputs.fill(Model("yolov5n.yaml"), "features").eval(), bccd / "images")


LAYERS = [2, 4, 6, 9, 13, 17, 20, 23]


@pytest.mark.parametrize("layer", LAYERS)
def test_feature_maps_of_photographs(layer, photograph_features):
    for x in photograph_features[layer]:
        error, gradient_error = against_truth(x)
        assert error <= 1e-5
        assert gradient_error <= 2e-5


def test_feature_maps_of_the_official_weights(official_weights, coco_val128):
    maps = features(load_model(official_weights, fuse=False), coco_val128 / "images")
    for layer in LAYERS:
        for x in maps[layer]:
            error, gradient_error = against_truth(x)
            assert error <= 1e-5, layer
            assert gradient_error <= 2e-5, layer


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 7, 2, 2), (2, 4, 1, 3), (3, 2, 1, 6), (1, 6, 5, 5)], ids=str)
def test_gradient_by_differences(shape):
    x = make("white", shape).double().requires_grad_()
    assert torch.autograd.gradcheck(second_order_statistic, (x,))


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 6, 7])
def test_other_counts_of_iterations(iterations):
    x = make("white", (2, 24, 6, 6))
    truth = coupled(x.double(), iterations)
    assert near(second_order_statistic(x, iterations).double(), truth, 1e-5)
    x = make("white", (1, 4, 3, 3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: second_order_statistic(x, iterations), (x,))


def test_iterations_are_part_of_the_function():
    x = make("white", (1, 64, 10, 10))
    five, nine = second_order_statistic(x), second_order_statistic(x, 9)
    assert (five - nine).abs().max() > 0.1 * nine.abs().max()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        second_order_statistic(x, 0)


# --- the Chebyshev series ---------------------------------------------------------------------------------------------


def scalar(a: np.ndarray, iterations: int = 5) -> np.ndarray:
    y, z = a, np.ones_like(a)
    for _ in range(iterations):
        t = (3 - z * y) / 2
        y, z = y * t, t * z
    return y


@pytest.mark.parametrize(
    ("degree", "truncation"),
    [(16, 5.8e-5), (24, 7.4e-8), (28, 1.5e-9), (32, 2e-11)],
)
def test_known_truncation_errors(degree, truncation):
    coefficients = chebyshev_coefficients(5, 1e-14)[: degree + 1]
    a = (1 - np.cos(np.linspace(0, np.pi, 20001))) / 2
    error = np.abs(np.polynomial.chebyshev.chebval(2 * a - 1, coefficients) - scalar(a)).max()
    assert truncation / 1.4 <= error <= truncation * 1.1


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("tail", [1e-6, 2e-9, 1e-11])
def test_the_tail_bounds_the_error(iterations, tail):
    a = (1 - np.cos(np.linspace(0, np.pi, 20001))) / 2
    series = np.polynomial.chebyshev.chebval(2 * a - 1, chebyshev_coefficients(iterations, tail))
    assert np.abs(series - scalar(a, iterations)).max() <= tail
    assert np.allclose(second_order.newton_schulz_scalar(a, iterations), scalar(a, iterations), rtol=1e-12, atol=0)


def test_the_default_degree():
    assert len(chebyshev_coefficients()) == 29


# --- images without variance ------------------------------------------------------------------------------------------


def per_channel(values: torch.Tensor, side: int) -> torch.Tensor:
    return values.view(1, -1, 1, 1).repeat(1, 1, side, side)


WITHOUT_VARIANCE = {
    "zeros": torch.zeros(1, 24, 9, 9),
    "a constant": torch.full((1, 24, 9, 9), 3.0),
    "a large constant": torch.full((1, 24, 9, 9), -12345.678),
    "a tiny constant": torch.full((1, 24, 9, 9), 1e-12),
    "constants float32 cannot hold": per_channel(0.1 * (1 + torch.arange(24) / 7), 9),
    "the same on a large map": per_channel(0.1 * (1 + torch.arange(24) / 7), 80),
    "constants of many sizes": per_channel(torch.logspace(-6, 6, 24), 13),
    "one position": torch.randn(1, 24, 1, 1, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", WITHOUT_VARIANCE)
def test_without_variance(kind, layout):
    x = WITHOUT_VARIANCE[kind].contiguous(memory_format=layout).requires_grad_()
    s = second_order_statistic(x)
    (gradient,) = torch.autograd.grad(s.sum(), x)
    assert (s == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("kind", [k for k, v in WITHOUT_VARIANCE.items() if v.shape[2] == 9])
def test_without_variance_inside_a_batch(kind):
    lively = make("white", (2, 24, 9, 9))
    x = torch.cat([lively[:1], WITHOUT_VARIANCE[kind], lively[1:]]).requires_grad_()
    s = second_order_statistic(x)
    (gradient,) = torch.autograd.grad(s.square().sum(), x)
    assert (s[1] == 0).all()
    assert (gradient[1] == 0).all()
    assert gradient.isfinite().all()
    alone = lively.clone().requires_grad_()
    s_alone = second_order_statistic(alone)
    (gradient_alone,) = torch.autograd.grad(s_alone.square().sum(), alone)
    assert torch.allclose(s[[0, 2]], s_alone, rtol=1e-5, atol=0)
    assert torch.allclose(gradient[[0, 2]], gradient_alone, rtol=1e-4, atol=1e-7)


def test_faint_variance_is_still_seen():
    """Noise of 1e-4 on 1: a thousand times the rounding error."""
    x = 1 + 1e-4 * make("white", (1, 24, 20, 20))
    truth = coupled(x.double())
    assert near(second_order_statistic(x).double(), truth, 1e-5)


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 96, 8, 8), (2, 32, 12, 12)], ids=str)
def test_the_order_of_positions_does_not_matter(shape):
    x = make("correlated", shape)
    order = torch.randperm(shape[2] * shape[3], generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    assert torch.allclose(second_order_statistic(x), second_order_statistic(shuffled), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 96, 8, 8), (5, 32, 12, 12)], ids=str)
def test_images_are_independent_of_their_batch(shape):
    x = make("white", shape)
    x[3] *= 1e4
    together = second_order_statistic(x)
    for k in range(len(x)):
        assert torch.allclose(together[k], second_order_statistic(x[k : k + 1])[0], rtol=1e-5, atol=0)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(second_order_statistic(x)[2].sum(), x)
    assert (gradient[[0, 1, 3, 4]] == 0).all()
    assert gradient[2].abs().max() > 0


@pytest.mark.parametrize("k", [-1, 2, 2.0**-30, 2.0**20, 1e-12, 1e12])
def test_scales_with_its_input(k):
    x = make("correlated", (2, 32, 6, 6))
    assert torch.allclose(second_order_statistic(k * x), abs(k) * second_order_statistic(x), rtol=2e-5, atol=0)


def test_a_channel_permutation_permutes_s():
    x = make("correlated", (2, 48, 9, 9))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    s = second_order_statistic(x)
    assert near(second_order_statistic(x[:, order]), s[:, order], 1e-5)


def test_a_constant_added_to_a_channel_changes_nothing():
    x = make("white", (1, 48, 9, 9))
    assert torch.allclose(second_order_statistic(x + 5), second_order_statistic(x), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(3, 96, 8, 8), (3, 32, 12, 12)], ids=str)
def test_deterministic(shape):
    x = make("white", shape).requires_grad_()
    results = [second_order_statistic(x) for _ in range(2)]
    gradients = [torch.autograd.grad(s.square().sum(), x)[0] for s in results]
    assert torch.equal(*results)
    assert torch.equal(*gradients)


def test_backward_twice():
    """Backward changes nothing that it needs."""
    x = make("white", (2, 32, 9, 9)).requires_grad_()
    s = second_order_statistic(x)
    first, second = (torch.autograd.grad(s.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_input_is_left_alone():
    x = make("white", (2, 32, 9, 9))
    before = x.clone()
    second_order_statistic(x.requires_grad_()).sum().backward()
    assert torch.equal(x.detach(), before)


# --- long sides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (1000, 3, (0, 1000), (0, 3)),  # exactly 1000 is not cropped
        (3, 1000, (0, 3), (0, 1000)),
        (1001, 3, (0, 1000), (0, 3)),  # one too many: the last goes
        (1003, 2, (1, 1001), (0, 2)),
        (2, 1200, (0, 2), (100, 1100)),
        (1400, 1000, (200, 1200), (0, 1000)),
        (1010, 1004, (5, 1005), (2, 1002)),
    ],
)
def test_central_positions_of_long_sides(height, width, rows, columns):
    x = make("white", (1, 2, height, width))
    s = second_order_statistic(x)
    seen = second_order_statistic(x[:, :, slice(*rows), slice(*columns)].clone())
    assert torch.allclose(s, seen, rtol=1e-6, atol=0)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(second_order_statistic(x).sum(), x)
    counted = torch.zeros(height, width, dtype=torch.bool)
    counted[slice(*rows), slice(*columns)] = True
    assert ((gradient[0, 0] != 0) == counted).float().mean() > 0.999


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_of_the_input_comes_back(dtype):
    x = make("white", (2, 48, 9, 9)).to(dtype).requires_grad_()
    s = second_order_statistic(x)
    (gradient,) = torch.autograd.grad(s.sum(), x)
    assert s.dtype == gradient.dtype == dtype
    truth = coupled(x.detach().double())
    rounding = max(torch.finfo(dtype).eps, 1e-5 if dtype != torch.float64 else 1e-7)
    assert near(s.double(), truth, rounding)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
def test_autocast_is_off_inside(autocast):
    x = make("white", (2, 48, 9, 9)).requires_grad_()
    s = second_order_statistic(x)
    (gradient,) = torch.autograd.grad(s.sum(), x)
    with torch.autocast("cpu", autocast):
        s_autocast = second_order_statistic(x)
        (gradient_autocast,) = torch.autograd.grad(s_autocast.sum(), x)
    assert torch.equal(s, s_autocast)
    assert torch.equal(gradient, gradient_autocast)


def legacy(precision):
    return lambda: torch.set_float32_matmul_precision(precision)


def renewed(backend):
    def new_switch():
        getattr(torch.backends, backend).matmul.fp32_precision = "tf32"

    return new_switch


def precision_state():
    """The settings of torch for float32 products."""
    if hasattr(torch.backends, "fp32_precision"):
        return [torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]
    return [torch.get_float32_matmul_precision()] * 2


@pytest.mark.parametrize("switch", [legacy("medium"), legacy("high"), renewed("cuda"), renewed("mkldnn")])
def test_float32_products_are_true_whatever_torch_is_told(switch, monkeypatch):
    if switch.__name__ == "new_switch" and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has only the old switch")
    x = make("white", (2, 48, 9, 9)).requires_grad_()
    plain = second_order_statistic(x)
    inside = []
    step = second_order._step
    monkeypatch.setattr(second_order, "_step", lambda *a: (inside.append(precision_state()), step(*a))[1])
    try:
        switch()
        told = precision_state()
        reduced = second_order_statistic(x)
        reduced.sum().backward()
        assert precision_state() == told
        # and restored after an error too
        monkeypatch.setattr(second_order, "_series", None)
        with pytest.raises(TypeError):
            second_order_statistic(x)
        assert precision_state() == told
    finally:
        if hasattr(torch.backends, "fp32_precision"):
            torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
    assert any(value not in ("none", "ieee", "highest") for value in told)
    assert torch.equal(plain, reduced)
    assert len(inside) == 28 + 27  # forward and backward
    assert all(value in ("none", "ieee", "highest") for state in inside for value in state)


# --- under trace, export and compile ----------------------------------------------------------------------------------


class Statistic(torch.nn.Module):
    def forward(self, x):
        return second_order_statistic(x)


def runs_as_eager(run, shape: tuple[int, ...], tolerance: float = 1e-5) -> None:
    """Wherever float32 holds the squares, and exactly 0 where there is no variance; alone and in a batch."""
    x = make("white", shape)
    still = (0.1 * (1 + torch.arange(shape[1]) / 7))[:, None, None].expand(shape)  # which float32 cannot represent
    single = torch.zeros(shape)
    single[:, 1, 2, 2] = 1
    quiet, loud = (torch.cat([10.0**k * x[:1], 10.0**-k * still[:1]]) for k in (-17, 16))
    for inputs in (x, make("correlated", shape), make("offset", shape), torch.zeros(shape), still, single, quiet, loud):
        for s, eager in zip(run(inputs), second_order_statistic(inputs), strict=True):
            assert near(s, eager, tolerance) if eager.any() else not s.any()


TRACING = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning"
)


@TRACING
@pytest.mark.parametrize("shape", [(2, 48, 5, 5), (2, 16, 9, 9)], ids=str)
def test_traced(shape):
    runs_as_eager(torch.jit.trace(Statistic(), make("white", shape)), shape)


@TRACING
@pytest.mark.parametrize("half", [None, False, True])
def test_in_files(half, tmp_path):
    """ONNX Runtime, and OpenVINO with its constants in float32 and in float16, where the series has 4 digits."""
    runtime = pytest.importorskip("onnxruntime" if half is None else "openvino")
    shape, path = (2, 16, 9, 9), tmp_path / "s.onnx"
    torch.onnx.export(Statistic(), (make("white", shape),), path, dynamo=False, opset_version=17)
    if half is None:
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        run = lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])  # noqa: E731
    else:
        runtime.save_model(runtime.convert_model(path), tmp_path / "s.xml", compress_to_fp16=half)
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = runtime.Core().compile_model(tmp_path / "s.xml", "CPU", exact)
        run = lambda x: torch.from_numpy(compiled(x.numpy())[0].copy())  # noqa: E731
    runs_as_eager(run, shape, 1e-4 if half else 1e-5)


@TRACING
def test_what_a_graph_holds(tmp_path):
    """No constant beyond float16, but for the smallest size, which may become 0 there; and nothing that OpenCV 4.8
    computes wrong where a network has several SOCAs.
    """
    onnx = pytest.importorskip("onnx")
    torch.onnx.export(Statistic(), (make("white", (2, 16, 9, 9)),), tmp_path / "s.onnx", dynamo=False, opset_version=17)
    graph = onnx.load(tmp_path / "s.onnx").graph
    assert not {"Clip", "Where", "Greater"} & {node.op_type for node in graph.node}
    constants = [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute] + [
        *graph.initializer
    ]
    numbers = np.concatenate([onnx.numpy_helper.to_array(t).ravel() for t in constants if t.data_type == 1])
    assert len(numbers) > 30
    assert np.abs(numbers).max() <= 100


def test_exported_for_any_size():
    x = make("white", (2, 24, 8, 6))
    any_of = torch.export.Dim("batch", max=64), torch.export.Dim("height", max=900), torch.export.Dim("width", max=900)
    program = torch.export.export(Statistic(), (x,), dynamic_shapes={"x": {0: any_of[0], 2: any_of[1], 3: any_of[2]}})
    for shape in [(2, 24, 8, 6), (3, 24, 4, 5), (5, 24, 20, 21)]:
        inputs = make("white", shape)
        eager = second_order_statistic(inputs)
        assert near(program.module()(inputs), eager, 1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("shape", [(2, 24, 8, 6), (2, 24, 4, 5)], ids=str)
def test_compiled(backend, shape):
    """The same bits as without, where S is formed and where not, alive and still, in true float32."""
    torch.compiler.reset()
    compiled = torch.compile(second_order_statistic, backend=backend, fullgraph=True)
    lively = make("white", shape)
    still = torch.cat([lively[:1], torch.full_like(lively[:1], 0.3)])
    for x in (lively, still):
        x.requires_grad_()
        eager = second_order_statistic(x)
        (gradient,) = torch.autograd.grad(eager.square().sum(), x)
        with torch.autocast("cpu", torch.bfloat16):
            s = compiled(x)
        (gradient_compiled,) = torch.autograd.grad(s.square().sum(), x)
        assert torch.equal(s, eager)
        assert torch.equal(gradient_compiled, gradient)
    torch.compiler.reset()


def test_the_node_of_a_compiled_graph():
    """torch's own checks of an operator: its shapes without values, its gradient, and that it changes no input."""
    x = make("white", (2, 6, 3, 3)).flatten(2).requires_grad_()
    assert set(
        torch.library.opcheck(second_order.statistic_in_graph, (x, list(chebyshev_coefficients()))).values()
    ) == {"SUCCESS"}


# --- the plain forms --------------------------------------------------------------------------------------------------


def test_covariance_is_numpys():
    x = make("correlated", (2, 12, 5, 7)).double()
    for image, S in zip(x, covariance(x)):
        assert np.allclose(np.cov(image.flatten(1).numpy(), bias=True), S.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_root_is_the_scalar_iteration_on_eigenvalues(iterations):
    S = covariance(make("white", (2, 12, 5, 7)).double())
    for matrix, root in zip(S.numpy(), newton_schulz_sqrt(S, iterations).numpy()):
        t = np.trace(matrix)
        values, Q = np.linalg.eigh(matrix / t)
        assert np.allclose(root, np.sqrt(t) * (Q * scalar(values, iterations)) @ Q.T, rtol=1e-9, atol=1e-12)


def test_many_iterations_give_the_true_root():
    S = covariance(make("white", (1, 8, 9, 9)).double())
    root = newton_schulz_sqrt(S, 20)
    assert torch.allclose(root @ root, S, rtol=1e-9, atol=1e-12)


def test_plain_forms_differentiate_for_any_use():
    """Weighted entries, not only row means: a gradient that assumes one use would fail here."""
    x = make("white", (2, 4, 3, 3)).double().requires_grad_()
    weights = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: weights * covariance(x), (x,))
    assert torch.autograd.gradcheck(lambda x: (weights * newton_schulz_sqrt(covariance(x))).sin(), (x,))


def test_root_of_nothing():
    S = torch.zeros(2, 5, 5).requires_grad_()
    root = newton_schulz_sqrt(S)
    (gradient,) = torch.autograd.grad(root.sum(), S)
    assert (root == 0).all()
    assert gradient.isfinite().all()
