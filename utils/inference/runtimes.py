"""Exported detectors behind one call: a class per toolchain that runs what it wrote, and the metadata of such files.

A file says itself which classes it knows, for which stride and frame it was made, and whether it suppresses on its own.
Packages are imported where a file of theirs is opened.
"""

import importlib.util
import json
import os
import platform
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from utils.boxes import xyxy_to_xywh
from utils.cli import require
from utils.log import LOGGER

GREY = 114 / 255  # around a picture that does not fill its frame
UNKNOWN_STRIDE = 64  # of a file that does not say, as in v6.1: right for every model of the family
UNKNOWN_CLASSES = 1000


@dataclass(frozen=True)
class Metadata:
    """What an exported file says about itself.

    names:    of the classes.
    stride:   pixels; sides of a frame are multiples of it.
    imgsz:    (height, width) of the frame it was made for; the only one unless dynamic.
    batch:    images at a time it was made for; the only number unless dynamic.
    channels: of an image.
    dynamic:  whether it takes any frame and number of images.
    nms:      whether it gives boxes, scores and classes after suppression instead of all decoded rows.
    train:    whether it gives the raw maps of all levels instead; no detector then, but something to train on.
    half:     whether the network inside is in float16.
    int8:     whether it is in 8-bit integers.
    conf_thres, iou_thres: of its suppression.
    """

    names: tuple[str, ...]
    stride: int = UNKNOWN_STRIDE
    imgsz: tuple[int, int] = (640, 640)
    batch: int = 1
    channels: int = 3
    dynamic: bool = False
    nms: bool = False
    train: bool = False
    half: bool = False
    int8: bool = False
    conf_thres: float = 0.0
    iou_thres: float = 0.0

    def as_texts(self) -> dict[str, str]:
        """Each entry as JSON text, for stores of texts by name."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in asdict(self).items()}

    def as_json(self, **more: Any) -> str:
        """All of it in one text, with further entries that other programs look for."""
        return json.dumps({**asdict(self), **more}, ensure_ascii=False)

    @classmethod
    def from_texts(cls, texts: dict[str, str], path: str | Path) -> "Metadata | None":
        """What `as_texts` wrote; None where there is no such entry."""
        if "names" not in texts:
            return None
        known = {field.name for field in fields(cls)}
        return cls.checked({key: _parsed(texts[key], path) for key in known & set(texts)}, path)

    @classmethod
    def from_json(cls, text: str, path: str | Path) -> "Metadata | None":
        """What `as_json` wrote; None where the text is empty."""
        if not text:
            return None
        entries = _parsed(text, path)
        known = {field.name for field in fields(cls)}
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: its metadata must be a mapping, found {type(entries).__name__}; export it anew")
        return cls.checked({key: value for key, value in entries.items() if key in known}, path)

    @classmethod
    def checked(cls, entries: dict[str, Any], path: str | Path) -> "Metadata":
        """From plain values that a file holds; ValueError, naming the file, where one makes no sense."""
        names = entries.get("names")
        if isinstance(names, dict):  # as later releases of YOLOv5 have them
            names = list(names.values())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
            raise ValueError(f"{path}: its metadata must list the names of classes, found {names!r}; export it anew")
        entries = {**entries, "names": tuple(names)}
        for key in ("stride", "batch", "channels"):
            value = entries.get(key, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{path}: {key} in its metadata must be a whole number from 1, found {value!r}")
        if "imgsz" in entries:
            size = entries["imgsz"]
            if not isinstance(size, list) or len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
                raise ValueError(f"{path}: imgsz in its metadata must be height and width in pixels, found {size!r}")
            entries["imgsz"] = tuple(size)
        return cls(**entries)


def _parsed(text: str, path: str | Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its metadata is no JSON: {error}; export it anew") from None


def undeclared(shape: Sequence[Any], columns: Any = None) -> Metadata:
    """Of a file without metadata: what its input shape (B, C, H, W), and the columns of its output, tell.

    Sides that are no numbers make it dynamic. Classes are called class0, class1 ...
    """
    B, C, H, W = (side if isinstance(side, int) and side > 0 else None for side in shape)
    nc = columns - 5 if isinstance(columns, int) and columns > 5 else UNKNOWN_CLASSES
    names = tuple(f"class{i}" for i in range(nc))
    fixed = H is not None and W is not None
    return Metadata(names, imgsz=(H, W) if fixed else (640, 640), batch=B or 1, channels=C or 3, dynamic=not fixed)


# --- what all runtimes share ------------------------------------------------------------------------------------------


class Runtime:
    """One exported file, opened.

    A class for a toolchain has `__init__(path, device, half)`, which sets metadata, and `run`.

    Attributes: path, device; metadata; declared (False where the file has none and metadata is a guess); dtype that
    images should have.
    """

    packages: tuple[str, ...] = ()  # that have to be installed
    systems: tuple[str, ...] = ()  # of platform.system() on which it runs; empty for all
    gpu = False  # whether it takes a CUDA GPU

    @classmethod
    def obstacle(cls) -> str | None:
        """Why such a file cannot be run here; None where it can."""
        if cls.systems and platform.system() not in cls.systems:
            return f"runs on {' and '.join(cls.systems)} only"
        if missing := [package for package in cls.packages if importlib.util.find_spec(package) is None]:
            return f"runs with {', '.join(missing)}, not installed here"
        return (
            "runs on a CUDA GPU, which torch does not see here" if cls.gpu and not torch.cuda.is_available() else None
        )

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        self.path, self.device = Path(path), torch.device(device)
        for package in self.packages:
            require(package, str(self.path))
        self.metadata: Metadata = undeclared((None, None, None, None))
        self.declared = False
        self.dtype = torch.float32

    def declare(self, metadata: Metadata | None, guess: Metadata) -> None:
        """Takes what the file says, or where it says nothing the guess."""
        self.declared = metadata is not None
        self.metadata = metadata or guess
        if not self.declared:
            LOGGER.warning(
                f"{self.path} has no metadata: stride {self.metadata.stride} is assumed, and classes have no names "
                "but those that --data gives"
            )

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One pass of the graph.

        images: (B, C, H, W), 0-1, on self.device, of self.dtype, of a shape that the file takes.

        Returns decoded rows (B, N, 5 + nc) first; or with metadata.nms boxes (B, K, 4) x1, y1, x2, y2 in pixels,
        scores (B, K), 0 where there is no more box, and classes (B, K).
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, C, H, W), 0-1 -> decoded rows (B, N, 5 + nc), float32.

        Images that the file does not take as they are come into its frame and in its number. Of a file that
        suppresses, a row is a box that is left: its score as objectness, and 1 for its class.
        """
        meta = self.metadata
        if images.shape[1] != meta.channels:
            raise ValueError(f"{self.path} takes images of {meta.channels} channels, got {images.shape[1]}")
        images = images.to(self.device, self.dtype)
        if meta.dynamic:
            return self._rows(self.run(images))
        framed, gain, corner = into_frame(images, meta.imgsz)
        parts = []
        for part in framed.split(meta.batch):
            missing = meta.batch - len(part)
            full = torch.cat((part, part.new_zeros(missing, *part.shape[1:]))) if missing else part
            parts.append(self._rows(self.run(full))[: len(part)])
        rows = torch.cat(parts) if len(parts) > 1 else parts[0]
        if gain == 1 and not any(corner):
            return rows
        offset = torch.tensor([*corner, 0, 0], device=rows.device)
        return torch.cat(((rows[..., :4] - offset) / gain, rows[..., 4:]), -1)

    def _rows(self, outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if not self.metadata.nms:
            return outputs[0].float()
        boxes, scores, classes = (output.float() for output in outputs[:3])
        one_hot = F.one_hot(classes.long(), len(self.metadata.names)).float()
        return torch.cat((xyxy_to_xywh(boxes), scores[..., None], one_hot), -1)


def into_frame(images: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, float, tuple[int, int]]:
    """Images (B, C, H, W) in the middle of a grey frame (height, width), made smaller where they are larger.

    Returns them with the gain of their sides and the (left, top) of their corner in pixels of the frame.
    """
    H, W = images.shape[2:]
    height, width = size
    if (H, W) == (height, width):
        return images, 1.0, (0, 0)
    gain = min(height / H, width / W, 1.0)
    if gain < 1:
        inner = max(round(H * gain), 1), max(round(W * gain), 1)
        wide = images.float()  # the CPU does not resize in half precision
        images = F.interpolate(wide, inner, mode="bilinear", align_corners=False, antialias=True).to(images.dtype)
    H, W = images.shape[2:]
    left, top = (width - W) // 2, (height - H) // 2
    return F.pad(images, (left, width - W - left, top, height - H - top), value=GREY), gain, (left, top)


# --- torch's own ------------------------------------------------------------------------------------------------------


class TorchScriptRuntime(Runtime):
    """`.torchscript`: a traced graph that torch runs without this project's code."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import torchvision  # noqa: F401  its operators, which a graph with suppression calls

        config = {"config.txt": ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, which would rather have us compile
                self.graph = torch.jit.load(str(path), map_location=self.device, _extra_files=config).eval()
        except RuntimeError as error:
            raise ValueError(f"{path}: torch {torch.__version__} cannot read it: {_first_line(error)}") from None
        metadata = Metadata.from_json(_text(config["config.txt"]), path)
        # a trace follows whatever size comes in
        self.declare(metadata, undeclared((None, None, None, None)))
        self.dtype = torch.float16 if self.metadata.half else torch.float32

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _as_tuple(self.graph(images))


class ProgramRuntime(Runtime):
    """`.pt2`: what torch.export wrote."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import torchvision  # noqa: F401  its operators, which a graph with suppression calls

        config = {"config.txt": ""}
        try:
            program = torch.export.load(str(path), extra_files=config)
        except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: torch {torch.__version__} cannot read it: {_first_line(error)}") from None
        if self.device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        self.graph = program.module()
        self.declare(Metadata.from_json(_text(config["config.txt"]), path), undeclared((None, None, None, None)))
        self.dtype = torch.float16 if self.metadata.half else torch.float32

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _as_tuple(self.graph(images))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, list | tuple) else (outputs,)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- ONNX -------------------------------------------------------------------------------------------------------------


