"""A TensorFlow.js folder whose manifest names files outside of it."""

import json
import shutil

import pytest

from utils.runtimes.environments import NodeEnvironment
from utils.runtimes.web_model import WebModelRuntime

SHAPE = {"tensorShape": {"dim": [{"size": str(side)} for side in (1, 64, 64, 3)]}}
OUTPUT = {"name": "o", "tensorShape": {"dim": [{"size": str(side)} for side in (1, 10, 85)]}}
STUB = "module.exports = {env: () => ({set() {}}), io: {fromMemory: (x) => x}, loadGraphModel: async (x) => x};"


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_weights_are_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(tmp_path / "environments"))
    package = tmp_path / "environments/stub/node_modules/@tensorflow/tfjs"
    package.mkdir(parents=True)
    (package / "index.js").write_text(STUB)
    stub = NodeEnvironment(name="stub", packages=("tfjs@0",), probe="node_modules/@tensorflow/tfjs", size="0 GB")
    monkeypatch.setattr(WebModelRuntime, "environment", stub)
    folder = tmp_path / "best_web_model"
    folder.mkdir()
    (folder / "part.bin").write_bytes(b"1234")
    (tmp_path / "secret").write_bytes(b"1234")
    (folder / "link").symlink_to(tmp_path / "secret")

    def opened(name: str) -> WebModelRuntime:
        signature = {"inputs": {"i": SHAPE}, "outputs": {"o": OUTPUT}}
        manifest = [{"paths": [name], "weights": []}]
        (folder / "model.json").write_text(json.dumps({"signature": signature, "weightsManifest": manifest}))
        return WebModelRuntime(folder)

    assert len(opened("part.bin").metadata.names) == 80
    for name in ("../secret", str(tmp_path / "secret"), "link"):
        with pytest.raises(ValueError, match="cannot be read by tfjs@0: Error: weights must be in the folder"):
            opened(name)
