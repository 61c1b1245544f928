"""Measures the cost of second-order channel attention: this project's SOCA, the usual way, the covariance alone.

    python benchmarks/bench_soca.py                            # CPU, two threads
    python benchmarks/bench_soca.py --threads 1 --cpu-seconds  # on a machine that runs other programs too
    python benchmarks/bench_soca.py --device cuda              # GPU; the detectors under mixed precision
    python benchmarks/bench_soca.py --quick                    # three runs of each form, no detectors

Prints tables in Markdown: time, error against float64 and peak memory of each form; then one training step and one
fused inference of yolov5s with and without SOCA. Forms alternate, A, B, A, B, ..., so that a busy machine slows all of
them alike, and medians are printed. README.md in this folder keeps dated results.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # silences the profiler
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models.common import SOCA
from models.second_order import ITERATIONS, covariance, second_order_statistic
from models.yolo import Model
from tools.costs import PairedTimer, inference, machine, peak_bytes, training_step

SHAPES = [(16, 512, 20, 20), (2, 128, 80, 80), (1, 512, 20, 20), (1, 1024, 20, 20)]


# --- the usual way: a centring matrix of M x M, twelve products of C x C ----------------------------------------------


def usual_covariance(x: torch.Tensor) -> torch.Tensor:
    """Returns the covariance (N, C, C) of x (N, C, H, W) as X J X^T, J = (I - 1/M) / M, one J per image."""
    N, C, H, W = x.shape
    M = H * W
    X = x.reshape(N, C, M)
    J = (torch.eye(M, device=x.device, dtype=x.dtype) - 1 / M) / M
    J = J.repeat(N, 1, 1)
    return X.bmm(J).bmm(X.transpose(1, 2))


def usual_root(S: torch.Tensor) -> torch.Tensor:
    """Returns sqrt(t) Y (N, C, C) after five coupled steps from Y = S / t, Z = I, for S (N, C, C) of trace t."""
    t = S.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
    I3 = 3 * torch.eye(S.shape[1], device=S.device, dtype=S.dtype).expand_as(S)
    Y, Z = S / t, I3 / 3
    for _ in range(ITERATIONS):
        T = (I3 - Z.bmm(Y)) / 2
        Y, Z = Y.bmm(T), T.bmm(Z)
    return Y * t.sqrt()


class UsualStatistic(torch.autograd.Function):
    """Row means of the root, with the backward that the paper (iSQRT-COV, section 3.3) states: for each step, with
    the gradients G_Y and G_Z of its results,

        G_Y <- (G_Y (3I - Y Z) - Z G_Z Z - Z Y G_Y) / 2,    G_Z <- ((3I - Y Z) G_Z - Y G_Y Y - G_Z Z Y) / 2.
    """

    @staticmethod
    def forward(ctx, x):
        N, C, H, W = x.shape
        M = H * W
        J = ((torch.eye(M, device=x.device, dtype=x.dtype) - 1 / M) / M).repeat(N, 1, 1)
        XJ = x.reshape(N, C, M).bmm(J)
        S = XJ.bmm(x.reshape(N, C, M).transpose(1, 2))
        t = S.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
        I3 = 3 * torch.eye(C, device=x.device, dtype=x.dtype).expand_as(S)
        Y, Z = S / t, I3 / 3
        iterates = []
        for _ in range(ITERATIONS):
            iterates += [Y, Z]
            T = (I3 - Z.bmm(Y)) / 2
            Y, Z = Y.bmm(T), T.bmm(Z)
        ctx.save_for_backward(XJ, S, t, Y, I3, *iterates)
        ctx.shape = x.shape
        return (Y * t.sqrt()).mean(1)

    @staticmethod
    def backward(ctx, grad):
        XJ, S, t, last, I3, *iterates = ctx.saved_tensors
        root = t.sqrt()
        G = grad.unsqueeze(1).expand_as(S) / S.shape[1]
        GY, GZ = G * root, torch.zeros_like(S)
        for k in reversed(range(ITERATIONS)):
            Y, Z = iterates[2 * k : 2 * k + 2]
            YZ = I3 - Y.bmm(Z)
            ZY = Z.bmm(Y)
            GY, GZ = (
                (GY.bmm(YZ) - Z.bmm(GZ).bmm(Z) - ZY.bmm(GY)) / 2,
                (YZ.bmm(GZ) - Y.bmm(GY).bmm(Y) - GZ.bmm(ZY)) / 2,
            )
        through_root = (G * last).sum((1, 2), keepdim=True) / (2 * root)
        through_trace = (GY * S).sum((1, 2), keepdim=True) / t.square()
        GS = GY / t + (through_root - through_trace) * I3 / 3
        return (GS + GS.transpose(1, 2)).bmm(XJ).view(ctx.shape)


class UsualSOCA(nn.Module):
    """SOCA as it is usually added to a detector; with `by_hand` by the paper's backward instead of autograd."""

    def __init__(self, ours: SOCA, by_hand: bool):
        super().__init__()
        self.conv_du = ours.conv_du
        self.by_hand = by_hand

    def forward(self, x):
        s = UsualStatistic.apply(x) if self.by_hand else usual_root(usual_covariance(x)).mean(1)
        return self.conv_du(s[:, :, None, None]) * x


