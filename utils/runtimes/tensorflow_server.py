"""A TensorFlow model behind two pipes, for a process that has no TensorFlow: `tensorflow_server.py MODEL`.

It runs in an environment of its own, so nothing of the project is imported. On its standard output comes one line of
JSON about the model: shape (of its images: B, H, W, C, None where free), columns (of its first output) and metadata.
Then, for each batch, a line of JSON {"shape": [...]} and so many bytes of float32 on standard input are answered by a
line {"shapes": [...]} and the bytes of all outputs as float32.
"""

import json
import os
import sys

METADATA_NODE = "metadata"  # the constant of a frozen graph that holds what the file says about itself


def saved_model(tf, path):
    """Function, shapes of its input and first output, and no metadata: those lie beside the model."""
    model = tf.saved_model.load(path)
    function = model.signatures["serving_default"]
    (name, spec), *_ = function.structured_input_signature[1].items()
    keys = sorted(function.structured_outputs)
    shape = function.structured_outputs[keys[0]].shape

    def run(images):
        outputs = function(**{name: tf.constant(images)})
        return [outputs[key].numpy() for key in keys]

    run.model = model  # a function does not keep its model alive
    return run, spec.shape, shape, ""


def frozen_graph(tf, path):
    """The same of a frozen graph: its input is the placeholder, its outputs are what nothing else reads."""
    definition = tf.compat.v1.GraphDef()
    with open(path, "rb") as file:
        definition.ParseFromString(file.read())
    read = {entry.split(":")[0].lstrip("^") for node in definition.node for entry in node.input}
    metadata = [node for node in definition.node if node.name == METADATA_NODE and node.op == "Const"]
    inputs = [node.name for node in definition.node if node.op == "Placeholder"]
    outputs = sorted(
        n.name for n in definition.node if n.name not in read and n.op not in ("Const", "NoOp", "Placeholder")
    )

    def load():
        tf.compat.v1.import_graph_def(definition, name="")

    wrapped = tf.compat.v1.wrap_function(load, [])
    graph = wrapped.graph
    tensors = [graph.as_graph_element(f"{name}:0") for name in outputs]
    images = graph.as_graph_element(f"{inputs[0]}:0")
    function = wrapped.prune(images, tensors)

    def run(batch):
        return [output.numpy() for output in function(tf.constant(batch))]

    text = metadata[0].attr["value"].tensor.string_val[0].decode() if metadata else ""
    return run, images.shape, tensors[0].shape, text


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed does not get among the answers
    import numpy as np
    import tensorflow as tf

    path = sys.argv[1]
    load = saved_model if os.path.isdir(path) else frozen_graph
    run, shape, output, metadata = load(tf, path)
    columns = None if output.rank is None else output[-1]
    say(answers, {"shape": shape.as_list(), "columns": columns, "metadata": metadata})
    while line := sys.stdin.buffer.readline():
        shape = json.loads(line)["shape"]
        images = np.frombuffer(sys.stdin.buffer.read(4 * int(np.prod(shape))), np.float32).reshape(shape)
        outputs = [np.ascontiguousarray(output, np.float32) for output in run(images)]
        say(answers, {"shapes": [output.shape for output in outputs]}, *outputs)


def say(answers, head, *arrays):
    answers.write(json.dumps(head).encode() + b"\n")
    for array in arrays:
        answers.write(array.tobytes())
    answers.flush()


if __name__ == "__main__":
    main()
