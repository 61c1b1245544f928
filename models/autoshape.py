"""A detector for images of any kind, and its results: what `torch.hub.load(...)` and Python programs call."""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from torch import nn

from models.backend import Backend, channels_of
from models.yolo import log_profile
from utils import cli
from utils.boxes import round_up, xyxy_to_xywh
from utils.class_names import ClassNames, class_numbers
from utils.data.images import fit_channels, pillow_pixels, read_image, viewable
from utils.data.letterbox import letterbox_planes, scale_boxes
from utils.device import Timer
from utils.downloads import download
from utils.drawing import class_name, draw_boxes, write_image
from utils.files import increment_path
from utils.inference.outputs import crop, result_stems, summary, write_crop
from utils.log import LOGGER
from utils.nms import non_max_suppression
from utils.text import PACKAGE

if TYPE_CHECKING:
    import supervision

SAVE_DIR = "runs/detect/exp"


class AutoShape(nn.Module):
    """A detector that takes images of any kind: files, URLs, Pillow images, arrays, tensors.

    A call changes nothing in it, so several threads may share one.

    Args:
        model: a Backend or a Model; it is put into eval mode.

    Attributes that may be set:
        conf, iou:    0-1. As in `non_max_suppression`, like agnostic, multi_label and max_det.
        classes:      detect only these, numbers or names.
        amp:          run under autocast if the model is on a GPU.
        download:     fetch images of URLs (http, https); otherwise a URL is a ValueError.
    """

    __module__ = f"{PACKAGE}models.common"  # where v6.1 has it, and where programs look whose model it is
    conf = 0.25
    iou = 0.45
    agnostic = False
    multi_label = False
    classes: Sequence[int | str] | None = None
    max_det = 1000
    amp = False
    download = False

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.eval()
        for name in ("yaml", "nc", "hyp", "abc"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.names = ClassNames(model.names)
        self.dmb = isinstance(model, Backend)  # these two are v6.2's: whether it is a backend, and of a .pt file
        self.pt = not self.dmb or model.runtime is None
        self.stride, self.channels = int(torch.as_tensor(model.stride).max()), channels_of(model)

    @property
    def fp16(self) -> bool:
        """Whether the weights are in float16."""
        return self._like().dtype == torch.float16

    def warmup(self, imgsz: Sequence[int] = (1, 3, 640, 640)) -> None:
        """Runs once over zeros of this shape (B, C, H, W), on a GPU only: the first pass takes longer than others."""
        if self._like().device.type != "cpu":
            self(torch.zeros(*imgsz))

    @torch.no_grad()
    def forward(self, imgs, size: int | Sequence[int] = 640, augment: bool = False, profile: bool = False):
        """Detects objects in an image or a list of images, of any kinds and sizes.

        imgs:    each the path of a file; a URL, see `download`; a Pillow image; an array, (H, W, 3) RGB, uint8, or
                 uint16 as in files of 16 bits, (H, W) grey, or (C, H, W); a tensor (3, H, W), RGB, uint8, or floating
                 point 0-1. Or one tensor (B, 3, H, W), 0-1, sides multiples of the stride.
        size:    pixels to which the longer side of each image is resized; or (height, width) into which it must fit.
        augment: test-time augmentation.
        profile: log the time that each layer takes.

        Returns Detections; for a tensor (B, 3, H, W) the output of the model, for a Backend its decoded rows.

        Raises ValueError for an input that is not an image, FileNotFoundError where a file is missing.
        """
        parameter, classes = self._like(), class_numbers(self.classes, self.names, "the model")
        if isinstance(imgs, torch.Tensor) and imgs.ndim == 4:
            with self._autocast(parameter):
                output = self.model(imgs.to(parameter.device, parameter.dtype), augment=augment)
            return _decoded(output) if isinstance(self.model, Backend) else output

        timers = [Timer(parameter.device) for _ in range(3)]
        with timers[0]:
            several = imgs if isinstance(imgs, list | tuple) else [imgs]
            if not several:
                raise ValueError("the list of images is empty; give at least one image")
            images, names = zip(*(self._read(image, i) for i, image in enumerate(several)))
            shapes = [image.shape[:2] for image in images]
            input_shape = self._input_shape(shapes, size)
            planes = np.stack([self._planes(image, input_shape) for image in images])
            pixels = torch.from_numpy(planes).to(parameter.device).to(parameter.dtype) / 255
        if profile:
            self._profile(pixels)
        with timers[1], self._autocast(parameter):
            decoded = _decoded(self.model(pixels, augment=augment))
        with timers[2]:
            pred = non_max_suppression(
                decoded, self.conf, self.iou, classes, self.agnostic, self.multi_label, max_det=self.max_det
            )
            for boxes, shape in zip(pred, shapes):
                boxes[:, :4] = scale_boxes(boxes[:, :4], input_shape, shape)
        files = [f"{stem}.jpg" for stem in result_stems(names)]
        times = tuple(timer.total for timer in timers)
        return Detections(list(map(viewable, images)), pred, files, times, self.names, tuple(pixels.shape))

    def _like(self) -> torch.Tensor:
        """Returns a tensor of the device and type that the model takes; exported files have no parameters."""
        if isinstance(self.model, Backend):
            return torch.empty(0, device=self.model.device, dtype=self.model.dtype)
        return next(self.model.parameters())

    def _autocast(self, parameter: torch.Tensor):
        return torch.autocast(parameter.device.type, enabled=self.amp and parameter.device.type == "cuda")

    def _input_shape(self, shapes: Sequence[tuple[int, int]], size: int | Sequence[int]) -> tuple[int, int]:
        """Returns (height, width), multiples of the stride, that hold all images resized to `size`."""
        sides = list(size) if isinstance(size, Sequence) else [size]
        if len(sides) not in (1, 2) or min(sides) < 1:
            raise ValueError(f"size must be at least 1 pixel: one number, or height and width, got {size}")
        gains = [min(sides[0] / height, sides[-1] / width) for height, width in shapes]
        heights, widths = zip(*((height * gain, width * gain) for (height, width), gain in zip(shapes, gains)))
        return round_up(max(heights), self.stride), round_up(max(widths), self.stride)

    def _planes(self, image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        planes = letterbox_planes(fit_channels(image, self.channels, bgr=False), shape, auto=False)[0]
        return planes[::-1] if len(planes) == 3 else planes  # of RGB, which letterbox_planes took for BGR

    def _profile(self, pixels: torch.Tensor) -> None:
        detector = self.model.model if isinstance(self.model, Backend) else self.model
        if detector is None:
            raise ValueError("profile times the layers of a .pt file, and this is an exported file")
        if isinstance(detector, nn.ModuleList):
            raise ValueError("profile times the layers of one model, and this is an ensemble")
        log_profile(detector, pixels, repeats=3)

    def _read(self, image: Any, i: int) -> tuple[np.ndarray, str]:
        """Returns an image, uint8 (H, W, 3) RGB, or (H, W, C) if the model takes more, and the name of its results."""
        from PIL import Image

        nameless = f"image{i}.jpg"
        if isinstance(image, str | Path):
            if str(image).lower().startswith(("http://", "https://")):
                return self._fetch(str(image))
            return self._file(image), str(image)
        if isinstance(image, Image.Image):
            name = str(getattr(image, "filename", "") or nameless)
            try:
                if self.channels in (1, 3):
                    return pillow_pixels(image, "RGB"), name
                if self.channels == len(image.getbands()) == 4:
                    return pillow_pixels(image, "RGBA")[..., [2, 1, 0, 3]], name  # as OpenCV reads the file
                raise ValueError(f"the network takes {self.channels} channels, got a Pillow image {image.mode}")
            except ValueError as error:
                raise ValueError(f"image {i}: {error}") from None
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            if image.is_floating_point():
                image = (image.float() * 255).round().clamp(0, 255).byte()
        return _as_pixels(np.asarray(image), i, self.channels), nameless

    def _fetch(self, url: str) -> tuple[np.ndarray, str]:
        if not self.download:
            raise ValueError(f"{url}: URLs are not fetched unless allowed; set `model.download = True`")
        name = PurePosixPath(unquote(urlsplit(url).path)).name or "image.jpg"
        with tempfile.TemporaryDirectory() as folder:
            return self._file(download(url, Path(folder) / "image")), name

    def _file(self, path: str | Path) -> np.ndarray:
        if self.channels in (1, 3):
            return np.ascontiguousarray(read_image(path)[..., ::-1])
        return read_image(path, self.channels)


def _decoded(output: Any) -> torch.Tensor:
    """The decoded rows (B, N, 5 + nc) of what a model returns: these, or a tuple that begins with them."""
    return output if isinstance(output, torch.Tensor) else output[0]


def _as_pixels(image: np.ndarray, i: int, channels: int) -> np.ndarray:
    """Returns an array as uint8, a copy: (H, W, channels), or RGB where the network takes grey.

    i is its position in the list, for errors.
    """
    known = (1, 3, 4) if channels in (1, 3) else (channels,)
    shape = image.shape
    if image.ndim == 2:
        image = image[..., None]
    elif image.ndim == 3 and (shape[0] < 5 or (shape[0] == channels and shape[2] != channels)):
        image = image.transpose(1, 2, 0)
    if image.ndim != 3 or image.shape[2] not in known or not image.size:
        raise ValueError(f"image {i}: expected an array {_shapes(channels)}, got {image.dtype} {shape}")
    if image.dtype == np.uint16 and image.max() > 255:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        top = image.max()
        if not np.issubdtype(image.dtype, np.number) or top > 255 or (0 < top <= 1 and image.dtype.kind == "f"):
            raise ValueError(f"image {i}: expected values 0-255, got {image.dtype} up to {top}; multiply 0-1 by 255")
        image = image.clip(0).astype(np.uint8)
    if channels not in (1, 3):
        return np.array(image)
    return np.ascontiguousarray(np.broadcast_to(image[..., :3], (*image.shape[:2], 3)))


def _shapes(channels: int) -> str:
    return "(H, W, 3), (H, W) or (3, H, W)" if channels in (1, 3) else f"(H, W, {channels}) or ({channels}, H, W)"


class Detections:
    """The detections in n images.

    Attributes, lists with an entry per image:
        imgs = ims:   RGB uint8 (H, W, 3); after `render` with boxes.
        xyxy = pred:  float32 (k, 6): x1, y1, x2, y2 in pixels of the image, confidence, class; most confident first.
        xywh:         the same with centre and size.
        xyxyn, xywhn: these divided by the size of the image, 0-1.
        files:        the file names for saving.
    n: number of images; names: of the classes; times: seconds of pre-processing, inference and NMS;
    t: milliseconds per image of these three; s: shape (B, 3, h, w) of the network's input.
    """

    __module__ = f"{PACKAGE}models.common"

    def __init__(
        self,
        imgs: list[np.ndarray],
        pred: list[torch.Tensor],
        files: list[str],
        times: Sequence[float] = (0.0, 0.0, 0.0),
        names: Sequence[str] | None = None,
        shape: tuple[int, ...] | None = None,
    ):
        self.imgs, self.pred, self.files, self.times, self.names, self.s = imgs, pred, files, times, names, shape
        self.n = len(pred)
        self.t = tuple(1000 * seconds / max(self.n, 1) for seconds in times)
        sizes = [boxes.new_tensor([*image.shape[1::-1] * 2, 1, 1]) for image, boxes in zip(imgs, pred)]
        self.xyxy = pred
        self.xywh = [torch.cat((xyxy_to_xywh(boxes[:, :4]), boxes[:, 4:]), 1) for boxes in pred]
        self.xyxyn = [boxes / size for boxes, size in zip(self.xyxy, sizes)]
        self.xywhn = [boxes / size for boxes, size in zip(self.xywh, sizes)]

    @property
    def ims(self) -> list[np.ndarray]:
        """The images; v6.2's name of `imgs`."""
        return self.imgs

    @ims.setter
    def ims(self, images: list[np.ndarray]) -> None:
        self.imgs = images

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator["Detections"]:
        return iter(self.tolist())

    def __getitem__(self, i: int) -> "Detections":
        return self.tolist()[i]

    def __str__(self) -> str:
        lines = []
        for i, (image, boxes) in enumerate(zip(self.imgs, self.pred), 1):
            lines.append(f"image {i}/{self.n}: {image.shape[0]}x{image.shape[1]} {summary(boxes, self._names())}")
        pre, inference, nms = self.t
        lines.append(
            f"per image: {pre:.1f} ms pre-process, {inference:.1f} ms inference, {nms:.1f} ms NMS, at shape {self.s}"
        )
        return "\n".join(lines)

    def _names(self) -> Sequence[str]:
        """Returns a name for every detected class; its number if it has no name."""
        highest = max((int(boxes[:, 5].max()) for boxes in self.pred if len(boxes)), default=-1)
        count = max(highest + 1, len(self.names or ()))
        return [class_name(self.names, c) for c in range(count)]

    def print(self) -> None:
        """Prints the number of detections of each class in each image, and the times."""
        cli.say(self)

    def tolist(self) -> list["Detections"]:
        """Returns one Detections per image."""
        return [
            Detections([image], [boxes], [file], [seconds / self.n for seconds in self.times], self.names, self.s)
            for image, boxes, file in zip(self.imgs, self.pred, self.files)
        ]

    def _drawn(self, labels: bool) -> list[np.ndarray]:
        names = self._names()
        return [
            draw_boxes(image, boxes.cpu(), names, hide_labels=not labels, bgr=False)
            for image, boxes in zip(self.imgs, self.pred)
        ]

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Draws the boxes on `imgs`, with or without text, and returns them."""
        self.imgs = self._drawn(labels)
        return self.imgs

    def show(self, labels: bool = True) -> None:
        """Opens the images with boxes in the system's viewer."""
        from PIL import Image

        for image in self._drawn(labels):
            Image.fromarray(image).show()

    def save(
        self, labels: bool | str | Path = True, save_dir: str | Path = SAVE_DIR, exist_ok: bool | None = None
    ) -> Path:
        """Writes the images with boxes and returns the folder.

        labels:   draw text beside the boxes; a path, first, is the folder, as in v6.1.
        exist_ok: write into the folder also where it exists; otherwise it counts up: exp, exp2 ... Unless stated, the
                  default folder counts up, and another is written into.
        """
        if isinstance(labels, str | Path):
            labels, save_dir = True, labels
        folder = _folder(save_dir, exist_ok)
        for image, file in zip(self._drawn(labels), self.files):
            write_image(folder / file, image[..., ::-1])
        LOGGER.info(f"{self.n} image{'s' * (self.n != 1)} saved in {folder}")
        return folder

    def crop(
        self, save: bool = True, save_dir: str | Path = SAVE_DIR, exist_ok: bool | None = None
    ) -> list[dict[str, Any]]:
        """Crops the images to the boxes.

        Returns a dict per box: box (four numbers x1, y1, x2, y2), conf, cls (tensors), label, im (BGR uint8). With
        `save` the crops are written as crops/<class>/<file> below the folder, and the images, without boxes, into it.
        """
        folder, names, crops = _folder(save_dir, exist_ok) if save else None, self._names(), []
        for image, boxes, file in zip(self.imgs, self.pred, self.files):
            for box in boxes.flip(0):
                name, part = names[int(box[5])], crop(image, box[:4])[..., ::-1]
                if save and part.size:
                    write_crop(folder / "crops", name, Path(file).stem, part)
                label = f"{name} {float(box[4]):.2f}"
                crops.append({"box": list(box[:4]), "conf": box[4], "cls": box[5], "label": label, "im": part})
            if save:
                write_image(folder / file, image[..., ::-1])
        if save:
            LOGGER.info(f"{len(crops)} crop{'s' * (len(crops) != 1)} saved in {folder}")
        return crops

    def display(
        self, pprint=False, show=False, save=False, crop=False, render=False, save_dir: str | Path = SAVE_DIR
    ) -> list[dict[str, Any]] | None:
        """Does several of the above, and returns the crops if asked for."""
        if pprint:
            self.print()
        if show:
            self.show()
        if save:
            self.save(save_dir=save_dir)
        crops = self.crop(save, save_dir) if crop else None
        if render:
            self.render()
        return crops

    def pandas(self) -> "Detections":
        """Returns a copy whose xyxy, xyxyn, xywh and xywhn are lists of DataFrames with class names."""
        import pandas

        names, result = self._names(), copy.copy(self)
        corners, centre = ["xmin", "ymin", "xmax", "ymax"], ["xcenter", "ycenter", "width", "height"]
        for attribute, columns in {"xyxy": corners, "xyxyn": corners, "xywh": centre, "xywhn": centre}.items():
            tables: list[pandas.DataFrame] = []
            for boxes in getattr(self, attribute):
                rows = [[*row[:5], int(row[5]), names[int(row[5])]] for row in boxes.tolist()]
                tables.append(pandas.DataFrame(rows, columns=[*columns, "confidence", "class", "name"]))
            setattr(result, attribute, tables)
        return result

    def to_supervision(self) -> list["supervision.Detections"]:
        """Returns a supervision.Detections per image. Raises ValueError where that package is not installed."""
        try:
            import supervision
        except ImportError:
            raise ValueError("to_supervision needs the package supervision: pip install supervision") from None
        names, converted = self._names(), []
        for boxes in self.pred:
            rows = boxes.detach().cpu().float().numpy()
            classes = rows[:, 5].astype(int)
            converted.append(
                supervision.Detections(
                    xyxy=rows[:, :4],
                    confidence=rows[:, 4],
                    class_id=classes,
                    data={"class_name": np.array([names[c] for c in classes], dtype=str)},
                )
            )
        return converted


def _folder(save_dir: str | Path, exist_ok: bool | None) -> Path:
    return increment_path(save_dir, str(save_dir) != SAVE_DIR if exist_ok is None else exist_ok, mkdir=True)