class ONNXRuntime(Runtime):
    """`.onnx`, by ONNX Runtime: on the GPU where its package has CUDA, else on the CPU."""

    packages = ("onnxruntime",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        # an exception of its own for each kind of fault, with no base in common
        faults = tuple(v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception))
        wanted = ["CUDAExecutionProvider"] if self.device.type == "cuda" else []
        providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, [*providers, "CPUExecutionProvider"])
        except (RuntimeError, *faults) as error:
            version = onnxruntime.__version__
            raise ValueError(f"{path}: ONNX Runtime {version} cannot read it: {_first_line(error)}") from None
        entry, outputs = self.session.get_inputs()[0], self.session.get_outputs()
        if len(entry.shape) != 4:
            raise ValueError(f"{path}: its input must be images (B, C, H, W), found the shape {entry.shape}")
        texts = self.session.get_modelmeta().custom_metadata_map
        self.declare(Metadata.from_texts(texts, path), undeclared(entry.shape, outputs[0].shape[-1]))
        self.input = entry.name
        self.dtype = torch.float16 if entry.type == "tensor(float16)" else torch.float32
        wanted = {self.metadata.nms: 3, self.metadata.train: len(outputs)}.get(True, 1)  # v6.1 has raw maps besides
        self.outputs = [output.name for output in outputs][:wanted]

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.session.run(self.outputs, {self.input: images.cpu().numpy()})
        return tuple(torch.from_numpy(output).to(self.device) for output in outputs)


