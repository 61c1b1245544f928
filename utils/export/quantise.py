"""8-bit integers for OpenVINO, by NNCF: weights and activations of convolutions; SOCA stays in float32."""

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.export.formats import ExportOptions, toolchain
from utils.export.images import calibration_images

if TYPE_CHECKING:
    import openvino


def quantise_openvino(model: "openvino.Model", options: ExportOptions) -> "openvino.Model":
    """Quantises the operations that NNCF chooses, by the ranges of values on calibration images.

    The modules in options.float32 are left out: SOCA, whose square root does not survive 8 bits, and the decoding of
    boxes, whose values are pixels.
    """
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with toolchain("nncf", "openvino"):
        names = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() not in _NO_OPERATION]
        scope = nncf.IgnoredScope(names=float32_names(names, options.float32), validate=False)
        images = [image.numpy() for image in calibration_images(options.metadata, options.data)]
        return nncf.quantize(
            model, nncf.Dataset(images), ignored_scope=scope, preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
        )  # fmt: skip


_NO_OPERATION = ("Constant", "Parameter", "Result")


def float32_names(names: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Returns the names of operations, such as /detector/model.24/MatMul_3, inside of modules, such as model.24.

    Convolutions of Detect (its m.0, m.1 ...) are not part of its decoding, and are left out.
    """
    patterns = []
    for module in modules:
        # in names of operations model.4.m.0 is /model.4/m/m.0/ where its container m is called, else /model.4/m.0/
        parts = re.findall(r"[^.\d][^.]*(?:\.\d+)*", module)
        patterns.append(re.compile("/" + "/(?:.*/)?".join(map(re.escape, parts)) + "/(?!m\\.\\d+/Conv)"))
    return [name for name in names if any(pattern.search(name) for pattern in patterns)]
