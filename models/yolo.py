"""The detector: Detect (the head) and Model (a network built from a YAML, see architecture.py).

`python models/yolo.py --cfg SOCA.yaml` prints a model's table.
"""

import argparse
import logging
import math
import sys
from copy import deepcopy
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # run as a script: hand over to the module of that name, which owns the classes
    if not __package__:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from models.yolo import main, make_parser
    from utils import cli

    sys.exit(cli.run(main, lambda: cli.parse(make_parser()), "yolo.py"))

import torch
import torch.nn.functional as F
from torch import nn

from models import attention, channel_attention, common, experimental  # noqa: F401  model YAMLs name their blocks
from models.architecture import check_all_used, check_arguments, layer_strides, parse_model, plain_yaml
from models.common import Conv
from models.insert import insert_rows
from models.registry import detects, register
from utils import cli
from utils.boxes import round_up
from utils.device import Timer, select_device
from utils.files import find_file, read_yaml
from utils.log import LOGGER


@register(detects)
class Detect(nn.Module):
    """The detection head: a 1 x 1 convolution for each level, and the decoding of its maps into boxes.

    Training: list of nl raw maps (B, na, ny, nx, 5 + nc), logits.
    Inference: (decoded (B, N, 5 + nc), raw maps), rows ordered by level, anchor, row, column. With s = sigmoid(raw),
        xy = (2 s_xy - 0.5 + cell) stride,   wh = (2 s_wh)^2 anchor,   objectness and class scores = s.

    Attributes that checkpoints carry: anchors (nl, na, 2) in grid units, stride (nl,) in pixels.
    """

    stride = None  # set by Model
    in_float32 = True  # the decoding, in exported files of less precision too

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
        # in this order: torch.compile cannot ask for inference mode, and its graph would end there
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if not self.training and not traced and torch.is_inference_mode_enabled():
            return self._decode_once(raw), raw
        raw = [level.contiguous() for level in raw]
        return raw if self.training else (self.decode(raw), raw)

    def decode(self, raw: list[torch.Tensor]) -> torch.Tensor:
        """Decodes raw maps, each (B, na, ny, nx, 5 + nc), into boxes (B, N, 5 + nc): x, y, w, h in input pixels, and
        scores 0-1.
        """
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
        """Decodes like `decode`, but writes every score once, to its final position.

        Decoding is a tenth of the time of a small network.
        """
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
        """Returns column and row of each cell (ny, nx, 2), anchors in pixels (na, 1, 1, 2), and the stride."""
        ny, nx = scores.shape[2:4]
        anchors, stride = anchors.to(scores.dtype), stride.to(scores.device, scores.dtype)
        row = torch.arange(ny, device=scores.device, dtype=scores.dtype)
        column = torch.arange(nx, device=scores.device, dtype=scores.dtype)
        cell = torch.stack((column.expand(ny, nx), row[:, None].expand(ny, nx)), -1)
        return cell, (anchors * stride)[:, None, None], stride

    def initialise_biases(self, class_counts: torch.Tensor | None = None) -> None:
        """Sets the prior of Lin et al., RetinaNet: about 8 objects in an image of 640 pixels, each class with the
        probability 0.6 / nc, or with its share of class_counts (nc,).
        """
        for conv, stride in zip(self.m, self.stride):
            bias = conv.bias.detach().view(self.na, -1)
            bias[:, 4] += math.log(8 / (640 / float(stride)) ** 2)
            if class_counts is None:
                bias[:, 5:] += math.log(0.6 / (self.nc - 0.999999))
            else:
                bias[:, 5:] += torch.log(class_counts / class_counts.sum())

    def _apply(self, fn, recurse=True):
        """Moves the strides, which are not a buffer, along with the module."""
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
        nc: number of classes, instead of the YAML's.
        anchors: number of anchors per level, instead of the YAML's anchors; they are placeholders for AutoAnchor.
        insert: rows {after, module} of blocks to insert, see models/insert.py.
        trained: whether the YAML is that of a trained network, which is built as it is; a new one is checked for rows
            that were hardly meant so.

    Attributes: model (nn.Sequential of layers, each with i, f, type, np), save (layers whose output is used again),
    stride (nl,) in pixels, names, yaml (the plain YAML that was built, with `base` and `insert` written out).
    """

    def __init__(self, cfg="yolov5s.yaml", ch=3, nc=None, anchors=None, insert=(), trained=False):
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
            LOGGER.info(f"{source}: nc is {self.yaml['nc']}, but the data set has {nc} classes; using {nc}")
            self.yaml["nc"] = nc
        if anchors:
            self.yaml["anchors"] = round(anchors)
        if not trained:
            check_arguments(self.yaml, source)
        self.model, self.save = parse_model(self.yaml, [ch], source)
        if not trained:
            check_all_used(self.yaml, source)
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
            strides = layer_strides(self.yaml, source)
            self._set_strides(head, [strides[j % head.i] for j in head.f], source)
            head.initialise_biases()

    def _set_strides(self, head: Detect, strides: list[float], source: str) -> None:
        head.stride = self.stride = torch.tensor(strides, dtype=torch.float32)
        if not (head.stride.diff() > 0).all() and not (head.stride.diff() < 0).all():
            raise ValueError(f"{source}, Detect: its inputs must go from fine to coarse, got strides {strides}")
        # anchors must grow with the stride: in pixels, since divided by it those that grow slowly would seem to shrink
        area = head.anchors.prod(-1).flatten()
        if torch.sign(area[-1] - area[0]) != torch.sign(head.stride[-1] - head.stride[0]):
            LOGGER.info(f"{source}: anchors must grow with the strides, but they fall; reversing their levels")
            head.anchors[:] = head.anchors.flip(0)
        head.anchors /= head.stride.view(-1, 1, 1)

    @property
    def image_multiple(self) -> int:
        """Returns the multiple in pixels that image sides must be of: the largest stride, at least 32."""
        return max(int(self.stride.max()), 32)

    def forward(
        self, x: torch.Tensor, augment: bool = False, profile: bool = False, visualize: str | Path | bool = False
    ):
        """Returns what Detect makes of images x (B, ch, H, W), 0-1, whose sides are multiples of the largest stride.

        augment: test-time augmentation. profile: log the time that each layer takes. visualize: a folder, to which the
        feature maps of the layers are written.
        """
        if profile:
            log_profile(self, x)
        if visualize:
            from utils.inference.features import FeatureRecorder

            with FeatureRecorder(self, Path(visualize)):
                return self(x, augment)
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
        """Returns the boxes of three versions of x - full size, 0.83 mirrored, 0.67 - in pixels of x."""
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
        # the coarsest level of the full image and the finest level of the smallest one give mostly false positives
        nl = self.model[-1].nl
        cells = sum(4**level for level in range(nl))
        decoded[0] = decoded[0][:, : -(decoded[0].shape[1] // cells)]
        decoded[-1] = decoded[-1][:, decoded[-1].shape[1] // cells * 4 ** (nl - 1) :]
        return torch.cat(decoded, 1)

    def fuse(self) -> "Model":
        """Folds each batch norm into the convolution before it, for inference; changes the model and returns it."""
        for m in self.modules():
            if isinstance(m, Conv):
                m.fuse()
        return self

    def info(self, image_size: int = 640) -> None:
        """Logs the number of modules, parameters and gradients, and the GFLOPs of one image, in one line."""
        parameters = sum(p.numel() for p in self.parameters())
        gradients = sum(p.numel() for p in self.parameters() if p.requires_grad)
        LOGGER.info(
            f"{getattr(self, 'yaml_file', 'model')}: {len(list(self.modules()))} modules, {parameters:,} parameters, "
            f"{gradients:,} gradients, {self.gflops(image_size):.1f} GFLOPs at {image_size} px"
        )

    def gflops(self, image_size: int = 640) -> float:
        """Returns the floating point operations of one square image, in 1e9; a multiply-add counts as two."""
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
    """Returns a FlopCounterMode that also counts the attention kernel of CPUs, which torch leaves out."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def count(query, key, value, *_, **__) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: count})


