"""Computes the statistic of SOCA (SAN, CVPR 2019): covariance pooling and its matrix square root, without a product of
two C x C matrices.

For one image let X be the feature map as C channels x M positions, Xc = X minus its row means, S = Xc Xc^T / M the
covariance, t = trace(S) and A = S / t. SOCA runs n = 5 coupled Newton-Schulz steps (iSQRT-COV, CVPR 2018),

    Y = A, Z = I;   T = (3I - Z Y) / 2;   Y <- Y T;   Z <- T Z,

and keeps s = sqrt(t) * (row means of Y). Five steps are part of the function: at detector widths Y is far from the true
square root, and weights were trained with that Y.

All iterates are polynomials in A, so Y = f(A), where f is the same recurrence on one number. A's eigenvalues lie in
[0, 1], where f is so smooth that its Chebyshev series of degree 28 is within 1.5e-9 of it. The row means are f(A) v
with v = (1/C, ..., 1/C); with B = 2A - I and T_k the Chebyshev polynomials,

    s = sqrt(t) * sum_k c_k v_k,    v_k = T_k(B) v,

which takes 28 products of A with a vector, each computed as Xc (Xc^T v) in O(C M), or with S formed once where that is
no larger than Xc.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebinterpolate
from torch.autograd.function import once_differentiable

ITERATIONS = 5  # of SAN; another number is another function
MAX_SIDE = 1000  # of a longer side SAN uses the central 1000 positions
TAIL = 2e-9  # the Chebyshev series ends where the sum of all further coefficients is below this


# --- the scalar function and its series -------------------------------------------------------------------------------


def newton_schulz_scalar(a: np.ndarray, iterations: int = ITERATIONS) -> np.ndarray:
    """Returns f(a): the value that the coupled iteration gives for an eigenvalue a in [0, 1] (float64)."""
    y = p = np.asarray(a, dtype=np.float64)
    for _ in range(iterations):
        t = (3 - p) / 2
        y, p = y * t, p * t * t
    return y


def chebyshev_coefficients(iterations: int = ITERATIONS, tail: float = TAIL) -> tuple[float, ...]:
    """Returns c_0 ... c_d with |f(a) - sum c_k T_k(2a - 1)| <= tail on [0, 1]: degree 28 for five steps.

    tail: at least 1e-11, below which float64 rounds.
    """
    return _coefficients(iterations, tail)


# As torch.compiler.assume_constant_result does, which would import torch._dynamo and take as long as importing torch.
chebyshev_coefficients._dynamo_marked_constant = True


@lru_cache
def _coefficients(iterations: int, tail: float) -> tuple[float, ...]:
    if iterations < 1:
        raise ValueError(f"Newton-Schulz iterations must be at least 1, got {iterations}")
    # f is a polynomial of degree (3^n + 1) / 2; for n <= 10 the coefficients beyond 512 are below the tail
    c = chebinterpolate(lambda b: newton_schulz_scalar((b + 1) / 2, iterations), min(3**iterations, 512))
    left_out = np.abs(c)[::-1].cumsum()[::-1]
    degree = max(int(np.argmax(left_out <= tail)) - 1, 1)
    return tuple(c[: degree + 1].tolist())


# --- SOCA's statistic -------------------------------------------------------------------------------------------------


def second_order_statistic(x: torch.Tensor, iterations: int = ITERATIONS) -> torch.Tensor:
    """Returns s, which tells for each channel how strongly it varies together with the others.

    It is computed in true float32 (float64 for float64 input): autocast and TF32 are off inside.
    An image without variance (a constant map up to rounding, a 1 x 1 map) gives exactly 0 and no gradient.

    Args:
        x: (N, C, H, W), any floating type. Of a side longer than 1000 only the central 1000 positions count.
        iterations: number of Newton-Schulz steps that f replaces.

    Returns:
        (N, C), in the type of x. s(k x) = |k| s(x); the order of positions does not matter.
    """
    coefficients = chebyshev_coefficients(iterations)
    exporting = torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or _is_exporting()
    with torch.autocast(x.device.type, enabled=False):
        maps = x if x.dtype == torch.float64 else x.float()
        flat = central(maps).flatten(2)  # (N, C, M)
        if exporting:
            s = _plain_statistic(flat, coefficients)
        elif torch.compiler.is_compiling():
            s = statistic_in_graph(flat, coefficients)
        else:
            s = _SecondOrderStatistic.apply(flat, coefficients)
    return s.to(x.dtype)


def _is_exporting() -> bool:
    """Tells whether torch.export runs, which reads the graph as torch.compile does, but for other programs."""
    asked = getattr(torch.compiler, "is_exporting", None)  # torch 2.7 has it; before, a graph gets the plain operators
    return asked() if asked else torch.compiler.is_compiling()


def central(x: torch.Tensor) -> torch.Tensor:
    """Returns the positions of x (..., H, W) that count: of a side longer than 1000 the central 1000."""
    H, W = x.shape[-2:]
    if H > MAX_SIDE:
        x = x.narrow(-2, (H - MAX_SIDE) // 2, MAX_SIDE)
    if W > MAX_SIDE:
        x = x.narrow(-1, (W - MAX_SIDE) // 2, MAX_SIDE)
    return x


def _centre(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns Xc for x (N, C, M), and the largest |mean| of the channels of each image (N,)."""
    mean = x.mean(2, keepdim=True)
    return x - mean, mean.abs().amax((1, 2))


