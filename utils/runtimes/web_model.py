"""TensorFlow.js: a folder for browsers, run by Node."""

from utils.runtimes.environments import TFJS
from utils.runtimes.tensorflow_model import ServedRuntime


class WebModelRuntime(ServedRuntime):
    """A folder `*_web_model`, by TensorFlow.js in Node, which computes in JavaScript: slowly."""

    environment = TFJS
    server = "utils/runtimes/tfjs_server.mjs"

    def arguments(self) -> list[str]:
        return [*super().arguments(), str(self.environment.folder / "node_modules")]
