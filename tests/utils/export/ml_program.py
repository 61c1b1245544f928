"""A slow reading of ML programs, operation by operation in torch, where there is no CoreML to compute them."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def evaluate(package: Path, images: torch.Tensor) -> torch.Tensor:
    """The output of a `.mlpackage` for images (1, C, H, W), 0-1, which its image input is scaled to."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(package), skip_model_load=True)
    program = load(
        model.get_spec(), specification_version=model.get_spec().specificationVersion,
        file_weights_dir=model.weights_dir,
    )  # fmt: skip
    main = program.functions["main"]
    # by name
    values = {name: images * 255 if model.get_spec().description.input[0].type.HasField("imageType") else images
              for name in main.inputs}  # fmt: skip

    def value(var):
        if isinstance(var, list | tuple):
            return [value(v) for v in var]
        if var.val is not None:
            return var.val
        return values[var.name]

    for op in main.operations:
        if op.op_type == "const" or op.outputs[0].val is not None:
            continue
        given = {name: value(var) for name, var in op.inputs.items() if var is not None}
        values[op.outputs[0].name] = OPERATIONS[op.op_type](**given)
    return values[main.outputs[0].name]


def tensor(x) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.from_numpy(np.asarray(x))


def ints(x) -> list[int]:
    return [int(i) for i in np.atleast_1d(x)]


def pads(pad_type: str, pad) -> list[int]:
    """Of 2-D windows, (left, right, top, bottom), as torch pads."""
    if str(pad_type) == "valid":
        return [0, 0, 0, 0]
    assert str(pad_type) == "custom"
    top, bottom, left, right = ints(pad)
    return [left, right, top, bottom]


def conv(x, weight, strides, dilations, groups, pad_type="valid", pad=None, bias=None):
    x, weight = tensor(x), tensor(weight)
    bias = None if bias is None else tensor(bias)
    return F.conv2d(F.pad(x, pads(pad_type, pad)), weight, bias, ints(strides), 0, ints(dilations), int(groups))


def max_pool(x, kernel_sizes, strides, pad_type, pad=None, ceil_mode=False):
    assert not ceil_mode
    return F.max_pool2d(F.pad(x, pads(pad_type, pad), value=-torch.inf), ints(kernel_sizes), ints(strides))


def slice_by_index(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    rank = x.dim()
    stride = [1] * rank if stride is None else ints(stride)
    masks = [[False] * rank if m is None else list(np.atleast_1d(m)) for m in (begin_mask, end_mask, squeeze_mask)]
    index = []
    for b, e, s, from_start, to_end, squeezed in zip(ints(begin), ints(end), stride, *masks):
        index.append(b if squeezed else slice(None if from_start else b, None if to_end else e, s))
    return x[tuple(index)]


def matmul(x, y, transpose_x=False, transpose_y=False):
    x, y = tensor(x), tensor(y)
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def upsample(x, scale_factor_height, scale_factor_width):
    return F.interpolate(x, scale_factor=(float(scale_factor_height), float(scale_factor_width)), mode="nearest")


def dequantised(quantized_data, zero_point, scale, axis):
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    return (quantized_data.astype(np.float32) - np.reshape(zero_point, shape)) * np.reshape(scale, shape)


def concat(values, axis, interleave=False):
    assert not interleave
    return torch.cat([tensor(v) for v in values], int(axis))


OPERATIONS = {
    "conv": conv,
    "max_pool": max_pool,
    "slice_by_index": slice_by_index,
    "matmul": matmul,
    "upsample_nearest_neighbor": upsample,
    "constexpr_affine_dequantize": dequantised,
    "concat": concat,
    "cast": lambda x, dtype: x.to({"fp16": torch.float16, "fp32": torch.float32}[str(dtype)]),
    "mul": lambda x, y: tensor(x) * tensor(y),
    "add": lambda x, y: tensor(x) + tensor(y),
    "sub": lambda x, y: tensor(x) - tensor(y),
    "abs": lambda x: x.abs(),
    "sqrt": lambda x: x.sqrt(),
    "rsqrt": lambda x, epsilon: (x + float(epsilon)).rsqrt(),
    "relu": lambda x: F.relu(x),
    "silu": lambda x: F.silu(x),
    "sigmoid": lambda x: x.sigmoid(),
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "transpose": lambda x, perm: x.permute(ints(perm)),
    "reshape": lambda x, shape: x.reshape(ints(shape)),
    "squeeze": lambda x, axes: x.squeeze(ints(axes)),
    "expand_dims": lambda x, axes: x[(None, ...)] if ints(axes) == [0] else x.unsqueeze(*ints(axes)),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(ints(axes), keepdim=bool(keep_dims)),
    "reduce_sum": lambda x, axes, keep_dims: x.sum(ints(axes), keepdim=bool(keep_dims)),
    "reduce_max": lambda x, axes, keep_dims: x.amax(ints(axes), keepdim=bool(keep_dims)),
    "fill_like": lambda ref_tensor, value: torch.full_like(tensor(ref_tensor), float(value)),
}
