"""The detector: Detect (the head), Model (a YAML made into a network), parse_model (the loop between them).

`python models/yolo.py --cfg SOCA.yaml` prints a model's table.
"""

import logging
import math
import sys
from copy import deepcopy
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # run as a script: hand over to the module of that name, which owns the classes
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from models.yolo import main

    sys.exit(main())

import torch
import torch.nn.functional as F
from torch import nn

from models import attention, common, experimental
from models.common import Conv
from models.insert import insert_rows
from models.registry import Row, detects, lookup, register
from utils.boxes import round_up
from utils.device import Timer, select_device
from utils.files import find_file, read_yaml
from utils.log import LOGGER

PROBE_SIZE = 256  # pixels of the image that shows the strides; a multiple of the largest one


@register(detects)
class Detect(nn.Module):
    """The detection head: one 1 x 1 convolution per level, and the decoding of its maps into boxes.

    Training: list of nl raw maps (B, na, ny, nx, 5 + nc), logits.
    Inference: (decoded (B, N, 5 + nc), raw maps), rows ordered by level, anchor, row, column. With s = sigmoid(raw),
        xy = (2 s_xy - 0.5 + cell) stride,   wh = (2 s_wh)^2 anchor,   objectness and class scores = s.

    Attributes that checkpoints carry: anchors (nl, na, 2) in grid units, stride (nl,) in pixels.
    """

    stride = None  # set by Model

    def __init__(self, nc=80, anchors=(), ch=(), inplace=True):
        super().__init__()
        if len(anchors) != len(ch):
            raise ValueError(f"{len(ch)} maps come in, but there are anchors for {len(anchors)} levels")
        self.nc = nc
        self.no = nc + 5
        self.nl = len(anchors)
        self.na = len(anchors[0]) // 2
        self.inplace = inplace
        # v6.1 keeps its decoding grids here and looks for them in a checkpoint
        self.grid = [torch.zeros(1)] * self.nl
        self.anchor_grid = [torch.zeros(1)] * self.nl
        self.register_buffer("anchors", torch.tensor(anchors).float().view(self.nl, -1, 2))
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in ch)

    def forward(self, x: list[torch.Tensor]):
        raw = []
        for conv, level in zip(self.m, x):
            level = conv(level)
            B, _, ny, nx = level.shape
            raw.append(level.view(B, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2))
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if torch.is_inference_mode_enabled() and not self.training and not traced:
            return self._decode_once(raw), raw
        raw = [level.contiguous() for level in raw]
        return raw if self.training else (self.decode(raw), raw)

    def decode(self, raw: list[torch.Tensor]) -> torch.Tensor:
        """Raw maps, each (B, na, ny, nx, 5 + nc), to boxes (B, N, 5 + nc): x, y, w, h in input pixels, scores 0-1."""
        rows = []
        for level, anchors, stride in zip(raw, self.anchors, self.stride):
            # in half precision a pixel coordinate above 512 would be rounded to half pixels
            scores = (level.float() if level.dtype in (torch.float16, torch.bfloat16) else level).sigmoid()
            cell, anchors, stride = self._geometry(scores, anchors, stride)
            xy = (scores[..., :2] * 2 - 0.5 + cell) * stride
            double = scores[..., 2:4] * 2
            wh = double * double * anchors  # not every toolchain has a power
            rows.append(torch.cat((xy, wh, scores[..., 4:]), -1).view(scores.shape[0], -1, self.no))
        return torch.cat(rows, 1)

    def _decode_once(self, raw: list[torch.Tensor]) -> torch.Tensor:
        """`decode` with every score written once, to where it stays: of a small network's time it is a tenth."""
        dtype = torch.float32 if raw[0].dtype in (torch.float16, torch.bfloat16) else raw[0].dtype
        counts = [level[0, ..., 0].numel() for level in raw]
        decoded = raw[0].new_empty(len(raw[0]), sum(counts), self.no, dtype=dtype)
        for level, anchors, stride, rows in zip(raw, self.anchors, self.stride, decoded.split(counts, 1)):
            scores = rows.view(level.shape)
            torch.sigmoid(level.to(dtype), out=scores)
            cell, anchors, stride = self._geometry(scores, anchors, stride)
            scores[..., :2].mul_(2).sub_(0.5).add_(cell).mul_(stride)
            scores[..., 2:4].mul_(2).square_().mul_(anchors)
        return decoded

    @staticmethod
    def _geometry(scores: torch.Tensor, anchors: torch.Tensor, stride: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """For these scores: column and row of each cell (ny, nx, 2), anchors in pixels (na, 1, 1, 2), stride."""
        ny, nx = scores.shape[2:4]
        anchors, stride = anchors.to(scores.dtype), stride.to(scores.device, scores.dtype)
        row = torch.arange(ny, device=scores.device, dtype=scores.dtype)
        column = torch.arange(nx, device=scores.device, dtype=scores.dtype)
        cell = torch.stack((column.expand(ny, nx), row[:, None].expand(ny, nx)), -1)
        return cell, (anchors * stride)[:, None, None], stride

    def initialise_biases(self, class_counts: torch.Tensor | None = None) -> None:
        """Prior of Lin et al. (RetinaNet): about 8 objects in a 640-pixel image, classes at 0.6 / nc or their share."""
        for conv, stride in zip(self.m, self.stride):
            bias = conv.bias.detach().view(self.na, -1)
            bias[:, 4] += math.log(8 / (640 / float(stride)) ** 2)
            if class_counts is None:
                bias[:, 5:] += math.log(0.6 / (self.nc - 0.999999))
            else:
                bias[:, 5:] += torch.log(class_counts / class_counts.sum())

    def _apply(self, fn, recurse=True):
        """Moves the strides, which are no buffer, along with the module."""
        super()._apply(fn, recurse)
        if self.stride is not None:
            self.stride = fn(self.stride)
        return self

    def __setstate__(self, state):
        """Reads heads pickled by v6.1 and older: no `inplace`, grids of the last image, `anchor_grid` as a buffer."""
        super().__setstate__(state)
        self.__dict__.setdefault("inplace", True)
        self._buffers.pop("anchor_grid", None)
        self.grid = [torch.zeros(1)] * self.nl
        self.anchor_grid = [torch.zeros(1)] * self.nl


class Model(nn.Module):
    """A detector built from a model YAML.

    Args:
        cfg: path or name of a YAML, or its content as a dict.
        ch: input channels, unless the YAML says `ch`.
        nc: number of classes, over the YAML's.
        anchors: number of anchors per level, over the YAML's anchors (which are then placeholders for AutoAnchor).
        insert: rows {after, module} of blocks to put in, see models/insert.py.

    Attributes: model (nn.Sequential of layers, each with i, f, type, np), save (layers whose output is used again),
    stride (nl,) in pixels, names, yaml (what was built: a plain YAML, `base` and `insert` written out).
    """

    def __init__(self, cfg="yolov5s.yaml", ch=3, nc=None, anchors=None, insert=()):
        super().__init__()
        path = None if isinstance(cfg, dict) else find_file(cfg, (".yaml", ".yml"))
        source = path.name if path else "model"
        if path:
            self.yaml_file = path.name
        self.yaml = plain_yaml(deepcopy(cfg) if path is None else read_yaml(path), source, path)
        if insert:
            self.yaml = insert_rows(self.yaml, insert, layer_strides(self.yaml, source), source)
        ch = self.yaml["ch"] = self.yaml.get("ch", ch)
        if nc and nc != self.yaml["nc"]:
            LOGGER.info(f"{source}: nc {self.yaml['nc']} becomes the data set's {nc}")
            self.yaml["nc"] = nc
        if anchors:
            self.yaml["anchors"] = round(anchors)
        self.model, self.save = parse_model(self.yaml, [ch], source)
        self.names = [str(i) for i in range(self.yaml["nc"])]
        self.inplace = self.yaml.get("inplace", True)

        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eps, m.momentum = 1e-3, 0.03
            elif isinstance(m, nn.Hardswish | nn.LeakyReLU | nn.ReLU | nn.ReLU6 | nn.SiLU):
                m.inplace = True
        head = self.model[-1]
        if isinstance(head, Detect):
            head.inplace = self.inplace
            self._set_strides(head, ch, source)
            head.initialise_biases()

    @torch.no_grad()
    def _set_strides(self, head: Detect, ch: int, source: str) -> None:
        # in eval mode, so that no batch norm learns from an image of zeros
        self.eval()
        head.stride = torch.ones(head.nl)
        maps = self._probe(ch, source)
        self.train()
        head.stride = self.stride = torch.tensor([PROBE_SIZE / m.shape[2] for m in maps])
        if not (head.stride.diff() > 0).all() and not (head.stride.diff() < 0).all():
            raise ValueError(f"{source}, Detect: its inputs must go from fine to coarse, got strides {head.stride}")
        # anchors must grow with the stride: in pixels, since divided by it those that grow slowly would seem to shrink
        area = head.anchors.prod(-1).flatten()
        if torch.sign(area[-1] - area[0]) != torch.sign(head.stride[-1] - head.stride[0]):
            LOGGER.info(f"{source}: anchors run against the strides; reversing their levels")
            head.anchors[:] = head.anchors.flip(0)
        head.anchors /= head.stride.view(-1, 1, 1)

    def _probe(self, ch: int, source: str) -> list[torch.Tensor]:
        """The head's maps for an empty image; ValueError that names the row whose inputs do not fit."""
        reached = []
        hooks = [m.register_forward_pre_hook(lambda m, inputs: reached.append((m, inputs[0]))) for m in self.model]
        try:
            return self(torch.zeros(1, ch, PROBE_SIZE, PROBE_SIZE))[1]
        except RuntimeError as error:
            layer, maps = reached[-1]
            strides = [PROBE_SIZE / m.shape[2] for m in maps] if isinstance(maps, list) else []
            fault = f"maps of strides {strides} come in; they must share one" if len(set(strides)) > 1 else error
            k = layer.i - len(self.yaml["backbone"])
            place = _place(source, "backbone", layer.i, layer.i) if k < 0 else _place(source, "head", k, layer.i)
            raise ValueError(f"{place}: {layer.type.split('.')[-1]} from {layer.f}: {fault}") from error
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def image_multiple(self) -> int:
        """The multiple in pixels that image sides must be of: the largest stride, at least 32."""
        return max(int(self.stride.max()), 32)

    def forward(self, x: torch.Tensor, augment: bool = False):
        """x (B, ch, H, W), 0-1, sides multiples of the largest stride -> what Detect returns."""
        if augment:
            return self._forward_augmented(x), None
        outputs = []
        for layer in self.model:
            if layer.f != -1:
                x = outputs[layer.f] if isinstance(layer.f, int) else [x if j == -1 else outputs[j] for j in layer.f]
            x = layer(x)
            outputs.append(x if layer.i in self.save else None)
        return x

    def _forward_augmented(self, x: torch.Tensor) -> torch.Tensor:
        """Test-time augmentation: full size, 0.83 mirrored, 0.67; their boxes side by side, in pixels of x."""
        width = x.shape[3]
        multiple = int(self.stride.max())
        decoded = []
        for ratio, mirror in ((1, False), (0.83, True), (0.67, False)):
            image = scale_image(x.flip(3) if mirror else x, ratio, multiple)
            y = self(image)[0]
            y[..., :4] /= ratio
            if mirror:
                y[..., 0] = width - y[..., 0]
            decoded.append(y)
        # the coarsest level of the full picture and the finest of the smallest bring mostly false alarms
        nl = self.model[-1].nl
        cells = sum(4**level for level in range(nl))
        decoded[0] = decoded[0][:, : -(decoded[0].shape[1] // cells)]
        decoded[-1] = decoded[-1][:, decoded[-1].shape[1] // cells * 4 ** (nl - 1) :]
        return torch.cat(decoded, 1)

    def fuse(self) -> "Model":
        """Folds every batch norm that follows a convolution into it, for inference."""
        for m in self.modules():
            if isinstance(m, Conv):
                m.fuse()
        return self

    def info(self, image_size: int = 640) -> None:
        """Logs one line: modules, parameters, gradients, GFLOPs of one image."""
        parameters = sum(p.numel() for p in self.parameters())
        gradients = sum(p.numel() for p in self.parameters() if p.requires_grad)
        LOGGER.info(
            f"{getattr(self, 'yaml_file', 'model')}: {len(list(self.modules()))} modules, {parameters:,} parameters, "
            f"{gradients:,} gradients, {self.gflops(image_size):.1f} GFLOPs at {image_size} px"
        )

    def gflops(self, image_size: int = 640) -> float:
        """Floating point operations (a multiply-add is two) of one image of image_size x image_size, in 1e9."""
        parameter = next(self.parameters())
        size = round_up(image_size, int(self.stride.max()))
        x = torch.zeros(1, self.yaml.get("ch", 3), size, size, device=parameter.device, dtype=parameter.dtype)
        was_training = self.training
        with torch.no_grad(), flop_counter() as counter:
            self.eval()(x)
        self.train(was_training)
        return counter.get_total_flops() / 1e9 * (image_size / size) ** 2


DetectionModel = Model  # its later name


def flop_counter():
    """A FlopCounterMode that also counts the attention kernel of CPUs, which torch leaves out."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def count(query, key, value, *_, **__) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: count})


# --- from YAML to layers ----------------------------------------------------------------------------------------------


def plain_yaml(d: dict, source: str = "model", path: Path | None = None, above: tuple[str, ...] = ()) -> dict:
    """The content of a model YAML with `base` and `insert` written out: v6.1's keys and rows, checked.

    Args:
        d: content. With `base: FILE` it is that file's, but for the keys given here; then come the rows of `insert`.
        source: name for error messages.
        path: of the file, beside which `base` is looked for first.
        above: files that led here by their `base`.
    """
    changes = dict(d)
    rows = changes.pop("insert", None)
    base = changes.pop("base", None)
    if base is not None:
        d = {**_read_base(base, source, path, above), **_check_changes(changes, source)}
    else:
        d = changes
    _check_keys(d, source)
    return d if rows is None else insert_rows(d, rows, layer_strides(d, source), source)


def _read_base(base: str, source: str, path: Path | None, above: tuple[str, ...]) -> dict:
    if not isinstance(base, str):
        raise ValueError(f"{source}: base must name a model YAML, such as yolov5s.yaml, got {base!r}")
    beside = path.parent / base if path else Path(base)
    file = beside if beside.is_file() else find_file(base, (".yaml", ".yml"))
    chain = (*above, str(path.resolve()) if path else source)
    if str(file.resolve()) in chain:
        raise ValueError(f"{source}: base {base} leads back to itself")
    return plain_yaml(read_yaml(file), file.name, file, chain)


def _check_changes(changes: dict, source: str) -> dict:
    known = ("nc", "depth_multiple", "width_multiple", "anchors", "ch", "inplace")
    if unknown := [key for key in changes if key not in known]:
        raise ValueError(f"{source}: beside base stand insert, {', '.join(known)}; got {', '.join(map(str, unknown))}")
    return changes


@torch.no_grad()
def layer_strides(d: dict, source: str = "model") -> list[float | None]:
    """Image side over map side of each layer of a plain YAML, None where no single map comes out (Detect).

    A model is built for it and thrown away; the global random numbers go on as if it were not.
    """
    with torch.random.fork_rng(devices=[]):
        model = Model(d).eval()
    strides = []
    for layer in model.model:
        layer.register_forward_hook(
            lambda layer, inputs, y: strides.append(PROBE_SIZE / y.shape[2] if isinstance(y, torch.Tensor) else None)
        )
    model._probe(d.get("ch", 3), source)
    return strides


def parse_model(d: dict, ch: list[int], source: str = "model") -> tuple[nn.Sequential, list[int]]:
    """Builds the layers of a model YAML.

    Args:
        d: the YAML's content: nc, depth_multiple, width_multiple, anchors, and rows [from, number, module, args] under
            backbone and head.
        ch: [input channels].
        source: name for error messages.

    Returns:
        layers, and the sorted indices of those whose output a later row names.
    """
    anchors, nc = d["anchors"], d["nc"]
    na = len(anchors[0]) // 2 if isinstance(anchors, list) else anchors
    words = {"nc": nc, "anchors": anchors, "None": None, "True": True, "False": False}
    rows = [("backbone", k, row) for k, row in enumerate(d["backbone"])]
    rows += [("head", k, row) for k, row in enumerate(d["head"])]

    layers, save, channels = [], [], []
    LOGGER.debug(f"{'':>3}{'from':>18}{'n':>3}{'params':>10}  {'module':<40}{'arguments':<30}")
    for i, (section, k, row) in enumerate(rows):
        place = _place(source, section, k, i)
        f, number, name, args = _check_row(row, i, place)
        n = max(round(number * d["depth_multiple"]), 1) if number > 1 else number
        args = [words.get(a, a) if isinstance(a, str) else a for a in args]
        incoming = [(channels[j] if i else ch[0]) for j in ([f] if isinstance(f, int) else f)]
        try:
            block, rule = lookup(name)
            arguments, c2, copies = rule(Row(incoming, n, args, d["width_multiple"], na * (nc + 5)))
            layer = nn.Sequential(*(block(*arguments) for _ in range(copies))) if copies > 1 else block(*arguments)
        except (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError) as error:
            raise ValueError(f"{place}: {name}{args}: {error}") from error

        layer.i, layer.f, layer.np = i, f, sum(p.numel() for p in layer.parameters())
        layer.type = f"{block.__module__}.{block.__qualname__}"
        LOGGER.debug(f"{i:>3}{f!s:>18}{n:>3}{layer.np:>10}  {layer.type:<40}{arguments!s:<30}")
        save += [j % i for j in ([f] if isinstance(f, int) else f) if j != -1]
        layers.append(layer)
        channels.append(c2)
    return nn.Sequential(*layers), sorted(save)


def _place(source: str, section: str, row: int, layer: int) -> str:
    return f"{source}, {section} row {row} (layer {layer})"


def _check_keys(d: dict, source: str) -> None:
    wanted = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
    missing = [key for key in wanted if key not in d]
    if missing:
        raise ValueError(f"{source}: a model YAML needs {', '.join(wanted)}; missing: {', '.join(missing)}")
    for key in ("backbone", "head"):
        if not isinstance(d[key], list) or not d[key]:
            raise ValueError(f"{source}: {key} must be a list of rows [from, number, module, args], got {d[key]!r}")
    for key, kinds in (("nc", int), ("depth_multiple", int | float), ("width_multiple", int | float)):
        if not isinstance(d[key], kinds) or isinstance(d[key], bool) or d[key] <= 0:
            raise ValueError(f"{source}: {key} must be a positive number, got {d[key]!r}")
    anchors = d["anchors"]
    if isinstance(anchors, list):
        if not anchors or any(not isinstance(level, list) or len(level) % 2 or not level for level in anchors):
            raise ValueError(f"{source}: anchors must be one list of w,h pairs per level, got {anchors!r}")
    elif not isinstance(anchors, int) or anchors < 1:
        raise ValueError(f"{source}: anchors must be lists of w,h pairs or a number of anchors, got {anchors!r}")


def _check_row(row: list, i: int, place: str) -> tuple[int | list[int], int, str, list]:
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError(f"{place}: a row is [from, number, module, args], got {row!r}")
    f, number, name, args = row
    sources = [f] if isinstance(f, int) else f
    if not isinstance(sources, list) or not sources or not all(isinstance(j, int) for j in sources):
        raise ValueError(f"{place}: `from` must be a layer number or a list of them, got {f!r}")
    for j in sources:
        if not -max(i, 1) <= j < i:
            before = f"only layers 0 to {i - 1} come" if i else "no layer comes"
            raise ValueError(f"{place}: `from` names layer {j}, but {before} before it")
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{place}: the number of repeats must be a whole number from 1, got {number!r}")
    if not isinstance(args, list):
        raise ValueError(f"{place}: args must be a list, got {args!r}")
    return f, number, name, args


def scale_image(image: torch.Tensor, ratio: float, multiple: int = 32, keep_shape: bool = False) -> torch.Tensor:
    """Images (B, C, H, W) resized by ratio, then padded right and below with the mean grey 0.447.

    The padded size is the scaled one rounded up to the multiple, or the original one with keep_shape.
    """
    if ratio == 1:
        return image
    H, W = image.shape[2:]
    size = int(H * ratio), int(W * ratio)
    image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
    if not keep_shape:
        H, W = (math.ceil(side * ratio / multiple) * multiple for side in (H, W))
    return F.pad(image, [0, W - size[1], 0, H - size[0]], value=0.447)


def checkpoint_classes() -> set[type]:
    """The module classes of this project that a checkpoint may hold."""
    rooms = (common, attention, experimental, sys.modules[__name__])
    found = {c for room in rooms for c in vars(room).values() if isinstance(c, type) and issubclass(c, nn.Module)}
    return {c for c in found if c.__module__.startswith("models.")}


def profile_layers(model: "Model", images: torch.Tensor, repeats: int = 10) -> list[float]:
    """Milliseconds that each layer of the model takes for images (B, 3, H, W): medians of `repeats` forward passes."""
    seconds = [[] for _ in model.model]
    timer = Timer(images.device)  # one layer runs at a time
    hooks = []
    for layer, taken in zip(model.model, seconds, strict=True):
        hooks.append(layer.register_forward_pre_hook(lambda *_: timer.start()))
        hooks.append(layer.register_forward_hook(lambda *_, taken=taken: taken.append(timer.stop())))
    with torch.no_grad():
        for _ in range(repeats + 1):
            model(images)
    for hook in hooks:
        hook.remove()
    return [1000 * median(taken[1:]) for taken in seconds]  # the first pass allocates


def main() -> None:
    """Command line: print the table of one model YAML, or build them all."""
    import argparse

    parser = argparse.ArgumentParser(description="Build a model YAML and print its layers.")
    parser.add_argument("--cfg", default="yolov5s.yaml", help="model YAML")
    parser.add_argument("--device", default="", help="cpu, or a GPU number such as 0")
    parser.add_argument("--profile", action="store_true", help="time each layer at 640 px")
    parser.add_argument("--test", action="store_true", help="build every model YAML of the project")
    opt = parser.parse_args()
    LOGGER.setLevel(logging.DEBUG)
    device = select_device(opt.device)
    root = Path(__file__).parent
    cfgs = sorted(p for p in root.rglob("*.yaml") if p.name != "anchors.yaml") if opt.test else [opt.cfg]
    for cfg in cfgs:
        model = Model(cfg).to(device, memory_format=torch.channels_last)
        model.info()
        if opt.profile:
            batch = 8 if device.type == "cuda" else 1
            images = torch.rand(batch, model.yaml["ch"], 640, 640, device=device)
            times = profile_layers(model.eval(), images.contiguous(memory_format=torch.channels_last))
            for layer, ms in zip(model.model, times, strict=True):
                LOGGER.info(f"{layer.i:>3}  {ms:8.2f} ms  {layer.np:>10} parameters  {layer.type}")
            LOGGER.info(f"{sum(times):13.2f} ms for {batch} x 640 x 640")