# --- the tables -------------------------------------------------------------------------------------------------------


def statistic64(x: torch.Tensor) -> torch.Tensor:
    """Returns s (N, C) in float64 by the plain coupled iteration."""
    return usual_root(covariance(x.double())).mean(1)


def bench_module(shape: tuple[int, ...], device: torch.device, timer: PairedTimer) -> list[str]:
    """Returns the rows of the first table: each form at one shape."""
    N, C = shape[:2]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device).requires_grad_()
    grad_y = torch.randn(shape, generator=generator).to(device)
    grad_S = torch.randn(N, C, C, generator=generator).to(device)
    ours = SOCA(C).to(device)
    modules = {
        "usual way, autograd": UsualSOCA(ours, by_hand=False),
        "usual way, paper's backward": UsualSOCA(ours, by_hand=True),
        "bare covariance, autograd": covariance,
        "SOCA": ours,
    }

    def forward(module):
        with torch.no_grad():
            module(x)

    def both(module):
        y = module(x)
        torch.autograd.grad(y, x, grad_S if module is covariance else grad_y)

    ahead = timer({name: lambda m=m: forward(m) for name, m in modules.items()})
    whole = timer({name: lambda m=m: both(m) for name, m in modules.items()})
    with torch.no_grad():
        s64 = statistic64(x)
        found = {
            "usual way, autograd": usual_root(usual_covariance(x)).mean(1),
            "usual way, paper's backward": UsualStatistic.apply(x),
            "SOCA": second_order_statistic(x),
        }
    rows = []
    for name, module in modules.items():
        # without the output and the input gradient
        peak = peak_bytes(lambda m=module: both(m), device) / x.nbytes - (1 if name.startswith("bare") else 2)
        error = f"{float((found[name] - s64).abs().max() / s64.abs().max()):.1e}" if name in found else ""
        rows.append(
            f"| {' x '.join(map(str, shape))} | {name} | {ahead[name] * 1e3:.1f} | {whole[name] * 1e3:.1f} "
            f"| {whole[name] / whole['SOCA']:.2f} | {error} | {peak:.1f} |"
        )
    return rows


def bench_detectors(device: torch.device, timer: PairedTimer) -> list[str]:
    """Returns the rows of the second table."""
    rows = []
    for what, make, times in (
        ("training step, batch 8, 640 px", lambda m: training_step(m, device, 8, 640), 1),
        ("inference, batch 1, 640 px, fused", lambda m: inference(m, device, 640), 10),
    ):
        runs = {}
        for name in ("yolov5s.yaml", "SOCA.yaml"):
            torch.manual_seed(0)
            runs[name] = make(Model(name))
        seconds = timer(runs, times)
        plain, soca = seconds["yolov5s.yaml"] * 1e3, seconds["SOCA.yaml"] * 1e3
        rows.append(f"| {what} | {plain:.1f} | {soca:.1f} | {soca / plain:.3f} |")
    return rows


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description="Time SOCA against the usual way of computing it.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each form (default: %(default)s)")
    parser.add_argument("--cpu-seconds", action="store_true", help="measure processor time instead of elapsed time")
    parser.add_argument("--quick", action="store_true", help="three runs of each form, and no detectors")
    opt = parser.parse_args()
    torch.set_num_threads(opt.threads)
    logging.getLogger("yolov5").setLevel(logging.WARNING)  # no tables of layers
    device = torch.device(opt.device)
    timer = PairedTimer(device, 3 if opt.quick else opt.rounds, opt.cpu_seconds)

    clock = "CPU seconds" if opt.cpu_seconds else "wall clock"
    print(f"{machine(device)}, medians of {timer.rounds}, {clock}\n")
    print("| N x C x H x W | form | forward, ms | with backward, ms | times SOCA | error | peak, NCM floats |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for shape in SHAPES:
        print("\n".join(bench_module(shape, device, timer)), flush=True)
    if not opt.quick:
        print("\n| yolov5s | plain, ms | with SOCA, ms | ratio |\n|---|--:|--:|--:|")
        print("\n".join(bench_detectors(device, timer)))


if __name__ == "__main__":
    main()
