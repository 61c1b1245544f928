"""torch.compile makes one graph of every network and block: nothing in them falls back to Python.

The backend runs what dynamo recorded as it is, so the tests take no compiler's time.
"""

import networks
import pytest
import torch
from test_registry import with_row
from torch._dynamo.testing import CompileCounter

from models.yolo import Model

YAMLS = networks.narrow_yamls()


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", networks.NAMES)
def test_every_block_is_one_graph(name, training):
    """Of any batch and size in training: the second size makes the graph general, the third needs no other."""
    block, counter = networks.block(name).train(training), CompileCounter()
    compiled = torch.compile(block, backend=counter, fullgraph=True)
    graphs = []
    for shape in ((2, 8, 12), (4, 12, 16), (3, 16, 8))[: 3 if training else 1]:
        x = networks.inputs(name, *shape)
        torch.manual_seed(0)  # of Dropout
        y = compiled(x)
        torch.manual_seed(0)
        torch.testing.assert_close(y, block(x))
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 2][: len(graphs)]


@pytest.mark.parametrize("name", YAMLS)
def test_every_yaml_is_one_graph(name):
    """As detect.py runs it: fused, without gradients, in inference mode."""
    model, counter = networks.narrow_model(YAMLS[name]).eval().fuse(), CompileCounter()
    image = torch.rand(1, 3, model.image_multiple, 2 * model.image_multiple)
    with torch.inference_mode():
        decoded, raw = torch.compile(model, backend=counter, fullgraph=True)(image)
        expected, expected_raw = model(image)
    assert counter.frame_count == 1
    assert all(torch.equal(a, b) for a, b in zip(raw, expected_raw, strict=True))
    torch.testing.assert_close(decoded, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_soca_model_is_one_graph_of_any_size(training):
    model, counter = Model(with_row([-1, 1, "SOCA", []])).train(training), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    graphs = []
    for shape in ((2, 64, 96), (4, 96, 128), (3, 128, 64)):
        image = torch.rand(shape[0], 3, *shape[1:])
        with torch.set_grad_enabled(training):
            torch.testing.assert_close(compiled(image), model(image))
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 2]
