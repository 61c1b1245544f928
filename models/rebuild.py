"""Builds a detector anew from what a checkpoint says of it: the YAML inside, then the tensors by name.

No object of the file becomes part of the model. The model is this project's own, built by the grammar of model YAMLs;
what a YAML does not say and results depend on (kernels, strides, activations, epsilons) is compared module by module,
so a file whose network is another one is refused with the place where they differ.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models import attention, common, experimental, gates, yolo
from models.architecture import plain_yaml, plan_layers
from models.common import SOCA, Conv
from models.registry import registered
from models.yolo import Detect, Model
from utils import activations, user_blocks
from utils.files import MAX_NAME
from utils.log import LOGGER
from utils.pickles import StandIn, plain
from utils.text import PACKAGE, brief, full_name

# activation -> the numbers that its result depends on
ACTIVATIONS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((nn.SiLU, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Mish), ()),
    **dict.fromkeys((activations.SiLU, activations.Hardswish, activations.Mish, nn.Identity), ()),
    **dict.fromkeys((activations.FReLU, activations.AconC, activations.MetaAconC), ()),
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
    nn.GELU: ("approximate",),
}
_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Dropout, nn.Identity, nn.BatchNorm2d, nn.LayerNorm),
    *(nn.GroupNorm, nn.Sequential, nn.ModuleList, nn.Upsample, nn.ZeroPad2d, nn.Flatten, nn.Softmax, nn.PixelShuffle),
    *(nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_OTHER_NAMES = {
    "torch.nn.modules.batchnorm.SyncBatchNorm": nn.BatchNorm2d,  # across GPUs while it trains, else the same
    "torch.nn.modules.linear._LinearWithBias": nn.modules.linear.NonDynamicallyQuantizableLinear,  # torch before 1.9
    "utils.activations.MemoryEfficientMish": activations.Mish,
    "utils.activations.MemoryEfficientSwish": activations.SiLU,
    "utils.activations.Swish": activations.SiLU,
}
_OWN_NUMBERS = {nn.BatchNorm2d: ("eps", "momentum"), nn.LayerNorm: ("eps",), nn.GroupNorm: ("eps",)}
_NO_MATTER = {"training", "inplace", "np", "type", "recompute_scale_factor"}
_LEFT_BEHIND = {"anchor_grid", "total_ops", "total_params"}  # buffers of old heads, and of a counter of operations
_UNUSED = {SOCA: {"max_pool"}}  # children without a use: the SOCA that is usually pasted into v6.1 has one
_FILE_KEYS = ("base", "insert")  # of a YAML; they name other files
REPEATS, ANCHORS, CALLS = 10_000, 1_000, 500_000  # limits of what a file may ask for


class Names:
    """The module classes that a checkpoint may name, as they are defined at this moment."""

    def __init__(self):
        rooms = (gates, common, attention, experimental, activations, yolo)
        own = _modules_in(*rooms)
        own = {c for c in (*own, *registered()) if not c.__module__.startswith("torch.")}
        theirs = _modules_in(*user_blocks.modules())  # and what the blocks of the user's own consist of
        theirs |= _modules_in(nn) if theirs else set()
        known = (*own, *theirs, *_LAYERS, *ACTIVATIONS, *_WRAPPERS)
        self._classes = {full_name(c): c for c in known} | _OTHER_NAMES
        # a fork may keep a block in another file, or all of them in a package
        self._last = {c.__name__: c for c in own} | {"DetectionModel": Model}

    def find(self, name: str) -> type[nn.Module] | None:
        """Returns the class of a full name as a checkpoint has it, None for another one."""
        name = name.removeprefix("yolov5.").removeprefix(PACKAGE)
        if name.startswith("models.") and name not in self._classes:
            return self._last.get(name.rpartition(".")[2])
        return self._classes.get(name)

    def known(self, name: str) -> bool:
        """Tells whether `find` knows the name."""
        return self.find(name) is not None


def _modules_in(*rooms: ModuleType) -> set[type[nn.Module]]:
    """Returns the classes of modules that Python modules hold."""
    return {c for room in rooms for c in vars(room).values() if isinstance(c, type) and issubclass(c, nn.Module)}


def rebuild(found: StandIn, names: Names, numbers: int) -> Model:
    """Builds the detector that a checkpoint describes; its tensors are the file's, in the stored precision.

    Args:
        found: the stand-in of a Model, or of a DataParallel around one.
        names: classes that the file may name.
        numbers: how many the file can hold at most; a YAML that asks for more is refused before it takes memory.

    Raises ValueError that names the layer. The generators of random numbers are left as they are.
    """
    outer = found
    if names.find(found.of) in _WRAPPERS:
        found = _children(found, "the wrapper").get("module")
        if not isinstance(found, StandIn):
            raise ValueError("holds a DataParallel without a model in it")
    if names.find(found.of) is not Model:
        raise ValueError(f"holds a {found.of.rpartition('.')[2]}, not a detector of this family")
    state, children = _state(found, "the model"), _children(found, "the model")
    yaml = _checked_yaml(plain(state.get("yaml")))
    with _unfilled(numbers):
        model = _built(yaml)
    sequence = children.get("model")
    if set(children) != {"model"} or not isinstance(sequence, StandIn):
        raise ValueError(f"a model has one child, `model`; found {sorted(map(str, children))!s:.80}")
    _Filling(names).fill_layers(model.model, sequence)
    _set_attributes(model, {**_state(outer, "the wrapper"), **state})
    return model


# --- the network of the YAML ------------------------------------------------------------------------------------------


def _checked_yaml(yaml: Any) -> dict:
    if not isinstance(yaml, dict):
        raise ValueError(f"its model has no YAML (`yaml`), from which it could be built; found {brief(yaml)}")
    if named := [key for key in _FILE_KEYS if key in yaml]:
        raise ValueError(f"the YAML in a checkpoint must not use {' or '.join(named)}, which name other files or rows")
    return yaml


def _built(yaml: dict) -> Model:
    try:
        yaml = plain_yaml(yaml, "the YAML in it")
        anchors = yaml["anchors"] if isinstance(yaml["anchors"], int) else max(len(a) for a in yaml["anchors"])
        if anchors > ANCHORS:
            raise ValueError(f"{anchors} anchors per level; the maximum is {ANCHORS}")
        repeats = sum(layer.repeats for layer in plan_layers(yaml, yaml.get("ch", 3), "the YAML in it"))
        if repeats > REPEATS:
            raise ValueError(f"{repeats} blocks; the maximum is {REPEATS}")
        model = Model(yaml, trained=True)
    except MemoryError:
        raise
    except Exception as error:  # a block's constructor may raise anything over arguments that it never expected
        text = str(error).removeprefix("the YAML in it").removeprefix(": ").removeprefix(", ")
        raise ValueError(f"the YAML in it cannot be built: {text or type(error).__name__}") from error
    if not isinstance(model.model[-1], Detect):
        raise ValueError(
            f"holds a network that ends in {type(model.model[-1]).__name__}, not in the head of a detector"
        )
    return model


class _Unfilled(TorchFunctionMode):
    """Leaves new tensors unfilled where numbers would be drawn, and counts them."""

    _MAKERS = frozenset((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full))
    _FILLS = frozenset((torch.Tensor.uniform_, torch.Tensor.normal_))

    def __init__(self, numbers: int):
        super().__init__()
        self.numbers, self.calls = numbers, CALLS

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.calls -= 1
        if func in self._FILLS or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        kwargs = kwargs or {}
        if func in self._MAKERS and args:
            size = args[0] if isinstance(args[0], tuple | list) else args
            self.numbers -= math.prod(side for side in size if isinstance(side, int))
            if func is torch.empty:
                kwargs["device"] = "meta"
        if self.numbers < 0 or self.calls < 0:
            raise ValueError("it describes a larger network than the file can hold")
        return func(*args, **kwargs)


@contextmanager
def _unfilled(numbers: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), _Unfilled(numbers):
        yield


# --- the tensors of the file ------------------------------------------------------------------------------------------


class _Filling:
    """Walks a model and its stand-in side by side: compares the modules, and takes the tensors over."""

    def __init__(self, names: Names):
        self.names = names

    def fill_layers(self, sequence: nn.Sequential, found: StandIn) -> None:
        """Fills a model's layers from the stand-in of their nn.Sequential."""
        layers = _children(found, "the model")
        if self.names.find(found.of) is not nn.Sequential:
            raise ValueError(f"the layers of its model are in a {found.of}, not in an nn.Sequential")
        if list(layers) != [str(i) for i in range(len(sequence))]:
            raise ValueError(f"the YAML in it has {len(sequence)} layers, its network has {len(layers)}")
        for i, layer in enumerate(sequence):
            where = f"layer {i} ({type(layer).__name__})"
            place = {name: vars(layer)[name] for name in ("i", "f", "type", "np")}
            sequence[i] = layer = self._of_same_class(layer, layers[str(i)], where)
            vars(layer).update(place)  # where it is the activation of the file
            self._fill(layer, layers[str(i)], f"{where}, ")

    def _fill(self, built: nn.Module, found: StandIn, where: str) -> None:
        state, children = _state(found, where), _children(found, where)
        if isinstance(built, Conv) and "bn" in built._modules and "bn" not in children:  # fused
            del built.bn
            built.conv.bias = nn.Parameter(built.conv.weight.new_empty(built.conv.out_channels))
        self._compare(built, state, where)
        _take(built._parameters, state, "_parameters", where)
        _take(built._buffers, state, "_buffers", where)
        others = [name for name, child in children.items() if child is not None and name not in built._modules]
        if others := set(others) - _UNUSED.get(type(built), set()):
            raise ValueError(
                f"{where}its {type(built).__name__} has {sorted(map(str, others))!s:.80}, that of this project "
                f"has {list(built._modules)}: it is a block of another program with the same name"
            )
        for name, child in list(built._modules.items()):
            given = children.get(name)
            if child is None and given is None:
                continue
            built._modules[name] = child = self._of_same_class(child, given, f"{where}{name}")
            self._fill(child, given, f"{where}{name}.")

    def _of_same_class(self, built: nn.Module, found: Any, where: str) -> nn.Module:
        """Returns the module that was built, or the activation that the file has in its place."""
        if not isinstance(found, StandIn):
            raise ValueError(f"{where} is missing in the file")
        kind = self.names.find(found.of)
        if type(built) in ACTIVATIONS and kind in ACTIVATIONS:
            return _activation(built, kind, found, where)
        if kind is not type(built):
            raise ValueError(f"{where} is a {found.of} in the file, but its YAML says {full_name(type(built))}")
        return built

    def _compare(self, built: nn.Module, state: dict, where: str) -> None:
        own = _OWN_NUMBERS.get(type(built), ())
        for name in own:
            setattr(built, name, _number(state.get(name, getattr(built, name)), f"{where}{name}"))
        for name, value in vars(built).items():
            if name not in state or name.startswith("_") or name in _NO_MATTER or name in own:
                continue
            given = state[name]
            if (_is_plain(value) or isinstance(value, dict)) and not _same(value, given):
                raise ValueError(f"{where}{name} is {brief(given)} in the file, but its YAML says {brief(value)}")
        if isinstance(built, Detect):
            _check_stride(built, state.get("stride"), where)


