"""Calls TensorFlow's toolchains. This script runs in a separate environment, so it imports nothing of the project.

tensorflow_worker.py convert ONNX TARGET                       writes a SavedModel, by onnx2tf
tensorflow_worker.py freeze SAVED_MODEL TARGET METADATA NAME   writes a frozen graph; its constant NAME is the text of
                                                               the file METADATA
tensorflow_worker.py web SAVED_MODEL TARGET                    writes a folder for TensorFlow.js
"""

import sys
from unittest import mock


class _Done(Exception):
    """Ends onnx2tf once the SavedModel is written."""


def convert(onnx, target):
    """Writes a SavedModel, without the LiteRT files that onnx2tf writes after it, which take as long again."""
    import onnx2tf
    import tensorflow as tf

    # onnx2tf begins its LiteRT files with one of these, which depends on its version
    starts = ("from_keras_model", "from_concrete_functions", "from_saved_model")
    with mock.patch.multiple(tf.lite.TFLiteConverter, **{name: mock.Mock(side_effect=_Done) for name in starts}):
        try:
            onnx2tf.convert(onnx, output_folder_path=target, output_signaturedefs=True, verbosity="error")
        except _Done:
            pass


def freeze(saved_model, target, metadata, name):
    """Writes a graph whose placeholder is the images, and whose outputs no other node reads."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = tf.saved_model.load(saved_model)
    graph = convert_variables_to_constants_v2(model.signatures["serving_default"]).graph.as_graph_def()
    with open(metadata, encoding="utf-8") as file:
        text = tf.make_tensor_proto(file.read())
    node = graph.node.add(name=name, op="Const")
    node.attr["dtype"].type = text.dtype
    node.attr["value"].tensor.CopyFrom(text)
    with open(target, "wb") as file:
        file.write(graph.SerializeToString())


def web(saved_model, target):
    """Writes a folder by tensorflowjs, whose import asks for packages for models of JAX and decision forests."""
    absent = ("jax", "jax.experimental", "jax.experimental.jax2tf", "tensorflow_decision_forests")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in absent}):
        from tensorflowjs.converters.tf_saved_model_conversion_v2 import convert_tf_saved_model

        convert_tf_saved_model(saved_model, target, signature_def="serving_default", saved_model_tags="serve")


if __name__ == "__main__":
    {"convert": convert, "freeze": freeze, "web": web}[sys.argv[1]](*sys.argv[2:])
