"""Pictures of any kind in, boxes and tables out: what `torch.hub.load(...)` and Python programs call."""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from torch import nn

from models.backend import Backend
from models.yolo import profile_layers
from utils.boxes import round_up, xyxy_to_xywh
from utils.data.images import read_image
from utils.data.letterbox import letterbox_planes, scale_boxes
from utils.device import Timer
from utils.downloads import download
from utils.drawing import class_name, draw_boxes, write_image
from utils.files import increment_path
from utils.inference.outputs import crop, result_stems, summary, write_crop
from utils.log import LOGGER
from utils.nms import non_max_suppression

if TYPE_CHECKING:
    import supervision

SAVE_DIR = "runs/detect/exp"


class AutoShape(nn.Module):
    """A detector that takes pictures as they come: files, addresses, Pillow images, arrays, tensors.

    Calls keep nothing, so several threads may share one.

    Args:
        model: a Backend or a Model; it is put into eval mode.

    Attributes, to be set as wanted:
        conf, iou:    0-1. As in `non_max_suppression`, like agnostic, multi_label, classes and max_det.
        amp:          run under autocast where the model is on a GPU.
        download:     whether addresses (http, https) may be fetched; otherwise they are a ValueError.
    """

    conf = 0.25
    iou = 0.45
    agnostic = False
    multi_label = False
    classes: Sequence[int] | None = None
    max_det = 1000
    amp = False
    download = False

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.eval()
        for name in ("yaml", "nc", "hyp", "abc"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.names: list[str] = model.names
        self.stride = int(torch.as_tensor(model.stride).max())

    @torch.no_grad()
    def forward(self, imgs, size: int = 640, augment: bool = False, profile: bool = False):
        """Finds boxes in a picture or a list of pictures, of mixed kinds and sizes.

        imgs:    each a file's path; an address, see `download`; a Pillow image; an array uint8, (H, W, 3) RGB,
                 (H, W) grey, or (C, H, W); a tensor (3, H, W), uint8, or floating point 0-1, RGB.
                 Or one tensor (B, 3, H, W), 0-1, sides multiples of the stride.
        size:    pixels to which the longer side of each picture is brought.
        augment: test-time augmentation.
        profile: log the time that each layer takes.

        Returns Detections; of a tensor (B, 3, H, W) what the model itself returns, of a Backend the decoded rows.
        Raises ValueError for what is no picture, FileNotFoundError where a file is missing.
        """
        parameter = self._like()
        if isinstance(imgs, torch.Tensor) and imgs.ndim == 4:
            with self._autocast(parameter):
                found = self.model(imgs.to(parameter.device, parameter.dtype), augment=augment)
            return found[0] if isinstance(self.model, Backend) else found

        timers = [Timer(parameter.device) for _ in range(3)]
        with timers[0]:
            several = imgs if isinstance(imgs, list | tuple) else [imgs]
            if not several:
                raise ValueError("no picture was given: the list is empty")
            pictures, names = zip(*(self._read(picture, i) for i, picture in enumerate(several)))
            shapes = [picture.shape[:2] for picture in pictures]
            frame = self._frame(shapes, size)
            # pictures are RGB already, which is turned round there
            planes = np.stack([letterbox_planes(picture, frame, auto=False)[0][::-1] for picture in pictures])
            pixels = torch.from_numpy(planes).to(parameter.device).to(parameter.dtype) / 255
        if profile:
            self._profile(pixels)
        with timers[1], self._autocast(parameter):
            decoded = self.model(pixels, augment=augment)[0]
        with timers[2]:
            found = non_max_suppression(
                decoded, self.conf, self.iou, self.classes, self.agnostic, self.multi_label, max_det=self.max_det
            )
            for boxes, shape in zip(found, shapes):
                boxes[:, :4] = scale_boxes(boxes[:, :4], frame, shape)
        files = [f"{stem}.jpg" for stem in result_stems(names)]
        times = tuple(timer.total for timer in timers)
        return Detections(list(pictures), found, files, times, self.names, tuple(pixels.shape))

    def _like(self) -> torch.Tensor:
        """A tensor on the device and of the type that the model wants; exported files have no parameters."""
        if isinstance(self.model, Backend):
            return torch.empty(0, device=self.model.device, dtype=self.model.dtype)
        return next(self.model.parameters())

    def _autocast(self, parameter: torch.Tensor):
        return torch.autocast(parameter.device.type, enabled=self.amp and parameter.device.type == "cuda")

    def _frame(self, shapes: Sequence[tuple[int, int]], size: int) -> tuple[int, int]:
        """(height, width) that holds every picture once its longer side has `size` pixels; multiples of the stride."""
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        heights, widths = zip(*((height * size / max(height, width), width * size / max(height, width))
                                for height, width in shapes))  # fmt: skip
        return round_up(max(heights), self.stride), round_up(max(widths), self.stride)

    def _profile(self, pixels: torch.Tensor) -> None:
        detector = self.model.model if isinstance(self.model, Backend) else self.model
        if detector is None:
            raise ValueError("profile looks into the layers of a .pt file, and this is an exported one")
        if isinstance(detector, nn.ModuleList):
            raise ValueError("profile looks into one model, and this is an ensemble")
        for layer, ms in zip(detector.model, profile_layers(detector, pixels, repeats=3)):
            LOGGER.info(f"{layer.i:>3}  {ms:8.2f} ms  {layer.np:>10} parameters  {layer.type}")

    def _read(self, picture: Any, i: int) -> tuple[np.ndarray, str]:
        """A picture as RGB uint8 (H, W, 3), and what its results are named after."""
        from PIL import Image, ImageOps

        nameless = f"image{i}.jpg"
        if isinstance(picture, str | Path):
            if str(picture).lower().startswith(("http://", "https://")):
                return self._fetch(str(picture))
            return np.ascontiguousarray(read_image(picture)[..., ::-1]), str(picture)
        if isinstance(picture, Image.Image):
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return np.array(upright), str(getattr(picture, "filename", "") or nameless)
        if isinstance(picture, torch.Tensor):
            picture = picture.detach().cpu()
            if picture.is_floating_point():
                picture = (picture.float() * 255).round().clamp(0, 255).byte()
        return _as_rgb(np.asarray(picture), i), nameless

    def _fetch(self, url: str) -> tuple[np.ndarray, str]:
        if not self.download:
            raise ValueError(f"{url}: addresses are fetched only when allowed: set `model.download = True`")
        name = PurePosixPath(unquote(urlsplit(url).path)).name or "image.jpg"
        with tempfile.TemporaryDirectory() as folder:
            picture = read_image(download(url, Path(folder) / "picture"))
        return np.ascontiguousarray(picture[..., ::-1]), name


def _as_rgb(picture: np.ndarray, i: int) -> np.ndarray:
    """An array as RGB uint8 (H, W, 3), a copy; i is its place in the list, for errors."""
    shape = picture.shape
    if picture.ndim == 2:
        picture = picture[..., None]
    elif picture.ndim == 3 and shape[0] < 5:
        picture = picture.transpose(1, 2, 0)
    if picture.ndim != 3 or picture.shape[2] not in (1, 3, 4) or not picture.size:
        raise ValueError(f"picture {i}: expected an array (H, W, 3), (H, W) or (3, H, W), got {picture.dtype} {shape}")
    if picture.dtype != np.uint8:
        top = picture.max()
        if not np.issubdtype(picture.dtype, np.number) or top > 255 or (0 < top <= 1 and picture.dtype.kind == "f"):
            raise ValueError(
                f"picture {i}: expected values 0-255, got {picture.dtype} up to {top}; multiply 0-1 by 255"
            )
        picture = picture.clip(0).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(picture[..., :3], (*picture.shape[:2], 3)))