def left_by_rounding(C: int, largest_mean: torch.Tensor | float, eps: float) -> torch.Tensor | float:
    """Returns the total variance t that rounding can leave of C constant channels; eps is that of their type."""
    bound = 16 * eps * largest_mean
    return C * (bound * bound)


def _scales(squares: torch.Tensor, largest_mean: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scale (N, 1, 1) with F = scale * Xc and A = F F^T, and sqrt(t) (N, 1).

    Both are 0 for an image without variance: t <= C (16 eps max|x|)^2, which is what rounding can leave of constants.
    In such a map max|x| is the largest |mean|, so the map need not be searched for it.

    Args:
        squares: <Xc, Xc> = t M of each image (N,).
        largest_mean: of the channels of each image (N,).
        shape: (N, C, M).
    """
    C, M = shape[1:]
    t = squares / M
    varies = t > left_by_rounding(C, largest_mean, torch.finfo(t.dtype).eps)
    t = torch.where(varies, t, torch.ones_like(t))  # so that no branch has an infinite derivative
    scale = torch.where(varies, (t * M).rsqrt(), torch.zeros_like(t))
    root = torch.where(varies, t.sqrt(), torch.zeros_like(t))
    return scale[:, None, None], root[:, None]


def _step(F: torch.Tensor, S: torch.Tensor | None, v: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Returns 4 A v - d, for rows v and d (N, 1, C); A is S where S was formed, otherwise F F^T."""
    if S is None:
        return torch.baddbmm(d, v @ F, F.transpose(1, 2), beta=-1, alpha=4)
    return torch.baddbmm(d, v, S, beta=-1, alpha=4)


def _series(F: torch.Tensor, S: torch.Tensor | None, coefficients: tuple[float, ...]) -> tuple[torch.Tensor, list]:
    """Returns sum_k c_k v_k (N, C), and the vectors v_k as rows (N, 1, C).

    The recurrence v_{k+1} = 2 B v_k - v_{k-1} runs over the sums d_k = v_k + v_{k-1}: d_{k+1} = 4 A v_k - d_k. Most
    eigenvalues of A are near 0, those of B near -1, where v_k and v_{k-1} nearly cancel; the sums keep those digits.
    """
    v = torch.full_like(F[:, :, 0], 1 / F.shape[1]).unsqueeze(1)
    d = _step(F, S, v, torch.zeros_like(v)) / 2  # v_1 + v_0 = 2 A v_0
    vectors = [v, d - v]
    s = torch.add(coefficients[0] * v, vectors[1], alpha=coefficients[1])
    for c in coefficients[2:]:
        d = _step(F, S, vectors[-1], d)
        vectors.append(d - vectors[-1])
        s = torch.add(s, vectors[-1], alpha=c)
    return s.squeeze(1), vectors


def _plain_statistic(x: torch.Tensor, coefficients: tuple[float, ...]) -> torch.Tensor:
    """Returns s (N, C) for x (N, C, M) by sums, products and few functions, which every export toolchain has.

    Xc is divided by its largest value, so that the sum q of its squares is from 1 to C M whatever the size of the map,
    and 0 for a map of zeros. The comparisons of `_scales` are arithmetic here: with r, the q that rounding can leave of
    constants, the switch min(max(2 (q - r), 0), 1) is 0 for an image without variance, where q is replaced by 1, and 1
    for q from r + 1/2. No constant is large, and all of it is (N, 1, 1), since readers such as OpenCV 4 know neither
    smaller tensors nor the minimum. s does not depend on the largest value, which so has no part in the gradient.
    """
    mean = x.mean(2, keepdim=True)
    centred = x - mean
    C, M = x.shape[1:]
    size = centred.detach().abs().amax((1, 2), keepdim=True) + 1e-30
    F = centred / size
    q = (F * F).sum((1, 2), keepdim=True)
    largest_mean = mean.detach().abs().amax((1, 2), keepdim=True)
    r = M * left_by_rounding(C, largest_mean / size, torch.finfo(x.dtype).eps)
    switch = 1 - (1 - (2 * (q - r)).relu()).relu()
    q = q + (1 - switch)
    F = F * (switch * q.rsqrt())
    G = F.transpose(1, 2)
    last = torch.full_like(F[:, :, 0], 1 / C).unsqueeze(1)  # v_0
    d = 2 * ((last @ F) @ G)
    s, last = coefficients[0] * last, d - last
    s = s + coefficients[1] * last
    for c in coefficients[2:]:  # as in `_series`
        d = 4 * ((last @ F) @ G) - d
        last = d - last
        s = s + c * last
    return (switch * size * (q / M).sqrt() * s).squeeze(1)


class _SecondOrderStatistic(torch.autograd.Function):
    """The map from x (N, C, M) to s (N, C), with the exact gradient of the truncated series.

    With u = dL/ds, the adjoint of the recurrence is b_k = c_k u + 2 B b_{k+1} - b_{k+2} for k = d..1, and
    dL/dB = sqrt(t) * W V^T where V = [v_0, 2 v_1, ..., 2 v_{d-1}] and W = [b_1, ..., b_d], both C x d. B = 2A - I and
    A = S / t, so
        dL/dS = (2 / sqrt(t)) W V^T + [<u, p(A) v> / (2 sqrt(t)) - (2 / sqrt(t)) <W V^T, A>] I
    and dL/dX = (dL/dS + its transpose) Xc / M: a few products of C x d with d x M where S was not formed.
    In the code vectors are rows and V, W are their stacks (N, d, C): a batched product with a row is twice as fast.
    """

    @staticmethod
    def forward(ctx, x, coefficients):
        ctx.coefficients, ctx.at_a_time = coefficients, _images_at_a_time(x)
        ctx.like = torch.empty_like(x, device="meta")
        s, saved = _in_parts(x, ctx.at_a_time, coefficients)
        ctx.save_for_backward(*saved)
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_x = torch.empty_like(ctx.like, device=grad.device)
        return _grad_in_parts(grad_x, grad, ctx.saved_tensors, ctx.at_a_time, ctx.coefficients), None


def _in_parts(x: torch.Tensor, at_a_time: int, coefficients: Sequence[float]) -> tuple[torch.Tensor, list]:
    """Returns s (N, C) for x (N, C, M), and what the gradient needs: 5 entries for each part of at_a_time images."""
    with torch.autocast(x.device.type, enabled=False), _true_float32():
        parts = [_statistic(part, coefficients) for part in x.split(at_a_time)]
    return torch.cat([s for s, _ in parts]), [tensor for _, saved in parts for tensor in saved]


def _grad_in_parts(
    grad_x: torch.Tensor, grad: torch.Tensor, saved: Sequence, at_a_time: int, coefficients: Sequence[float]
) -> torch.Tensor:
    """Writes dL/dx into grad_x (N, C, M), from grad = dL/ds (N, C) and what `_in_parts` saved; returns it."""
    saved, u = iter(saved), grad.to(grad_x.dtype).split(at_a_time)
    with torch.autocast(grad.device.type, enabled=False), _true_float32():
        for part, u_part in zip(grad_x.split(at_a_time), u, strict=True):
            _statistic_grad(part, u_part, *(next(saved) for _ in range(5)), coefficients)
    return grad_x


# --- the same for torch.compile ---------------------------------------------------------------------------------------


@torch.library.custom_op("soca::statistic", mutates_args=())
def statistic_in_graph(x: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    """Returns s (N, C) for x (N, C, M) as one node of a compiled graph, of the same bits and gradient as without it.

    For the gradient the graph keeps x alone, from which the vectors v_k are computed again: they would be as large as
    x, and whether S is formed depends on sizes that a graph may not know.
    """
    return _in_parts(x, _images_at_a_time(x), coefficients)[0]


@torch.library.custom_op("soca::statistic_gradient", mutates_args=())
def _gradient_in_graph(grad: torch.Tensor, x: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    at_a_time = _images_at_a_time(x)
    return _grad_in_parts(torch.empty_like(x), grad, _in_parts(x, at_a_time, coefficients)[1], at_a_time, coefficients)


def _keep(ctx, inputs, output) -> None:
    x, ctx.coefficients = inputs
    ctx.save_for_backward(x)


statistic_in_graph.register_fake(lambda x, coefficients: x.new_empty(x.shape[:2]))
_gradient_in_graph.register_fake(lambda grad, x, coefficients: torch.empty_like(x))
statistic_in_graph.register_autograd(
    lambda ctx, grad: (_gradient_in_graph(grad, *ctx.saved_tensors, ctx.coefficients), None), setup_context=_keep
)


def _images_at_a_time(x: torch.Tensor) -> int:
    """Returns how many images of x (N, C, M) are computed together.

    Each step of the series reads all of F (or S). On a CPU that is about twice as fast from the caches of the cores, so
    each thread gets about a megabyte at a time; a GPU takes the whole batch.
    """
    N, C, M = x.shape
    if x.device.type != "cpu":
        return N
    return torch.get_num_threads() * max(2**20 // (C * min(C, M) * x.element_size()), 1)


def _statistic(x: torch.Tensor, coefficients: tuple[float, ...]) -> tuple[torch.Tensor, tuple]:
    """Returns s (N, C) for x (N, C, M), and what its gradient needs: F or Xc, S or None, a factor, p(A) v, the v_k."""
    F, largest_mean = _centre(x)
    C, M = F.shape[1:]
    # S is formed once where it is not larger than F: a product then costs C^2 instead of 2 C M
    S = F @ F.mT if C <= M else None
    if S is None:
        # along the dimension that is contiguous, so that the map is not copied, and no float32 sum gets too long
        squares = torch.linalg.vector_norm(F, dim=2 if F.stride(2) == 1 else 1).square().sum(1)
    else:
        squares = S.diagonal(dim1=1, dim2=2).sum(1)
    scale, root = _scales(squares, largest_mean, F.shape)
    # an image without variance has no gradient
    factor = torch.where(root > 0, 2 * M**-0.5, torch.zeros_like(root)).unsqueeze(2)
    if S is None:
        F *= scale
    else:
        S *= scale.square()
        factor *= scale  # F stays Xc: only the gradient reads it again
    p, vectors = _series(F, S, coefficients)
    return root * p, (F, S, factor, p, torch.cat(vectors[:-1], 1))


def _statistic_grad(
    out: torch.Tensor,
    u: torch.Tensor,
    F: torch.Tensor,
    S: torch.Tensor | None,
    factor: torch.Tensor,
    p: torch.Tensor,
    V: torch.Tensor,
    coefficients: tuple[float, ...],
) -> None:
    """Writes dL/dx into out (N, C, M), from u = dL/ds (N, C) and what `_statistic` kept.

    With H = W^T V + V^T W + (<u, p> / 2 - <W^T V + V^T W, A>) I it is dL/dX = 2 / (sqrt(t) M) H Xc = factor H F.
    """
    d = V.shape[1]
    W = _adjoint_series(F, S, u.unsqueeze(1), coefficients)
    V = torch.cat([V[:, :1], 2 * V[:, 1:]], 1)
    left, right = torch.cat([W, V], 1), torch.cat([V, W], 1)
    on_diagonal = (p * u).sum(1) / 2
    if S is not None:
        H = left.mT @ right
        on_diagonal -= (H * S).sum((1, 2))
        H.diagonal(dim1=1, dim2=2).add_(on_diagonal[:, None])
        H *= factor
        # F is centred only up to rounding; the gradient is centred exactly
        out.copy_(-(H @ F.mean(2, keepdim=True)))
        out.baddbmm_(H, F)
    else:
        products = right @ F  # (N, 2d, M)
        products -= products.mean(2, keepdim=True)
        on_diagonal -= 2 * (products[:, :d] * products[:, d:]).sum((1, 2))
        torch.mul(F, factor * on_diagonal[:, None, None], out=out)
        out.baddbmm_((factor * left).mT, products)


def _adjoint_series(
    F: torch.Tensor, S: torch.Tensor | None, u: torch.Tensor, coefficients: tuple[float, ...]
) -> torch.Tensor:
    """Returns W = [b_1, ..., b_d] (N, d, C) for u (N, 1, C), by the sums e_k = b_k + b_{k+1} as in `_series`:
    e_k = c_k u + 4 A b_{k+1} - e_{k+1}.
    """
    b = e = coefficients[-1] * u
    rows = [b]
    for c in coefficients[-2:0:-1]:
        e = torch.add(_step(F, S, b, e), u, alpha=c)
        b = e - b
        rows.append(b)
    return torch.cat(rows[::-1], 1)


@contextmanager
def _true_float32() -> Iterator[None]:
    """Inside, products are in float32, not TF32 or bfloat16, whatever torch's old and new settings say."""
    if not hasattr(torch.backends, "fp32_precision"):  # before torch 2.9
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
        return
    switches = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    changed = [(s, s.fp32_precision) for s in switches if s.fp32_precision not in ("none", "ieee")]
    for switch, _ in changed:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in changed:
            switch.fp32_precision = "none"  # inherits; the old value is set only where it was not inherited
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


# --- the plain forms, for blocks of users -----------------------------------------------------------------------------


def covariance(x: torch.Tensor) -> torch.Tensor:
    """Returns the covariance (N, C, C) of the channels of x (N, C, H, W) over positions, divided by H W."""
    flat = x.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    return centred @ centred.transpose(1, 2) / flat.shape[2]


def newton_schulz_sqrt(S: torch.Tensor, iterations: int = ITERATIONS) -> torch.Tensor:
    """Returns the approximate square root of S (N, C, C), symmetric and positive semi-definite, by coupled steps.

    Autograd differentiates it for any use of the result. A matrix of trace 0 gives 0.
    """
    trace = S.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    safe = torch.where(trace > 0, trace, torch.ones_like(trace))
    identity3 = 3 * torch.eye(S.shape[1], dtype=S.dtype, device=S.device)
    Y = S / safe
    Z = None  # the identity
    for _ in range(iterations):
        T = (identity3 - (Y if Z is None else Z @ Y)) / 2
        Y, Z = Y @ T, (T if Z is None else T @ Z)
    return Y * torch.where(trace > 0, safe.sqrt(), torch.zeros_like(trace))
