"""Suppression appended to the decoded rows of an ONNX graph, in operators that every opset from 11 on has.

It computes the same as `graph.suppress`, by the operator NonMaxSuppression, which separates images and classes itself.
"""

from typing import TYPE_CHECKING

import numpy as np

from utils.export.formats import Suppression
from utils.nms import MAX_BOX_SIDE, MIN_BOX_SIDE

if TYPE_CHECKING:
    import onnx


class _Builder:
    """Adds nodes and constants to a graph; each call returns the name of the result."""

    def __init__(self, graph):
        self.graph, self.made = graph, 0

    def constant(self, values, dtype=np.int64) -> str:
        from onnx import numpy_helper

        self.made += 1
        name = f"nms/constant_{self.made}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, **attributes):
        from onnx import helper

        self.made += 1
        names = [f"nms/{operator}_{self.made}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.graph.node.append(helper.make_node(operator, inputs, names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def columns(self, x: str, first: int, last: int) -> str:
        """Adds x[:, :, first:last]."""
        return self("Slice", x, self.constant([first]), self.constant([last]), self.constant([2]))

    def zeros_like(self, x: str) -> str:
        return self("Sub", x, x)


def append_nms(
    model: "onnx.ModelProto", columns: int, how: Suppression, names: tuple[str, str, str]
) -> "onnx.ModelProto":
    """Replaces the decoded rows of a model by boxes (B, K, 4), scores (B, K) and classes (B, K); K = topk_all.

    columns: of the rows, 5 + nc.
    names:   of the three outputs, which are as `graph.EndToEnd` returns them.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    rows = graph.output[0]
    batch = rows.type.tensor_type.shape.dim[0]
    batch = batch.dim_param or batch.dim_value
    add = _Builder(graph)
    boxes, scores, label, nc = _scored(add, rows.name, columns)
    left = _suppressed(add, boxes, scores, label, nc, how)
    outputs = _highest(add, boxes, label, left, how.topk_all)
    for made, name in zip(outputs, names, strict=True):
        graph.node.append(helper.make_node("Identity", [made], [name], name=f"nms/{name}"))
    K = how.topk_all
    kinds = (TensorProto.FLOAT, [batch, K, 4]), (TensorProto.FLOAT, [batch, K]), (TensorProto.INT64, [batch, K])
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, *kind) for name, kind in zip(names, kinds, strict=True))
    return model


def _scored(add: _Builder, rows: str, columns: int) -> tuple[str, str, str, int]:
    """Returns corners (B, N, 4), scores (B, N, 1) of the best class, that class (B, N, 1), and nc."""
    size = add.columns(rows, 2, 4)
    centre, half = add.columns(rows, 0, 2), add("Mul", size, add.constant(0.5, np.float32))
    boxes = add("Concat", add("Sub", centre, half), add("Add", centre, half), axis=2)
    each = add("Mul", add.columns(rows, 5, columns), add.columns(rows, 4, 5))
    label = add("ArgMax", each, axis=2, keepdims=1)
    best = add("GatherElements", each, label, axis=2)
    small = add("Less", size, add.constant(MIN_BOX_SIDE, np.float32))
    large = add("Greater", size, add.constant(MAX_BOX_SIDE, np.float32))
    valid = add("Cast", add("Not", add("Or", small, large)), to=1)
    both = add("Mul", add.columns(valid, 0, 1), add.columns(valid, 1, 2))
    return boxes, add("Mul", best, both), label, columns - 5


def _suppressed(add: _Builder, boxes: str, scores: str, label: str, nc: int, how: Suppression) -> str:
    """Returns scores (B, N), 0 for all rows but the kept ones."""
    by_class = scores
    maximum = how.topk_all
    if not how.agnostic:
        mine = add("Equal", label, add.constant(np.arange(nc).reshape(1, 1, nc)))
        by_class = add("Where", mine, scores, add.constant(0, np.float32))
        maximum = min(how.topk_per_class, how.topk_all)
    by_class = add("Transpose", by_class, perm=[0, 2, 1])
    thresholds = add.constant([how.iou_thres], np.float32), add.constant([how.conf_thres], np.float32)
    kept = add("NonMaxSuppression", boxes, by_class, add.constant([maximum]), *thresholds)  # (k, 3): image, class, row
    where = add("Gather", kept, add.constant([0, 2]), axis=1)
    flat = add("Reshape", scores, add.constant([0, -1]))
    return add("ScatterND", add.zeros_like(flat), where, add("GatherND", flat, where))


def _highest(add: _Builder, boxes: str, label: str, left: str, K: int) -> tuple[str, str, str]:
    """Returns the boxes, scores and classes of the K highest scores (B, N); zeros where there are fewer."""
    one = add("Slice", left, add.constant([0]), add.constant([1]), add.constant([1]))
    none = add("Expand", add.zeros_like(one), add.constant([1, K]))
    padded = add("Concat", left, none, axis=1)
    scores, index = add("TopK", padded, add.constant([K]), outputs=2, axis=1)
    has_box = add("Greater", scores, add.constant(0, np.float32))
    index = add("Where", has_box, index, add.constant(0))
    deep = add("Reshape", index, add.constant([0, -1, 1]))
    boxes = add("GatherElements", boxes, add("Expand", deep, add.constant([1, 1, 4])), axis=1)
    weight = add("Reshape", add("Cast", has_box, to=1), add.constant([0, -1, 1]))
    classes = add("GatherElements", add("Reshape", label, add.constant([0, -1])), index, axis=1)
    return add("Mul", boxes, weight), scores, add("Mul", classes, add("Cast", has_box, to=7))