def scale_image(image: torch.Tensor, ratio: float, multiple: int = 32, keep_shape: bool = False) -> torch.Tensor:
    """Resizes images (B, C, H, W) by ratio, then pads them on the right and below with the mean grey 0.447.

    The padded size is the scaled size rounded up to the multiple, or with keep_shape the original size.
    """
    if ratio == 1:
        return image
    H, W = image.shape[2:]
    size = int(H * ratio), int(W * ratio)
    image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
    if not keep_shape:
        H, W = (math.ceil(side * ratio / multiple) * multiple for side in (H, W))
    return F.pad(image, [0, W - size[1], 0, H - size[0]], value=0.447)


def profile_layers(model: "Model", images: torch.Tensor, repeats: int = 10) -> list[float]:
    """Returns the milliseconds of each layer for images (B, 3, H, W), as medians of `repeats` forward passes."""
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


def log_profile(model: "Model", images: torch.Tensor, repeats: int = 10) -> list[float]:
    """Logs and returns the milliseconds of each layer, see `profile_layers`."""
    times = profile_layers(model, images, repeats)
    for layer, ms in zip(model.model, times, strict=True):
        LOGGER.info(f"{layer.i:>3}  {ms:8.2f} ms  {layer.np:>10} parameters  {layer.type}")
    return times


def make_parser() -> argparse.ArgumentParser:
    """States the options of `python models/yolo.py`."""
    parser = argparse.ArgumentParser(description="Build a model YAML and print its layers.")
    parser.add_argument("--cfg", default="yolov5s.yaml", help="model YAML (default: %(default)s)")
    parser.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: a GPU if there is one)")
    parser.add_argument("--profile", action="store_true", help="time each layer with an image of 640 pixels")
    parser.add_argument("--test", action="store_true", help="build every model YAML in models/ instead of one")
    return parser


def main(opt: cli.Options) -> None:
    """Runs the command line: builds one model YAML, or all of them, and prints their layers."""
    if opt.test and "cfg" in opt.given:
        raise ValueError("--test builds every model YAML, so it cannot be combined with --cfg")
    LOGGER.setLevel(logging.DEBUG)
    device = select_device(opt.device)
    every = sorted(p for p in Path(__file__).parent.rglob("*.yaml") if p.name != "anchors.yaml")
    for cfg in every if opt.test else [opt.cfg]:
        model = Model(cfg).to(device, memory_format=torch.channels_last)
        model.info()
        if opt.profile:
            batch = 8 if device.type == "cuda" else 1
            images = torch.rand(batch, model.yaml["ch"], 640, 640, device=device)
            times = log_profile(model.eval(), images.contiguous(memory_format=torch.channels_last))
            LOGGER.info(f"{sum(times):13.2f} ms for {batch} x 640 x 640")
