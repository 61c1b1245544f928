"""Covariance pooling and its matrix square root: what SOCA (SAN, CVPR 2019) measures, without forming a C x C matrix.

For one image let X be the feature map as C channels x M positions, Xc = X minus its row means, S = Xc Xc^T / M the
covariance, t = trace(S) and A = S / t. SOCA runs n = 5 coupled Newton-Schulz steps (iSQRT-COV, CVPR 2018),

    Y = A, Z = I;   T = (3I - Z Y) / 2;   Y <- Y T;   Z <- T Z,

and keeps s = sqrt(t) * (row means of Y). Five steps are part of the function: at detector widths Y is far from the true
square root, and trained weights know it so.

All iterates are polynomials in A, so Y = f(A), where f is the same recurrence on one number. A's eigenvalues lie in
[0, 1], and there f is so smooth that 28 terms of its Chebyshev series leave 1.5e-9. Only f(A) v is wanted, with
v = (1/C, ..., 1/C); with B = 2A - I and T_k the Chebyshev polynomials,

    s = sqrt(t) * sum_k c_k v_k,    v_k = T_k(B) v,

which takes 28 products of A with a vector, each computed as Xc (Xc^T v) in O(C M), or with S formed once where that is
no larger than Xc, or, of maps of few positions, with the M x M products of positions, Xc^T Xc.
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
FEW = 200  # positions, of fewer than there are channels, up to which Xc^T Xc is formed: measured, bench_attention.py
TAIL = 2e-9  # the Chebyshev series is cut where what is left of it is below this


# --- the scalar function and its series -------------------------------------------------------------------------------


def newton_schulz_scalar(a: np.ndarray, iterations: int = ITERATIONS) -> np.ndarray:
    """f(a): what the coupled iteration makes of an eigenvalue a in [0, 1] (float64)."""
    y = p = np.asarray(a, dtype=np.float64)
    for _ in range(iterations):
        t = (3 - p) / 2
        y, p = y * t, p * t * t
    return y


def chebyshev_coefficients(iterations: int = ITERATIONS, tail: float = TAIL) -> tuple[float, ...]:
    """c_0 ... c_d with |f(a) - sum c_k T_k(2a - 1)| <= tail on [0, 1]: degree 28 for five steps.

    tail: at least 1e-11, where float64's rounding sets in.
    """
    return _coefficients(iterations, tail)


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo, which takes as long as torch.
chebyshev_coefficients._dynamo_marked_constant = True


@lru_cache
def _coefficients(iterations: int, tail: float) -> tuple[float, ...]:
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
        flat = central(maps).flatten(2)  # (N, C, M)
        if exporting:
            s = _plain_statistic(flat, coefficients)
        else:
            s = _SecondOrderStatistic.apply(flat, coefficients)
    return s.to(x.dtype)


def central(x: torch.Tensor) -> torch.Tensor:
    """The positions of x (..., H, W) that count: of a side beyond 1000 the central 1000."""
    H, W = x.shape[-2:]
    if H > MAX_SIDE:
        x = x.narrow(-2, (H - MAX_SIDE) // 2, MAX_SIDE)
    if W > MAX_SIDE:
        x = x.narrow(-1, (W - MAX_SIDE) // 2, MAX_SIDE)
    return x


def _centre(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, C, M) -> Xc, and the largest |mean| of an image's channels (N,)."""
    mean = x.mean(2, keepdim=True)
    return x - mean, mean.abs().amax((1, 2))


def left_by_rounding(C: int, largest_mean: torch.Tensor | float, eps: float) -> torch.Tensor | float:
    """The total variance t that rounding can leave of C constant channels; eps of the type that they came in."""
    bound = 16 * eps * largest_mean
    return C * (bound * bound)


