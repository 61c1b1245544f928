"""What an OpenVINO file of another program states in its network is read by the schema, as metadata beside it is."""

import numpy as np
import pytest

from utils.runtimes.openvino_model import LABELS, OpenVINORuntime

openvino, opset13 = map(pytest.importorskip, ("openvino", "openvino.opset13"))


def written(folder, labels):
    images = opset13.parameter([1, 3, 32, 32], np.float32)
    model = openvino.Model([opset13.reshape(images, opset13.constant([1, 384, 8]), False)], [images], "network")
    model.set_rt_info(labels, LABELS)
    openvino.save_model(model, folder / "a.xml", compress_to_fp16=False)
    return folder / "a.xml"


def test_names_in_a_network(tmp_path):
    runtime = OpenVINORuntime(written(tmp_path, "cat big_dog bird"))
    assert runtime.declared and runtime.metadata.names == ("cat", "big_dog", "bird")
    assert runtime.metadata.imgsz == (32, 32) and runtime.metadata.batch == 1


@pytest.mark.parametrize("labels", ["a " * 10_001, "x" * 201, " "], ids=["too many", "too long", "none"])
def test_names_in_a_network_that_are_none(labels, tmp_path):
    with pytest.raises(ValueError, match=r"a\.xml: names in its metadata must be 1 to 10000 class names"):
        OpenVINORuntime(written(tmp_path, labels))