def _take(own: dict, state: dict, kind: str, where: str) -> None:
    """Replaces the parameters, or the buffers, of a module by those of the file."""
    given = _dict(state, kind, where)
    for name, tensor in own.items():
        found = given.get(name)
        if tensor is None and found is None:
            continue
        if found is None and name == "num_batches_tracked":  # not in files of torch before 0.4.1
            continue
        if tensor is None or not isinstance(found, torch.Tensor):
            raise ValueError(f"{where}{name}: {'must not' if tensor is None else 'must'} be in the file")
        if found.shape != tensor.shape or found.is_floating_point() != tensor.is_floating_point():
            expected, got = (f"{' x '.join(map(str, t.shape)) or 'one number'} ({t.dtype})" for t in (tensor, found))
            raise ValueError(f"{where}{name}: the YAML in it says {expected}, the file has {got}")
        fresh = found.detach()
        if not (fresh.is_contiguous() or (fresh.ndim == 4 and fresh.is_contiguous(memory_format=torch.channels_last))):
            fresh = fresh.clone(memory_format=torch.contiguous_format)  # a view, perhaps of the same number many times
        own[name] = nn.Parameter(fresh, found.requires_grad) if kind == "_parameters" else fresh
    if others := [name for name, t in given.items() if t is not None and name not in own and name not in _LEFT_BEHIND]:
        raise ValueError(f"{where}{others[0]!s:.80}: the network of the YAML in it has no such tensor")


