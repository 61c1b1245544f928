"""Runs a TensorFlow model for a process that has no TensorFlow: `tensorflow_server.py MODEL`.

This script runs in a separate environment, so it imports nothing of the project. First it writes one line of JSON about
the model to standard output: shape (of its images: B, H, W, C, None where free), columns (of its first output) and
metadata. Then it reads batches from standard input, each a line of JSON {"shape": [...]} and the bytes of as many
float32 numbers, and answers each with a line {"shapes": [...]} and the bytes of all outputs as float32.
"""

import json
import os
import sys

METADATA_NODE = "metadata"  # the constant of a frozen graph that holds its metadata


def saved_model(tf, path):
    """Returns a function, the shapes of its input and first output, and "": the metadata is a file beside the model."""
    model = tf.saved_model.load(path)
    function = model.signatures["serving_default"]
    (name, spec), *_ = function.structured_input_signature[1].items()
    keys = sorted(function.structured_outputs)
    shape = function.structured_outputs[keys[0]].shape

    def run(images):
        outputs = function(**{name: tf.constant(images)})
        return [outputs[key].numpy() for key in keys]

    run.model = model  # keeps the model alive, which the function alone does not
    return run, spec.shape, shape, ""


def frozen_graph(tf, path):
    """Returns the same of a frozen graph: its input is the placeholder, its outputs are what no other node reads."""
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
    """Serves one model until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    sys.stdout.reconfigure(line_buffering=True)  # so that the last line of the log is what happened last
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
    """Writes one answer: a line of JSON, then the bytes of arrays."""
    answers.write(json.dumps(head).encode() + b"\n")
    for array in arrays:
        answers.write(array.tobytes())
    answers.flush()


if __name__ == "__main__":
    main()
