"""Rebuilds the inputs of the parity files from their recipes (the `gen` objects).

Everything is integer arithmetic followed by one division, so the numbers are the same on every machine. README.md says
in words what each recipe means.
"""

import math
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

LOW_32_BITS = np.uint64(0xFFFFFFFF)


def u(key: str, n: int) -> np.ndarray:
    """Returns n doubles in [0, 1) that depend only on the text `key` and on the position."""
    x = (np.arange(n, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(key.encode()))) & LOW_32_BITS
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(2246822507)) & LOW_32_BITS
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(3266489909)) & LOW_32_BITS
    x ^= x >> np.uint64(16)
    return x.astype(np.float64) / 4294967296.0


def build(recipe: dict[str, Any]) -> np.ndarray:
    """Returns the array that a recipe describes."""
    return {"uniform": uniform, "blocks": blocks, "pattern": pattern, "clusters": clusters, "grid": grid}[
        recipe["gen"]
    ](recipe)


def uniform(recipe: dict[str, Any]) -> np.ndarray:
    values = u(recipe["key"], int(np.prod(recipe["shape"])))
    return (recipe["lo"] + (recipe["hi"] - recipe["lo"]) * values).reshape(recipe["shape"]).astype(recipe["dtype"])


def blocks(recipe: dict[str, Any]) -> np.ndarray:
    B, C, H, W = recipe["shape"]
    side = recipe["block"]
    h, w = -(-H // side), -(-W // side)
    coarse = u(recipe["key"] + "/coarse", B * C * h * w).reshape(B, C, h, w)
    coarse = coarse.repeat(side, 2).repeat(side, 3)[:, :, :H, :W]
    fine = u(recipe["key"] + "/fine", B * C * H * W).reshape(B, C, H, W)
    return (0.7 * coarse + 0.3 * fine).astype("float32")


def pattern(recipe: dict[str, Any]) -> np.ndarray:
    y = np.arange(recipe["h"])[:, None, None]
    x = np.arange(recipe["w"])[None, :, None]
    c = np.arange(recipe["c"])[None, None, :]
    value = recipe["a"] * y + recipe["b"] * x + recipe["d"] * c + (x * y) // recipe["e"] * (c + 1)
    return (value % 256).astype(np.uint8)


def clusters(recipe: dict[str, Any]) -> np.ndarray:
    B, N, nc = recipe["B"], recipe["N"], recipe["nc"]
    v = u(recipe["key"], B * N * (5 + nc)).reshape(B, N, 5 + nc)
    i = np.arange(N)[None]
    rows = v.copy()
    rows[..., 0] = recipe["x0"] + recipe["sx"] * (i % recipe["g"]) + recipe["jit"] * (2 * v[..., 0] - 1)
    rows[..., 1] = (
        recipe["y0"] + recipe["sy"] * ((i // recipe["g"]) % recipe["g"]) + recipe["jit"] * (2 * v[..., 1] - 1)
    )
    rows[..., 2:4] = recipe["wmin"] + (recipe["wmax"] - recipe["wmin"]) * v[..., 2:4]
    return rows.astype(np.float32)


def grid(recipe: dict[str, Any]) -> np.ndarray:
    N, nc = recipe["N"], recipe["nc"]
    i = np.arange(N)
    rows = np.zeros((1, N, 5 + nc))
    rows[0, :, 0] = recipe["step"] * (i % recipe["g"]) + 8
    rows[0, :, 1] = recipe["step"] * (i // recipe["g"]) + 8
    rows[0, :, 2:4] = recipe["size"]
    rows[0, :, 4] = ((i * recipe["mul"]) % N + 0.5) / N
    rows[0, i, 5 + i % nc] = 1.0
    return rows.astype(np.float32)


def weight(key: str, name: str, shape: tuple[int, ...], names: Collection[str], gain: float = 6.0) -> np.ndarray | None:
    """Returns the doubles for the entry `name` of a state_dict with entries `names`; None where it stays as built."""
    n = int(np.prod(shape)) if len(shape) else 1
    v = u(f"{key}/{name}", n).reshape(tuple(shape))
    s = 2 * v - 1
    stem, leaf = name.rsplit(".", 1) if "." in name else ("", name)
    has_statistics = (stem + "." if stem else "") + "running_mean" in names
    if leaf == "anchors":
        return None
    if leaf == "num_batches_tracked":
        return np.zeros(tuple(shape))
    if leaf == "running_var":
        return 0.5 + 0.5 * v
    if leaf == "running_mean":
        return 0.2 * s
    if has_statistics and leaf == "weight":
        return 0.8 + 0.4 * v
    if len(shape) >= 2:
        return math.sqrt(gain / (n / shape[0])) * s
    return 0.2 * s


def fill(model, key: str, gain: float = 6.0):
    """Gives a torch module the weights of {"gen": "fill", "key": key, "gain": gain} and returns it."""
    import torch

    state = model.state_dict()
    filled = {}
    for name, tensor in state.items():
        values = weight(key, name, tuple(tensor.shape), state.keys(), gain)
        filled[name] = tensor if values is None else torch.from_numpy(np.asarray(values)).to(tensor.dtype)
    model.load_state_dict(filled)
    return model


def indices(size: int, n: int) -> list[int]:
    """Returns the flat positions of the samples of an array of `size` numbers."""
    return [(7919 * k + 13) % size for k in range(min(n, size))]