class Detections:
    """What was found in n pictures.

    Attributes, a list entry per picture:
        imgs:         RGB uint8 (H, W, 3). `render` draws into them.
        xyxy = pred:  float32 (k, 6): x1, y1, x2, y2 in pixels of the picture, confidence, class; most confident first.
        xywh:         the same with centre and size.
        xyxyn, xywhn: these as 0-1 of the picture.
        files:        the names under which they are saved.
    n: number of pictures; names: of the classes; times: seconds for reading, network and suppression together;
    t: milliseconds per picture of these three; s: shape (B, 3, h, w) that the network saw.
    """

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
        pre, network, nms = self.t
        lines.append(f"{pre:.1f} ms reading, {network:.1f} ms network, {nms:.1f} ms NMS per picture, shape {self.s}")
        return "\n".join(lines)

    def _names(self) -> Sequence[str]:
        """A name for every class that was found, its number where it has none."""
        highest = max((int(boxes[:, 5].max()) for boxes in self.pred if len(boxes)), default=-1)
        count = max(highest + 1, len(self.names or ()))
        return [class_name(self.names, c) for c in range(count)]

    def print(self) -> None:
        """What was found in each picture, in words, and how long it took."""
        print(self)

    def tolist(self) -> list["Detections"]:
        """One Detections per picture."""
        return [
            Detections([image], [boxes], [file], [seconds / self.n for seconds in self.times], self.names, self.s)
            for image, boxes, file in zip(self.imgs, self.pred, self.files)
        ]

    def _drawn(self) -> list[np.ndarray]:
        names = self._names()
        return [draw_boxes(image, boxes.cpu(), names, bgr=False) for image, boxes in zip(self.imgs, self.pred)]

    def render(self) -> list[np.ndarray]:
        """Draws the boxes into `imgs`, and returns them."""
        self.imgs = self._drawn()
        return self.imgs

    def show(self) -> None:
        """Opens the pictures with boxes in the system's viewer."""
        from PIL import Image

        for picture in self._drawn():
            Image.fromarray(picture).show()

    def save(self, save_dir: str | Path = SAVE_DIR) -> Path:
        """Writes the pictures with boxes, and returns the folder; the default one counts up: exp, exp2 ..."""
        folder = _folder(save_dir)
        for picture, file in zip(self._drawn(), self.files):
            write_image(folder / file, picture[..., ::-1])
        LOGGER.info(f"{self.n} pictures saved in {folder}")
        return folder

    def crop(self, save: bool = True, save_dir: str | Path = SAVE_DIR) -> list[dict[str, Any]]:
        """The parts of the pictures inside the boxes.

        Returns a dict per box: box (four numbers x1, y1, x2, y2), conf, cls (tensors), label, im (BGR uint8). With
        `save` they are written as crops/<class>/<file> below the folder, and the pictures, without boxes, into it.
        """
        folder, names, crops = _folder(save_dir) if save else None, self._names(), []
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
            LOGGER.info(f"{len(crops)} crops saved in {folder}")
        return crops

    def display(
        self, pprint=False, show=False, save=False, crop=False, render=False, save_dir: str | Path = SAVE_DIR
    ) -> list[dict[str, Any]] | None:
        """Several of the above at once; the crops where these were asked for."""
        if pprint:
            self.print()
        if show:
            self.show()
        if save:
            self.save(save_dir)
        crops = self.crop(save, save_dir) if crop else None
        if render:
            self.render()
        return crops

    def pandas(self) -> "Detections":
        """A copy whose xyxy, xyxyn, xywh and xywhn are lists of DataFrames with names of classes."""
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
        """Per picture what the package supervision works with; ValueError where it is not installed."""
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


def _folder(save_dir: str | Path) -> Path:
    return increment_path(save_dir, exist_ok=str(save_dir) != SAVE_DIR, mkdir=True)
