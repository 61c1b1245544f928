"""Integers for OpenVINO, by NNCF: weights and activations of convolutions in 8 bits, SOCA in float32."""

import re
from typing import TYPE_CHECKING

from utils.export.formats import ExportError, Options, toolchain
from utils.export.pictures import calibration_images

if TYPE_CHECKING:
    import openvino

SCOPE = re.compile(r"/model\.(\d+)/")  # how the exporter names what a layer does: /detector/model.24/MatMul_3


def quantise_openvino(model: "openvino.Model", options: Options, untouched: list[int]) -> "openvino.Model":
    """Quantises what NNCF's calibration finds fit, but nothing of the layers named in untouched, nor any decoding.

    untouched: numbers of layers, those with SOCA among them: five Newton-Schulz steps do not survive 8 bits.
    """
    import nncf

    names = [op.get_friendly_name() for op in model.get_ordered_ops()]
    # Detect's convolutions may be integers; what follows them are pixels, of which 8 bits hold too few
    ignored = [name for name in names if (found := SCOPE.search(name)) and int(found[1]) in untouched]
    present = {op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() not in ("Constant",)}
    dataset = nncf.Dataset([images.numpy() for images in calibration_images(options.metadata, options.data)])
    with toolchain("nncf", "openvino"):
        scope = nncf.IgnoredScope(names=sorted(present & set(ignored)), validate=False)
        quantised = nncf.quantize(model, dataset, ignored_scope=scope, preset=nncf.QuantizationPreset.MIXED)
    if quantised is None:
        raise ExportError("nncf gave no model")
    return quantised
