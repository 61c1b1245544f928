"""Integers for OpenVINO leave SOCA and the decoding of boxes in float32."""

import pytest
from export_job import job_for
from small_world import TINY, lively, write_boxes, write_yaml

from utils.export import exporter
from utils.export.formats import BY_ARGUMENT
from utils.export.quantise import float32_names


def test_which_operations_stay_in_float32():
    names = [
        "/detector/model.24/MatMul_3", "/detector/model.24/conv_du/conv_du.0/Conv", "/detector/model.2/Conv",
        "/detector/model.25/m.0/Conv", "/detector/model.25/Mul_4", "/detector/model.4/m/m.0/Add",
        "/detector/model.4/m/m.1/Add", "/detector/model.241/Mul",
    ]  # fmt: skip
    assert float32_names(names, ["model.24", "model.25", "model.4.m.0"]) == [names[i] for i in (0, 1, 4, 5)]


def test_integers_leave_soca_alone(tmp_path):
    """Of a quantised network neither SOCA nor the decoding takes what a quantiser gives; the convolutions do."""
    pytest.importorskip("nncf")
    import openvino

    rows = [*TINY["head"][:1], [-1, 1, "SOCA", []], [[4, 7], 1, "Detect", ["nc", "anchors"]]]
    data = write_yaml(tmp_path / "boxes.yaml", {**write_boxes(tmp_path / "boxes"), "nc": 3, "names": list("abc")})
    job = job_for(lively({**TINY, "head": rows}).fuse(), tmp_path, int8=True, data=str(data))
    path = exporter.write(job, BY_ARGUMENT["openvino"], tmp_path / "q_openvino_model", job.options_for(
        BY_ARGUMENT["openvino"]), tmp_path)  # fmt: skip
    model = openvino.Core().read_model(next((tmp_path / "q_openvino_model").glob("*.xml")))
    fed = {
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        for source in op.input_values()
        if source.get_node().get_type_name() == "FakeQuantize"
    }
    assert path is None and len([name for name in fed if "Conv" in name]) > 10
    assert not [n for n in fed if "/model.7/" in n or ("/model.8/" in n and "/m." not in n)]