class OpenCVRuntime(Runtime):
    """`.onnx`, by OpenCV's DNN module (`--dnn`): frames and batches of the size it was made for."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import cv2

        try:
            self.net = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise ValueError(f"{path}: OpenCV {cv2.__version__} cannot read it: {_first_line(error)}") from None
        texts, shape = _onnx_head(path)
        metadata = Metadata.from_texts(texts, path)
        self.declare(metadata, undeclared(shape))
        if self.metadata.nms or self.metadata.half:
            raise ValueError(f"{path}: --dnn runs graphs without --nms and --half; leave out --dnn, or export without")

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.net.setInput(images.cpu().numpy())
        return (torch.from_numpy(self.net.forward()).to(self.device),)


def _onnx_head(path: str | Path) -> tuple[dict[str, str], list]:
    """Metadata and input shape of an ONNX file."""
    require("onnx", "--dnn")
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    shape = [d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    return {entry.key: entry.value for entry in model.metadata_props}, shape


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


class OpenVINORuntime(Runtime):
    """A folder `*_openvino_model`, or the `.xml` in it, by OpenVINO on the CPU."""

    packages = ("openvino",)

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import openvino

        file = only_file(self.path, ".xml")
        try:
            core = openvino.Core()
            model = core.read_model(file)
            shape = [None if d.is_dynamic else d.get_length() for d in model.inputs[0].partial_shape]
            last = model.outputs[0].partial_shape[-1]
            metadata = folder_metadata(file.parent)
            guess = undeclared(shape, None if last.is_dynamic else last.get_length())
            # computed in float32 also where the processor has bfloat16, in which SOCA would lose its digits
            hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            self.compiled = core.compile_model(model, "CPU", hints)
        except RuntimeError as error:
            raise ValueError(f"{path}: OpenVINO {openvino.__version__} cannot read it: {_first_line(error)}") from None
        self.declare(metadata, guess)

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self.compiled(images.cpu().numpy())
        return tuple(torch.from_numpy(results[i].copy()).to(self.device) for i in range(len(results)))


def only_file(path: Path, suffix: str) -> Path:
    """path, or of a folder the one file in it with this suffix."""
    if path.is_file():
        return path
    files = sorted(path.glob(f"*{suffix}"))
    if len(files) != 1:
        raise ValueError(f"{path}: expected one {suffix} file in this folder, found {len(files)}")
    return files[0]


METADATA_FILE = "metadata.json"  # in formats that are folders


def folder_metadata(folder: Path) -> Metadata | None:
    """The metadata that lies beside the files of a format that is a folder."""
    file = folder / METADATA_FILE
    return Metadata.from_json(file.read_text(encoding="utf-8"), file) if file.is_file() else None


# --- TensorRT ---------------------------------------------------------------------------------------------------------


class TensorRTRuntime(Runtime):
    """`.engine`, by TensorRT 10 or later on a CUDA GPU. Images and outputs stay on the GPU."""

    packages = ("tensorrt",)
    gpu = True

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        super().__init__(path, device)
        import tensorrt

        if self.device.type != "cuda":
            raise ValueError(f"{path}: TensorRT engines run on a CUDA GPU; use --device 0")
        metadata, engine = split_engine(self.path)
        self.logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self.engine = tensorrt.Runtime(self.logger).deserialize_cuda_engine(engine)
        if self.engine is None:
            raise ValueError(
                f"{path}: TensorRT {tensorrt.__version__} cannot read it; an engine runs with the version and the "
                "kind of GPU that it was made with: export it here"
            )
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = {n for n in names if self.engine.get_tensor_mode(n) == tensorrt.TensorIOMode.INPUT}
        self.input = next(iter(inputs))
        self.outputs = [n for n in names if n not in inputs]
        types = {
            tensorrt.DataType.FLOAT: torch.float32, tensorrt.DataType.HALF: torch.float16,
            tensorrt.DataType.INT32: torch.int32, tensorrt.DataType.INT64: torch.int64,
        }  # fmt: skip
        self.types = {n: types[self.engine.get_tensor_dtype(n)] for n in names}
        self.dtype = self.types[self.input]
        self.declare(metadata, undeclared(tuple(self.engine.get_tensor_shape(self.input))))

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = images.contiguous()
        self.context.set_input_shape(self.input, tuple(images.shape))
        self.context.set_tensor_address(self.input, images.data_ptr())
        outputs = []
        for name in self.outputs:
            shape = tuple(self.context.get_tensor_shape(name))
            outputs.append(torch.empty(shape, dtype=self.types[name], device=self.device))
            self.context.set_tensor_address(name, outputs[-1].data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise ValueError(f"{self.path}: TensorRT could not run the engine on images {tuple(images.shape)}")
        stream.synchronize()  # the images must live until then
        return tuple(outputs)


def join_engine(metadata: Metadata, engine: bytes) -> bytes:
    """An engine's file: the length of the metadata in four bytes, little-endian; the metadata as JSON; the engine."""
    head = metadata.as_json().encode()
    return len(head).to_bytes(4, "little") + head + engine


def split_engine(path: Path) -> tuple[Metadata | None, bytes]:
    """What `join_engine` joined; a file of v6.1, which is an engine alone, has no metadata."""
    content = path.read_bytes()
    length = int.from_bytes(content[:4], "little")
    if content[4:5] == b"{" and length < len(content):
        return Metadata.from_json(content[4 : 4 + length].decode(), path), content[4 + length :]
    return None, content


# --- by the name of the file ------------------------------------------------------------------------------------------

# the longer suffix first where one ends as another does
RUNTIMES: dict[str, Callable[..., Runtime]] = {
    ".torchscript": TorchScriptRuntime,
    ".pt2": ProgramRuntime,
    ".onnx": ONNXRuntime,
    "_openvino_model": OpenVINORuntime,
    ".xml": OpenVINORuntime,
    ".engine": TensorRTRuntime,
}


def runtime_for(path: str | Path) -> Callable[..., Runtime] | None:
    """The class that runs such a file or folder, None where none does."""
    name = os.path.basename(str(path).rstrip("/\\"))
    return next((runtime for suffix, runtime in RUNTIMES.items() if name.endswith(suffix)), None)
