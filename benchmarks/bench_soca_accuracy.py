"""Measures the error of two ways to evaluate SOCA's series in float32, on the feature maps of a trained detector.

    python benchmarks/bench_soca_accuracy.py --weights yolov5n.pt --source data/images --images 16

SOCA uses s = sqrt(t) f(A) v. The other form, s = sqrt(t) g(A) (A v) with g(a) = f(a) / a, needs one degree less and
keeps f(0) = 0 exactly. Prints max|s - s64| / max|s64|, with s64 in float64: the largest per layer, and the largest and
the median of all.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.polynomial.chebyshev import chebinterpolate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models.backend import load_model
from models.second_order import ITERATIONS, chebyshev_coefficients, covariance, newton_schulz_sqrt


def normalise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns F (N, C, M) with A = F F^T, and sqrt(t) (N, 1), of x (N, C, H, W)."""
    flat = x.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    squares = centred.square().sum((1, 2))
    return centred / squares.sqrt()[:, None, None], (squares / flat.shape[2]).sqrt()[:, None]


def series(F: torch.Tensor, v: torch.Tensor, coefficients: tuple[float, ...], formed: bool) -> torch.Tensor:
    """Returns sum_k c_k T_k(2A - I) v (N, C) for rows v (N, 1, C); A = F F^T is formed once, or two products."""
    A = F @ F.mT

    def product(v: torch.Tensor) -> torch.Tensor:
        return v @ A if formed else v @ F @ F.mT

    d = 2 * product(v)
    before, now = v, d - v
    total = coefficients[0] * before + coefficients[1] * now
    for c in coefficients[2:]:
        d = 4 * product(now) - d
        now = d - now
        total = total + c * now
    return total.squeeze(1)


def coefficients_of_g(degree: int) -> tuple[float, ...]:
    """Returns the Chebyshev coefficients of f(a) / a: the scalar iteration from y = 1 instead of y = a."""

    def g(b: np.ndarray) -> np.ndarray:
        y, p = np.ones_like(b), (b + 1) / 2
        for _ in range(ITERATIONS):
            t = (3 - p) / 2
            y, p = y * t, p * t * t
        return y

    return tuple(chebinterpolate(g, 512)[: degree + 1])


def errors(x: torch.Tensor) -> list[float]:
    """Returns the errors of f and g, each with A as two products and formed, and of the plain coupled iteration."""
    s64 = newton_schulz_sqrt(covariance(x.double())).mean(1)
    F, root = normalise(x)
    v = torch.full_like(F[:, :, 0], 1 / F.shape[1]).unsqueeze(1)
    f = chebyshev_coefficients()
    g = coefficients_of_g(len(f) - 2)
    values = [root * series(F, v, f, formed) for formed in (False, True)]
    values += [root * series(F, v @ F @ F.mT, g, formed) for formed in (False, True)]
    values.append(newton_schulz_sqrt(covariance(x)).mean(1))
    return [float((s - s64).abs().max() / s64.abs().max()) for s in values]


@torch.no_grad()
def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description="Measure the error of two forms of SOCA's series on real feature maps."
    )
    parser.add_argument("--weights", required=True, help=".pt file of a detector")
    parser.add_argument("--source", required=True, help="folder of images")
    parser.add_argument("--images", type=int, default=16, help="number of images (default: %(default)s)")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[1, 2, 4, 6, 8, 9, 13, 17, 20, 23], help="numbers of layers"
    )
    opt = parser.parse_args()
    model = load_model(opt.weights)
    maps = {}
    for k in opt.layers:
        model.model[k].register_forward_hook(lambda m, _, y: maps.__setitem__(m.i, y))
    rows = {k: [] for k in opt.layers}
    images = sorted(p for p in Path(opt.source).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for path in images[: opt.images]:
        image = cv2.resize(cv2.imread(str(path)), (640, 480))[:, :, ::-1]
        model(torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None])
        for k, x in maps.items():
            rows[k].append(errors(x))

    print("| layer | C x H x W | f, two products | f, A formed | g, two products | g, A formed | coupled iteration |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for k, errors_of_layer in rows.items():
        shape = " x ".join(map(str, maps[k].shape[1:]))
        print(f"| {k} | {shape} | " + " | ".join(f"{e:.1e}" for e in np.max(errors_of_layer, 0)) + " |")
    everything = np.concatenate(list(rows.values()))
    for name, summary in (("largest", np.max), ("median", np.median)):
        print(f"| {name} | | " + " | ".join(f"{e:.1e}" for e in summary(everything, 0)) + " |")


if __name__ == "__main__":
    main()
