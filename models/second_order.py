"""Covariance pooling and its matrix square root: what SOCA (SAN, CVPR 2019) measures, without forming a C x C matrix.

For one image let X be the feature map as C channels x M positions, Xc = X minus its row means, S = Xc Xc^T / M the
covariance, t = trace(S) and A = S / t. SOCA runs n = 5 coupled Newton-Schulz steps (iSQRT-COV, CVPR 2018),

    Y = A, Z = I;   T = (3I - Z Y) / 2;   Y <- Y T;   Z <- T Z,

and keeps s = sqrt(t) * (row means of Y). Five steps are part of the function: at detector widths Y is far from the true
square root, and trained weights know it so.

All iterates are polynomials in A, so Y = f(A), where f is the same recurrence on one number. A's eigenvalues lie in
[0, 1], and there f is so smooth that 28 terms of its Chebyshev series leave 1.5e-9. Only f(A) v with v = (1/C, ..., 1/C)
is wanted; with B = 2A - I and T_k the Chebyshev polynomials,

    s = sqrt(t) * sum_k c_k v_k,    v_k = T_k(B) v,

which takes 28 products of A with a vector, each computed as Xc (Xc^T v) in O(C M).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebinterpolate
from torch.autograd.function import once_differentiable

ITERATIONS = 5  # of SAN; another number is another function
MAX_SIDE = 1000  # SAN looks at the central 1000 positions of a longer side
TAIL = 2e-9  # the Chebyshev series is cut where what is left of it is below this


# --- the scalar function and its series -------------------------------------------------------------------------------


def newton_schulz_scalar(a: np.ndarray, iterations: int = ITERATIONS) -> np.ndarray:
    """f(a): what the coupled iteration makes of an eigenvalue a in [0, 1] (float64)."""
    y = p = np.asarray(a, dtype=np.float64)
    for _ in range(iterations):
        t = (3 - p) / 2
        y, p = y * t, p * t * t
    return y


@lru_cache
def chebyshev_coefficients(iterations: int = ITERATIONS, tail: float = TAIL) -> tuple[float, ...]:
    """c_0 ... c_d with |f(a) - sum c_k T_k(2a - 1)| <= tail on [0, 1]: degree 28 for five steps."""
    if iterations < 1:
        raise ValueError(f"Newton-Schulz iterations must be at least 1, got {iterations}")
    # f is a polynomial of degree (3^n + 1) / 2; beyond 512 nothing above the tail is left for n <= 10
    c = chebinterpolate(lambda b: newton_schulz_scalar((b + 1) / 2, iterations), min(3**iterations, 512))
    left_out = np.abs(c)[::-1].cumsum()[::-1]
    degree = max(int(np.argmax(left_out <= tail)) - 1, 1)
    return tuple(c[: degree + 1].tolist())


# --- SOCA's statistic -------------------------------------------------------------------------------------------------


def second_order_statistic(x: torch.Tensor, iterations: int = ITERATIONS) -> torch.Tensor:
    """s: how strongly each channel varies, together with the others.

    Always computed in true float32 (float64 for float64 input): autocast and TF32 are off inside.
    An image without variance (a constant map up to rounding, a 1 x 1 map) gives exactly 0 and no gradient.

    Args:
        x: (N, C, H, W), any floating type. Of a side beyond 1000 only the central 1000 positions count.
        iterations: Newton-Schulz steps that f stands for.

    Returns:
        (N, C), in the type of x. s(k x) = |k| s(x); the order of positions does not matter.
    """
    coefficients = chebyshev_coefficients(iterations)
    exporting = torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    with torch.autocast(x.device.type, enabled=False):
        maps = x if x.dtype == torch.float64 else x.float()
        flat = _central(maps).flatten(2)  # (N, C, M)
        if exporting:
            normalised, root = _normalise(flat)
            s = _series(normalised, root, coefficients)[0]
        else:
            s = _SecondOrderStatistic.apply(flat, coefficients)
    return s.to(x.dtype)


def _central(x: torch.Tensor) -> torch.Tensor:
    H, W = x.shape[-2:]
    if H > MAX_SIDE:
        x = x.narrow(-2, (H - MAX_SIDE) // 2, MAX_SIDE)
    if W > MAX_SIDE:
        x = x.narrow(-1, (W - MAX_SIDE) // 2, MAX_SIDE)
    return x


def _normalise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, C, M) -> the factor F (N, C, M) of A = F F^T, and sqrt(t) (N, 1, 1); both 0 for an image without variance."""
    C, M = x.shape[1:]
    centred = x - x.mean(2, keepdim=True)
    t = centred.square().sum((1, 2), keepdim=True) / M
    # what rounding alone can leave of a constant map
    rounding = 16 * torch.finfo(x.dtype).eps * x.abs().amax((1, 2), keepdim=True)
    t = torch.where(t > C * rounding.square(), t, torch.zeros_like(t))
    scale = torch.where(t > 0, (t * M).rsqrt(), t)
    return centred * scale, t.sqrt()