def _scales(squares: torch.Tensor, largest_mean: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """<Xc, Xc> = t M and largest |mean|, both (N,) -> scale (N, 1, 1) with F = scale * Xc, A = F F^T; sqrt(t) (N, 1).

    Both are 0 for an image without variance: t <= C (16 eps max|x|)^2, which is what rounding can leave of constants.
    In such a map max|x| is the largest |mean|, so nothing else is looked through for it.
    """
    C, M = shape[1:]
    t = squares / M
    varies = t > left_by_rounding(C, largest_mean, torch.finfo(t.dtype).eps)
    t = torch.where(varies, t, torch.ones_like(t))  # so that no branch has an infinite derivative
    scale = torch.where(varies, (t * M).rsqrt(), torch.zeros_like(t))
    root = torch.where(varies, t.sqrt(), torch.zeros_like(t))
    return scale[:, None, None], root[:, None]


def _step(F: torch.Tensor, S: torch.Tensor | None, v: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """4 A v - d, for rows v and d (N, 1, C); A is S where it was formed, else F F^T."""
    if S is None:
        return torch.baddbmm(d, v @ F, F.transpose(1, 2), beta=-1, alpha=4)
    return torch.baddbmm(d, v, S, beta=-1, alpha=4)


def _series(F: torch.Tensor, S: torch.Tensor | None, coefficients: tuple[float, ...]) -> tuple[torch.Tensor, list]:
    """sum_k c_k v_k (N, C), and the vectors v_k as rows (N, 1, C).

    v_{k+1} = 2 B v_k - v_{k-1} is carried as the sum d_k = v_k + v_{k-1}: d_{k+1} = 4 A v_k - d_k. Most eigenvalues of
    A are near 0, B = -1, where v_k and -v_{k-1} nearly cancel; the sums keep the digits the difference would lose.
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
    """x (N, C, M) -> s (N, C) in sums, products and few functions, which every toolchain that exports go to has.

    What `_scales` says with comparisons is said here with arithmetic: with e = t less what rounding can leave, the
    switch min(max(e, 0) 1e30, 1) is 0 for an image without variance, where 1 stands for t, and 1 from t = 1e-30 on.
    Between the two s comes out too large. 1e30 is beyond float16: the statistic must stay in float32.
    """
    centred, largest_mean = _centre(x)
    C, M = x.shape[1:]
    t = (centred * centred).sum((1, 2)) / M
    excess = (t - left_by_rounding(C, largest_mean, torch.finfo(x.dtype).eps)).clamp(min=0)
    switch = (excess * 1e30).clamp(max=1)
    safe = t + (1 - switch)
    F = centred * (switch * (safe * M).rsqrt())[:, None, None]
    G = F.transpose(1, 2)
    last = torch.full_like(F[:, :, 0], 1 / C).unsqueeze(1)  # v_0
    d = 2 * ((last @ F) @ G)
    s, last = coefficients[0] * last, d - last
    s = s + coefficients[1] * last
    for c in coefficients[2:]:  # as in `_series`
        d = 4 * ((last @ F) @ G) - d
        last = d - last
        s = s + c * last
    return (switch * safe.sqrt())[:, None] * s.squeeze(1)


class _SecondOrderStatistic(torch.autograd.Function):
    """x (N, C, M) -> s (N, C), with the exact gradient of the truncated series.

    With u = dL/ds, the adjoint of the recurrence is b_k = c_k u + 2 B b_{k+1} - b_{k+2} for k = d..1, and
    dL/dB = sqrt(t) * W V^T where V = [v_0, 2 v_1, ..., 2 v_{d-1}] and W = [b_1, ..., b_d], both C x d. B = 2A - I and
    A = S / t, so
        dL/dS = (2 / sqrt(t)) W V^T + [<u, p(A) v> / (2 sqrt(t)) - (2 / sqrt(t)) <W V^T, A>] I
    and dL/dX = (dL/dS + its transpose) Xc / M: a few products of C x d with d x M where S was not formed.
    Vectors are rows here, and V, W their stacks (N, d, C): batched products of a row are twice as fast as of a column.
    """

    @staticmethod
    def forward(ctx, x, coefficients):
        at_a_time = _images_at_a_time(x)
        with _true_float32():
            parts = [_statistic(part, coefficients) for part in x.split(at_a_time)]
        ctx.coefficients, ctx.at_a_time, ctx.like = coefficients, at_a_time, torch.empty_like(x, device="meta")
        ctx.save_for_backward(*(tensor for _, saved in parts for tensor in saved))
        return torch.cat([s for s, _ in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_x = torch.empty_like(ctx.like, device=grad.device)
        u = grad.to(grad_x.dtype).split(ctx.at_a_time)
        saved = iter(ctx.saved_tensors)
        with torch.autocast(grad.device.type, enabled=False), _true_float32():
            for part, u_part in zip(grad_x.split(ctx.at_a_time), u, strict=True):
                _statistic_grad(part, u_part, *(next(saved) for _ in range(5)), ctx.coefficients)
        return grad_x, None


def _images_at_a_time(x: torch.Tensor) -> int:
    """How many of the images of x (N, C, M) to walk through together.

    Each step of the series reads all of F (or S). On a CPU that is about twice as fast from the cores' own caches, so
    there as few images are taken as give every thread a megabyte of work; a GPU takes the whole batch.
    """
    N, C, M = x.shape
    if x.device.type != "cpu":
        return N
    return torch.get_num_threads() * max(2**20 // (C * min(C, M) * x.element_size()), 1)


def _statistic(x: torch.Tensor, coefficients: tuple[float, ...]) -> tuple[torch.Tensor, tuple]:
    """x (N, C, M) -> s (N, C), and what its gradient needs: F or Xc, S or None, a factor, p(A) v and the v_k.

    In the form `few`: F, F^T F, the factor, p(A) v and the w_k.
    """
    F, largest_mean = _centre(x)
    C, M = F.shape[1:]
    if _is_few(C, M):
        return _few_statistic(F, largest_mean, coefficients)
    # where it is no larger than F, S is formed once: a product then costs C^2 instead of 2 C M
    S = F @ F.mT if C <= M else None
    if S is None:
        # row by row as it lies in memory: no copy of the map, and no accumulator that gets too long for float32
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
        factor *= scale  # F is read once more, in the gradient, and can stay Xc until then
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
    """Write dL/dx into out (N, C, M), from u = dL/ds (N, C) and what `_statistic` kept.

    With H = W^T V + V^T W + (<u, p> / 2 - <W^T V + V^T W, A>) I it is dL/dX = 2 / (sqrt(t) M) H Xc = factor H F.
    """
    if _is_few(*F.shape[1:]):
        _few_statistic_grad(out, u, F, S, factor, p, V, coefficients)
        return
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
        # F is centred only up to rounding, the gradient should be
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
    """W = [b_1, ..., b_d] (N, d, C) for u (N, 1, C).

    By the sums e_k = b_k + b_{k+1}: e_k = c_k u + 4 A b_{k+1} - e_{k+1}.
    """
    b = e = coefficients[-1] * u
    rows = [b]
    for c in coefficients[-2:0:-1]:
        e = torch.add(_step(F, S, b, e), u, alpha=c)
        b = e - b
        rows.append(b)
    return torch.cat(rows[::-1], 1)


# --- the same for few positions ---------------------------------------------------------------------------------------
# With K = F^T F (M x M), g = v F and h = u F, the vectors above are v_k = (-1)^k v + w_k F^T, b_k = beta_k u + z_k F^T
# (as rows): the series runs over w_k and z_k, M numbers each, by products with K. sum_k c_k (-1)^k = f(0) = 0.


def _is_few(C: int, M: int) -> bool:
    return M < C and M <= FEW


def _few_statistic(
    F: torch.Tensor, largest_mean: torch.Tensor, coefficients: tuple[float, ...]
) -> tuple[torch.Tensor, tuple]:
    """`_statistic` of Xc (N, C, M), which is changed."""
    K = F.mT @ F
    scale, root = _scales(K.diagonal(dim1=1, dim2=2).sum(1), largest_mean, F.shape)
    factor = torch.where(root > 0, 2 * F.shape[2] ** -0.5, torch.zeros_like(root)).unsqueeze(2)
    F *= scale
    K *= scale.square()
    g = F.mean(1, keepdim=True)
    w = e = 2 * g  # e_k = w_k + w_{k-1}, as d_k in `_series`
    rows, y = [w], coefficients[1] * w
    for k, c in enumerate(coefficients[2:]):
        e = torch.baddbmm(torch.add(e, g, alpha=4 * (-1) ** k).neg_(), w, K, alpha=4)
        w = e - w
        rows.append(w)
        y = torch.add(y, w, alpha=c)
    p = (y @ F.mT).squeeze(1)
    return root * p, (F, K, factor, p, torch.cat(rows[:-1], 1))


def _few_statistic_grad(
    out: torch.Tensor,
    u: torch.Tensor,
    F: torch.Tensor,
    K: torch.Tensor,
    factor: torch.Tensor,
    p: torch.Tensor,
    rows: torch.Tensor,
    coefficients: tuple[float, ...],
) -> None:
    """`_statistic_grad` for what `_few_statistic` kept."""
    C, d = F.shape[1], len(coefficients) - 1
    u = u.unsqueeze(1)
    g, h = F.mean(1, keepdim=True), u @ F
    beta = beta_sum = coefficients[-1]
    z = e = torch.zeros_like(h)
    betas, zs = [beta], [z]
    for c in coefficients[-2:0:-1]:  # by the sums of neighbours, as in `_adjoint_series`
        e = torch.baddbmm(torch.add(4 * beta * h, e, alpha=-1), z, K, alpha=4)
        beta_sum = c - beta_sum
        beta, z = beta_sum - beta, e - z
        betas.append(beta)
        zs.append(z)
    # V = of_v v + V_ F^T and W = of_u u + W_ F^T, stacks of rows
    of_u = F.new_tensor(betas[::-1]).view(1, d, 1)
    of_v = F.new_tensor([1.0, *(2.0 * (-1) ** k for k in range(1, d))]).view(1, d, 1)
    W_ = torch.cat(zs[::-1], 1)
    V_ = torch.cat([torch.zeros_like(g), 2 * rows], 1)
    VF = torch.baddbmm(of_v * g, V_, K)
    WF = torch.baddbmm(of_u * h, W_, K)
    VF -= VF.mean(2, keepdim=True)
    WF -= WF.mean(2, keepdim=True)
    on_diagonal = (p * u.squeeze(1)).sum(1) / 2 - 2 * (VF * WF).sum((1, 2))
    Q = W_.mT @ VF + V_.mT @ WF
    Q.diagonal(dim1=1, dim2=2).add_(on_diagonal[:, None])
    torch.mul(u.mT, of_u.mT @ VF, out=out)
    out += of_v.mT @ WF / C
    out.baddbmm_(F, Q)
    out *= factor


@contextmanager
def _true_float32() -> Iterator[None]:
    """Products in float32, not TF32 or bfloat16, whatever torch was told elsewhere, by old switch or new."""
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
            switch.fp32_precision = "none"  # which inherits; said again only where it was said here
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


# --- the plain forms that people's own blocks call --------------------------------------------------------------------


def covariance(x: torch.Tensor) -> torch.Tensor:
    """x (N, C, H, W) -> covariance of its channels over positions (N, C, C), divided by H W."""
    flat = x.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    return centred @ centred.transpose(1, 2) / flat.shape[2]


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