def _activation(built: nn.Module, kind: type[nn.Module], found: StandIn, where: str) -> nn.Module:
    """Returns the activation that was built where the file has the same one, else a new one of the file's class."""
    if kind is type(built) and not ACTIVATIONS[kind]:
        return built
    state = _state(found, where)
    if kind in (activations.FReLU, activations.AconC, activations.MetaAconC):
        with _unfilled(2**24):
            return _learned_activation(kind, found, where)
    activation = kind()
    for name in ACTIVATIONS[kind]:
        value = state.get(name, getattr(activation, name))
        if name == "approximate" and value not in ("none", "tanh"):
            raise ValueError(f"{where}.{name}: must be none or tanh, got {brief(value)}")
        setattr(activation, name, value if name == "approximate" else _number(value, f"{where}.{name}"))
    if "inplace" in vars(activation):
        activation.inplace = True
    return activation


def _learned_activation(kind: type[nn.Module], found: StandIn, where: str) -> nn.Module:
    """Returns an activation with weights of its own, of as many channels as the file's weights are."""

    def shape(name: str, child: str = "") -> torch.Size:
        holder = _children(found, where).get(child) if child else found
        tensor = _dict(_state(holder, where), "_parameters", where).get(name)
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 4:
            raise ValueError(f"{where}: {child or name} is missing in the file")
        return tensor.shape

    if kind is activations.FReLU:
        weight = shape("weight", "conv")
        return kind(weight[0], weight[2])
    channels = shape("p1")[1]
    if kind is activations.AconC:
        return kind(channels)
    hidden, _, kernel, _ = shape("weight", "fc1")
    reductions = (r for r in (16, hidden, channels // max(hidden, 1)) if r and max(r, channels // r) == hidden)
    return kind(channels, kernel, reduction=next(reductions, 16))


# --- what else the model has ------------------------------------------------------------------------------------------


def _set_attributes(model: Model, state: dict) -> None:
    """Sets what v6.1 keeps on its model, as far as it is of the right kind."""
    nc = model.model[-1].nc
    model.names = _checked_names(plain(state["names"]), nc) if "names" in state else model.names
    if "nc" in state:
        model.nc = nc
    if isinstance(state.get("hyp"), dict):
        hyp = plain(state["hyp"])
        model.hyp = {k: v for k, v in hyp.items() if v is None or isinstance(v, bool | int | float | str)}
    weights = state.get("class_weights")
    if isinstance(weights, torch.Tensor) and weights.shape == (nc,):
        model.class_weights = weights.detach()
    if isinstance(state.get("yaml_file"), str):
        model.yaml_file = PurePath(state["yaml_file"]).name[:255]
    model.train(state.get("training") is True)


def _checked_names(names: Any, nc: int) -> list[str]:
    """Returns one name per class; a class without a name is called by its number."""
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        raise ValueError(f"names must be a list or a mapping of class names, got {brief(names)}")
    wrong = [v for v in names.values() if not isinstance(v, str | int | float) or len(str(v)) > MAX_NAME]
    if wrong or any(isinstance(k, bool) or not isinstance(k, int) for k in names):
        raise ValueError(f"names must give a text of at most {MAX_NAME} characters for each number, got {brief(names)}")
    if set(names) != set(range(nc)):
        LOGGER.warning(f"the checkpoint has {len(names)} names for {nc} classes; a class without one has its number")
    return [str(names.get(i, i)) for i in range(nc)]


def _check_stride(head: Detect, stride: Any, where: str) -> None:
    if stride is None:
        return
    if not isinstance(stride, torch.Tensor) or stride.shape != (head.nl,):
        raise ValueError(f"{where}stride must be a tensor of {head.nl} numbers")
    if not torch.allclose(stride.float(), head.stride.float(), rtol=1e-3):
        raise ValueError(f"{where}stride is {stride.tolist()} in the file, but its YAML says {head.stride.tolist()}")
    head.stride = head.stride.to(stride.dtype)


# --- a state dict for the averaged weights ----------------------------------------------------------------------------


def fill_from_state(model: Model, state: dict) -> Model:
    """Puts the tensors of a state dict into a model, in their own precision. ValueError that names a tensor."""
    state = {str(k).removeprefix("module."): v for k, v in state.items()}
    own = model.state_dict()
    given = {k: v for k, v in state.items() if k.rpartition(".")[2] not in _LEFT_BEHIND}
    for name, tensor in own.items():
        found = given.get(name)
        if not isinstance(found, torch.Tensor) or found.shape != tensor.shape:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else "none"
            raise ValueError(f"{name}: the model says {tuple(tensor.shape)}, the state dict has {got}")
        if found.is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name}: the model says {tensor.dtype}, the state dict has {found.dtype}")
    if others := sorted(given.keys() - own.keys()):
        raise ValueError(f"{others[0]}: the model has no such tensor")
    model.load_state_dict({name: found.detach() for name, found in given.items()}, assign=True)
    return model


# --- reading stand-ins ------------------------------------------------------------------------------------------------


def _state(found: Any, where: str) -> dict:
    if not isinstance(found, StandIn) or not isinstance(found.state, dict):
        raise ValueError(f"{where.rstrip('., ')} has no attributes in the file")
    return found.state


def _dict(state: dict, name: str, where: str) -> dict:
    content = state.get(name, {})
    if not isinstance(content, dict):
        raise ValueError(f"{where}{name} must be a dict in the file, got a {type(content).__name__}")
    return content


def _children(found: StandIn, where: str) -> dict:
    return _dict(_state(found, where), "_modules", where)


def _number(value: Any, where: str) -> float | None:
    """Returns an epsilon, a momentum or a slope as it is; ValueError where it is none."""
    fine = value is None if where.endswith("momentum") else False
    if not fine and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1000):
        raise ValueError(f"{where} must be a number from 0, got {brief(value)}")
    return value


def _is_plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return type(value) in (int, bool, str, float, type(None))


def _same(own: Any, given: Any) -> bool:
    """Compares attributes as torch reads them: 5 is the same kernel as (5, 5), 2 the same factor as 2.0."""
    if type(own) is type(given) is int:
        return own == given
    if isinstance(own, tuple | list) != isinstance(given, tuple | list):
        one, several = (given, own) if isinstance(own, tuple | list) else (own, given)
        # lists in lists of a file may go on for ever
        flat = not any(isinstance(item, tuple | list) for item in several)
        return isinstance(one, int | float) and len(several) > 0 and flat and all(_same(one, i) for i in several)
    if isinstance(own, tuple | list):
        return len(own) == len(given) and all(map(_same, own, given))
    return isinstance(given, bool | int | float | str | None) and own == given