def _series(F: torch.Tensor, root: torch.Tensor, coefficients: tuple[float, ...]) -> tuple[torch.Tensor, list]:
    """s (N, C) = sqrt(t) sum_k c_k v_k, and the vectors v_k (N, C, 1).

    v_{k+1} = 2 B v_k - v_{k-1} is carried as the sum d_k = v_k + v_{k-1}: d_{k+1} = 4 A v_k - d_k. Most eigenvalues of A
    are near 0, B = -1, where v_k and -v_{k-1} nearly cancel; the sums keep the digits that the difference would lose.
    """
    Ft = F.transpose(1, 2)
    v = torch.full_like(F[:, :, :1], 1 / F.shape[1])
    d = 2 * (F @ (Ft @ v))
    vectors = [v, d - v]
    s = coefficients[0] * v + coefficients[1] * vectors[1]
    for c in coefficients[2:]:
        v = vectors[-1]
        d = 4 * (F @ (Ft @ v)) - d
        vectors.append(d - v)
        s = s + c * vectors[-1]
    return (root * s).squeeze(2), vectors


class _SecondOrderStatistic(torch.autograd.Function):
    """x (N, C, M) -> s (N, C), with the exact gradient of the truncated series.

    With u = dL/ds, the adjoint of the recurrence is b_k = c_k u + 2 B b_{k+1} - b_{k+2} for k = d..1, and
    dL/dB = sqrt(t) * W V^T where V = [v_0, 2 v_1, ..., 2 v_{d-1}] and W = [b_1, ..., b_d], both C x d. B = 2A - I and
    A = S / t, so
        dL/dS = (2 / sqrt(t)) W V^T + [<u, p(A) v> / (2 sqrt(t)) - (2 / sqrt(t)) <W V^T, A>] I
    and dL/dX = (dL/dS + its transpose) Xc / M: a few products of C x d with d x M, no C x C matrix.
    """

    @staticmethod
    def forward(ctx, x, coefficients):
        with _true_float32():
            F, root = _normalise(x)
            s, vectors = _series(F, root, coefficients)
        ctx.coefficients = coefficients
        ctx.save_for_backward(F, root, s, torch.cat(vectors[:-1], 2))
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        F, root, s, V = ctx.saved_tensors  # (N, C, M), (N, 1, 1), (N, C), (N, C, d)
        M = F.shape[2]
        with torch.autocast(F.device.type, enabled=False), _true_float32():
            u = grad.to(F.dtype).unsqueeze(2)
            W = _adjoint_series(F, u, ctx.coefficients)
            V = torch.cat([V[:, :, :1], 2 * V[:, :, 1:]], 2)
            VF, WF = V.mT @ F, W.mT @ F  # (N, d, M)
            # <u, p(A) v> / 2 - 2 <W V^T, A>
            trace_term = (s.unsqueeze(2) * u).sum((1, 2), keepdim=True) / 2
            trace_term = _divide(trace_term, root) - 2 * (VF * WF).sum((1, 2), keepdim=True)
            grad_x = torch.baddbmm(2 * trace_term * F, W, VF, beta=1, alpha=2)
            grad_x = torch.baddbmm(grad_x, V, WF, beta=1, alpha=2)
            # Xc / M = F sqrt(t / M), and the terms above lack 1 / sqrt(t)
            grad_x = grad_x / M**0.5
            grad_x = torch.where(root > 0, grad_x - grad_x.mean(2, keepdim=True), torch.zeros_like(grad_x))
        return grad_x, None


def _adjoint_series(F: torch.Tensor, u: torch.Tensor, coefficients: tuple[float, ...]) -> torch.Tensor:
    """W = [b_1, ..., b_d] (N, C, d) for u (N, C, 1), by the sums e_k = b_k + b_{k+1}: e_k = c_k u + 4 A b_{k+1} - e_{k+1}."""
    Ft = F.transpose(1, 2)
    b = e = coefficients[-1] * u
    columns = [b]
    for c in coefficients[-2:0:-1]:
        e = c * u + 4 * (F @ (Ft @ b)) - e
        b = e - b
        columns.append(b)
    return torch.cat(columns[::-1], 2)


def _divide(a: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    return torch.where(root > 0, a / root, torch.zeros_like(a))


@contextmanager
def _true_float32() -> Iterator[None]:
    """Products in float32, not TF32 or bfloat16, whatever `torch.set_float32_matmul_precision` says elsewhere."""
    precision = torch.get_float32_matmul_precision()
    if precision == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


# --- the plain forms that people's own blocks call --------------------------------------------------------------------


def covariance(x: torch.Tensor) -> torch.Tensor:
    """x (N, C, H, W) -> covariance of its channels over positions (N, C, C), divided by H W."""
    flat = x.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    return centred @ centred.mT / flat.shape[2]


def newton_schulz_sqrt(S: torch.Tensor, iterations: int = ITERATIONS) -> torch.Tensor:
    """S (N, C, C) symmetric, positive semi-definite -> its approximate square root by coupled Newton-Schulz steps.

    Differentiable by autograd for any use of the result. A matrix of trace 0 gives 0.
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
