"""Prints the layers of a model YAML as a table, and draws them: inputs, channels, stride and cost of each.

python tools/explain.py SOCA.yaml
python tools/explain.py yolov5n.yaml --attention SOCA@P3+P4+P5 --picture network.png

FLOPs are those of one image by torch.utils.flop_counter; a multiply-add counts as two. It counts every convolution and
matrix product that runs, also those inside SOCA's autograd function (28 products of the map or its covariance with a
vector) and those of RLNL's scores. It does not count sums, activations and pooling, and nor do published tables.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.registry import keeps_channels, lookup
from utils import cli, user_blocks

if TYPE_CHECKING:
    from models.yolo import Model

COLOURS = {"attention": "#e4572e", "join": "#b8c4d0", "detect": "#3d405b", "layer": "#7fb7be"}


class Line(NamedTuple):
    """One layer of a model, as the table shows it."""

    row: int
    sources: int | list[int]  # -1 for the previous layer
    module: str
    channels: int | None  # None for Detect, whose output is not a single map
    stride: int | None  # image side over map side, to the nearest power of two
    parameters: int
    flops: int


def make_parser() -> argparse.ArgumentParser:
    """States the options of explain.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cfg", help="model YAML")
    parser.add_argument("--attention", default="", metavar="BLOCK@PLACE", help="insert attention, as in train.py")
    user_blocks.add(parser)
    parser.add_argument(
        "--imgsz", "--img", type=cli.whole(32), default=640, help="side of the image in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw the network into a .png, .svg or .pdf file"
    )
    return parser


def explain(model: "Model", image_size: int = 640) -> list[Line]:
    """Returns a line per layer, by one forward pass of an image of zeros (1, ch, image_size, image_size)."""
    import torch

    from models.yolo import flop_counter

    was_training, lines = model.training, []
    reached = 0

    def after(layer, inputs, y):
        nonlocal reached
        one_map = isinstance(y, torch.Tensor)
        lines.append(
            Line(
                layer.i, layer.f, layer.type.rpartition(".")[2], y.shape[1] if one_map else None,
                2 ** round(math.log2(image_size / y.shape[2])) if one_map else None,
                layer.np, counter.get_total_flops() - reached,
            )
        )  # fmt: skip
        reached = counter.get_total_flops()

    hooks = [layer.register_forward_hook(after) for layer in model.model]
    with torch.no_grad(), flop_counter() as counter:
        model.eval()(torch.zeros(1, model.yaml["ch"], image_size, image_size))
    for hook in hooks:
        hook.remove()
    model.train(was_training)
    return lines


def table(lines: list[Line]) -> str:
    """Returns the lines and their sum as text."""
    heads = "row", "from", "module", "channels", "stride", "parameters", "GFLOPs", "%"
    total = sum(line.flops for line in lines)
    cells = [
        (
            *map(str, line[:3]), *("-" if v is None else str(v) for v in line[3:5]), f"{line.parameters:,}",
            f"{line.flops / 1e9:.4f}", f"{100 * line.flops / max(total, 1):.2f}",
        )
        for line in lines
    ]  # fmt: skip
    parameters = sum(line.parameters for line in lines)
    cells.append(("", "", "total", "", "", f"{parameters:,}", f"{total / 1e9:.4f}", "100.00"))
    widths = [max(map(len, column)) for column in zip(heads, *cells)]
    left = (1, 2)  # columns of words
    return "\n".join(
        "  ".join(c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in (heads, *cells)
    )


def kind(line: Line) -> str:
    """Returns the key of COLOURS for a layer."""
    if line.channels is None:
        return "detect"
    if isinstance(line.sources, list) or line.module == "Upsample":
        return "join"
    try:
        return "attention" if lookup(line.module)[1] is keeps_channels else "layer"
    except ValueError:  # a layer of torch, which YAMLs call nn.MaxPool2d
        return "layer"


def draw(lines: list[Line], path: Path, title: str) -> None:
    """Draws the network: layers from left to right, strides from top to bottom, and below them the cost of each."""
    from matplotlib.figure import Figure

    from utils.files import atomic_write

    figure = Figure(figsize=(max(0.66 * len(lines) + 1, 8), 7.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    strides = sorted({line.stride for line in lines if line.stride})
    level = {stride: -k for k, stride in enumerate(strides)}
    position = {line.row: (line.row, level.get(line.stride, -(len(strides) - 1) / 2)) for line in lines}
    for line in lines:
        for j in [line.sources] if isinstance(line.sources, int) else line.sources:
            source = j if j >= 0 else line.row + j
            if source >= 0:
                arrow(upper, position[source], position[line.row])
        words = [line.module, *([str(line.channels)] if line.channels else []), f"layer {line.row}"]
        upper.text(
            *position[line.row], "\n".join(words), ha="center", va="center", fontsize=7,
            color="white" if kind(line) in ("attention", "detect") else "black",
            bbox={"boxstyle": "round,pad=0.35", "facecolor": COLOURS[kind(line)], "edgecolor": "#333333", "lw": 0.6},
        )  # fmt: skip
    upper.set_yticks(list(level.values()), [f"stride {stride}" for stride in level])
    upper.set_ylim(-len(strides) + 0.4, 0.6)
    upper.set_title(title)
    upper.tick_params(length=0)
    upper.spines[:].set_visible(False)
    bars(lower, lines)
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=110)


def arrow(axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draws an arrow between two layers, curved where others lie between them."""
    layers = end[0] - start[0]
    over = start[1] == end[1] and layers > 1  # layers between would hide a straight line
    axes.annotate(
        "", end, start, zorder=0,
        arrowprops={
            "arrowstyle": "-|>", "color": "#777777", "lw": 0.9, "shrinkA": 12, "shrinkB": 16,
            "connectionstyle": f"arc3,rad={-1.6 / layers if over else 0}",
        },
    )  # fmt: skip


def bars(axes, lines: list[Line]) -> None:
    """Draws the share of each layer in all FLOPs and in all parameters."""
    for shift, label, values, shade in (
        (-0.2, "FLOPs", [line.flops for line in lines], "#4c72b0"),
        (0.2, "parameters", [line.parameters for line in lines], "#dd8452"),
    ):
        share = [100 * v / max(sum(values), 1) for v in values]
        axes.bar([line.row + shift for line in lines], share, 0.4, label=label, color=shade)
    axes.set_ylabel("% of the model")
    axes.set_xticks([line.row for line in lines])
    axes.set_xlim(-0.8, len(lines) - 0.2)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def main(opt: argparse.Namespace) -> None:
    """Runs the command line."""
    from models.insert import parse_attention
    from models.yolo import Model
    from utils.boxes import check_image_size

    if opt.picture and opt.picture.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--picture must end in .png, .svg or .pdf, got {str(opt.picture)!r}")
    user_blocks.use(opt.blocks)
    model = Model(opt.cfg, insert=parse_attention(opt.attention))
    lines = explain(model, check_image_size(opt.imgsz, model.image_multiple))
    cli.say(table(lines))
    if opt.picture:
        flops, parameters = sum(line.flops for line in lines) / 1e9, sum(line.parameters for line in lines) / 1e6
        name = " + ".join(filter(None, (model.yaml_file, opt.attention)))
        draw(lines, opt.picture, f"{name}: {parameters:.2f} M parameters, {flops:.2f} GFLOPs at {opt.imgsz} px")


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(make_parser()), "explain.py")
