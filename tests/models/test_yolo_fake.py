"""Networks on a CUDA device that is not there: fake tensors know their shape, type and device, and an operator refuses
those of two devices. So a tensor that is made on the wrong device fails here, on any machine.
"""

from collections.abc import Iterator

import networks
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import registry
from utils.training.optimizer import build_optimizer

DEVICE = torch.device("cuda:0")
YAMLS = networks.narrow_yamls()


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot become a fake one in place
    yield FakeTensorMode()
    torch.__future__.set_overwrite_module_params_on_conversion(before)


def move(module: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """What `module.to(DEVICE)` does."""
    with fake:
        return module._apply(lambda t: fake.from_tensor(t).to(DEVICE))


def there(*tensors: torch.Tensor) -> bool:
    return all(t.device == DEVICE for t in tensors)


@pytest.mark.parametrize("name", networks.NAMES)
def test_every_block(name, fake):
    block, x = move(networks.block(name), fake), networks.inputs(name, 2, 8, 12)
    with fake:
        x = [fake.from_tensor(t).to(DEVICE) for t in x] if isinstance(x, list) else fake.from_tensor(x).to(DEVICE)
        assert there(block(x))
        with torch.no_grad():
            assert there(block.eval()(x))
            if registry.has(block, "gate"):
                assert there(block.gate(x))


@pytest.mark.parametrize("name", YAMLS)
def test_every_yaml(name, fake):
    """Training, and both ways of decoding."""
    model = networks.narrow_model(YAMLS[name])
    s, multiple = model.stride.tolist(), model.image_multiple
    move(model, fake)
    rows = 3 * sum(int(2 * (multiple / stride) ** 2) for stride in s)
    with fake:
        image = torch.rand(2, 3, multiple, 2 * multiple, device=DEVICE)
        raw = model(image)
        assert there(*raw) and all(level.requires_grad for level in raw)
        model.eval()
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                decoded, raw = model(image)
            assert there(decoded, *raw)
            assert decoded.shape == (2, rows, 8)


def test_tensors_of_two_devices_are_noticed(fake, monkeypatch):
    """The test above fails where it should: columns and rows that are made without a device."""
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *arguments, device=None, **others: arange(*arguments, **others))
    model = move(networks.narrow_model(YAMLS["yolov3-tiny"]), fake).eval()
    with fake, torch.no_grad(), pytest.raises(Exception, match=r"different device|same device"):
        model(torch.rand(2, 3, 64, 64, device=DEVICE))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_steps_of_every_optimizer(name, fake):
    model = move(networks.narrow_model(YAMLS["SOCA-l"]), fake)
    optimizer = build_optimizer(model, name)
    with fake:
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
        state = [optimizer.state[p] for p in model.parameters()]
    assert all(there(*(v for k, v in entry.items() if k != "step")) for entry in state)  # torch counts on the CPU
    assert all(len(entry) == (1 if name == "SGD" else 3) for entry in state)
