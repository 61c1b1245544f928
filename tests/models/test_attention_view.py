"""What attention does: gates by hand, the covariance against numpy in float64, Grad-CAM against finite differences."""

import numpy as np
import pytest
import torch
from small_world import TINY, lively

from models import registry
from models.attention_view import (
    GateRecorder,
    class_activation,
    fitted_gate,
    fixed_gates,
    gate_of_statistic,
    gated_blocks,
    spectrum,
    trace_detections,
    view_blocks,
    without_gate,
    without_gates,
)
from models.registry import keeps_channels, registered
from models.second_order import newton_schulz_sqrt, second_order_statistic
from models.yolo import Model


def tiny(*inserted: tuple, seed: int = 0) -> Model:
    """The tiny detector with inserted blocks, in eval mode, with gates away from 1, that detects some boxes."""
    torch.manual_seed(seed)
    model = Model(TINY, nc=2, insert=[{"after": after, "module": module} for after, module in inserted]).eval()
    for name, p in model.named_parameters():
        p.requires_grad_(False)
        if "conv_du" in name:
            p.copy_(torch.randn_like(p))
    for conv in model.model[-1].m:
        conv.bias.view(3, -1)[:, 4] = -1
    return model


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


# --- gates ------------------------------------------------------------------------------------------------------------


def test_names():
    model = tiny((4, "SOCA"), (6, "LSRAG"), ("SPPF", "ECA"))
    assert list(gated_blocks(model)) == ["5-SOCA", "8.soca-SOCA", "9-ECA"]
    assert gated_blocks(model)["8.soca-SOCA"] is model.model[8].soca
    assert gated_blocks(tiny()) == {}


def test_gates_of_soca_and_se_by_hand(image):
    model = tiny((4, "SOCA"), ("SPPF", "SE"))
    views = view_blocks(model, image)
    assert [name.split("-")[1] for name in views] == ["SOCA", "SE"]
    for name, view in views.items():
        block = gated_blocks(model)[name]
        x = torch.from_numpy(view.maps)[None]
        first, second = block.conv_du[0], block.conv_du[2]
        s = second_order_statistic(x) if name.endswith("SOCA") else x.mean((2, 3))
        hidden = (s @ first.weight.flatten(1).T + first.bias).relu()
        expected = torch.sigmoid(hidden @ second.weight.flatten(1).T + second.bias)[0]
        assert view.gate.std() > 0.05
        np.testing.assert_allclose(view.gate, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("module", [c.__name__ for c in registered(keeps_channels) if hasattr(c, "gate")])
def test_a_fitted_gate_is_the_least_squares_one(module, image):
    model = tiny(("SPPF", module))
    name, block = next(iter(gated_blocks(model).items()))
    for p in block.parameters():
        p.copy_(torch.randn_like(p))
    view = view_blocks(model, image)[name]
    y = block(torch.from_numpy(view.maps)[None])[0].double().numpy()
    x = view.maps.astype(np.float64)
    slopes = [np.linalg.lstsq(a.reshape(-1, 1), b.ravel(), rcond=None)[0][0] for a, b in zip(x, y)]
    np.testing.assert_allclose(view.gate, slopes, rtol=1e-4, atol=1e-30)  # a gate may be too small for its digits


@pytest.mark.parametrize("module", [c for c in registered(keeps_channels) if hasattr(c, "gate")])
def test_a_gate_is_what_the_map_is_multiplied_by(module):
    torch.manual_seed(0)
    block = module(24).eval()
    for p in block.parameters():
        p.data.copy_(torch.randn_like(p))
    x = torch.randn(2, 24, 6, 5)
    with torch.no_grad():
        gate = block.gate(x)
        assert gate.shape[:2] == x.shape[:2] and gate.shape[2:] in ((1, 1), (6, 5))
        assert gate.std() > 0.01
        torch.testing.assert_close(gate * x, block(x))


class Foreign(torch.nn.Module):
    """A block with a layer called `gate`, which is no method of the contract."""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = torch.nn.Conv2d(channels, channels, 1)


def test_a_layer_called_gate_is_no_gate(monkeypatch):
    monkeypatch.setitem(registry._BLOCKS, "Foreign", (Foreign, keeps_channels))
    model = tiny((4, "Foreign"), ("SPPF", "RLNL"), (6, "LSRAG"))
    assert list(gated_blocks(model)) == ["9.soca-SOCA"]
    assert without_gate(model) == ["5-Foreign", "8-RLNL"]


def test_fixed_gates(image):
    """Their own gates change nothing, gates of one leave the blocks out, and another image's are what they are."""
    model = lively(nc=2)
    for p in model.model[3].conv_du.parameters():
        p.requires_grad_(False).copy_(3 * torch.randn_like(p))
    images = torch.cat([image, 1 - image, image.flip(3)])
    with torch.no_grad(), GateRecorder(model) as recorder:
        usual = model(images)[0]
    gates = recorder.gates
    with fixed_gates(model, gates):
        torch.testing.assert_close(torch.cat([model(one)[0] for one in images.split(2)]), usual)
        with pytest.raises(ValueError, match="gates for 3 images, but more images pass"):
            model(image)
    swapped = [1, 0, 2]
    with fixed_gates(model, {name: g[swapped] for name, g in gates.items()}):
        exchanged = model(images)[0]
    torch.testing.assert_close(exchanged[2], usual[2])
    assert (exchanged[:2] - usual[:2]).abs().max() > 1e-3
    with fixed_gates(model, {name: np.ones_like(g[0]) for name, g in gates.items()}):
        absent = model(images)[0]
    model.model[3].forward = lambda x: x
    torch.testing.assert_close(model(images)[0], absent)


def test_the_gate_of_a_channel_of_zeros_is_one():
    x = torch.ones(1, 2, 3, 3)
    x[0, 1] = 0
    assert fitted_gate(x, 0.25 * x).tolist() == [[0.25, 1.0]]


def test_the_recorder_keeps_all_images_and_changes_nothing(image):
    model = tiny((4, "SOCA"), ("SPPF", "ECA"))
    images = torch.cat([image, image.flip(3), 1 - image])
    before = model(images)[0]
    with GateRecorder(model) as recorder:
        during = model(images)[0]
        model(image)
    assert torch.equal(before, during)
    assert [gates.shape for gates in recorder.gates.values()] == [(4, 32), (4, 64)]
    for gates in recorder.gates.values():
        np.testing.assert_allclose(gates[3], gates[0], rtol=1e-5)  # one image, in a batch and alone
    assert not any(m._forward_hooks for m in model.modules())
    assert not GateRecorder(tiny()).gates


# --- without ----------------------------------------------------------------------------------------------------------


def test_without_as_one_is_the_network_without_the_block(image):
    model, plain = tiny((4, "SOCA"), ("SPPF", "SE")), tiny()
    values = iter([t for name, t in model.state_dict().items() if "conv_du" not in name])
    for t in plain.state_dict().values():
        t.copy_(next(values))
    assert not torch.allclose(model(image)[0], plain(image)[0])
    with without_gates(model, "one"):
        assert torch.equal(model(image)[0], plain(image)[0])


def test_without_as_mean_is_a_gate_of_equal_weights(image):
    model = tiny(("SPPF", "SE"))
    images = torch.cat([image, 1 - image])
    name, block = next(iter(gated_blocks(model).items()))
    means = [view_blocks(model, one[None])[name].gate.mean() for one in images]
    seen = []
    with without_gates(model, "mean"):
        hook = block.register_forward_hook(lambda m, x, y: seen.append((x[0], y)))
        model(images)
        hook.remove()
    x, y = seen[-1]
    for k in range(2):
        torch.testing.assert_close(y[k], x[k] * float(means[k]))
    with pytest.raises(ValueError, match="can be replaced by mean or one, got 'two'"), without_gates(model, "two"):
        pass


# --- the covariance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("C, h, w", [(12, 8, 8), (40, 4, 5)])  # full rank, and fewer positions than channels
def test_spectrum_against_plain_matrices(C, h, w):
    rng = np.random.default_rng(C)
    maps = (rng.normal(size=(C, C)) @ rng.normal(size=(C, h * w)) + 3).reshape(C, h, w).astype(np.float32)
    found = spectrum(maps)
    X = maps.reshape(C, -1).astype(np.float64)
    S = np.cov(X, bias=True)
    values = np.linalg.eigvalsh(S / S.trace())[::-1]
    np.testing.assert_allclose(found.eigenvalues, values, atol=1e-14)
    assert found.eigenvalues.sum() == pytest.approx(1) and (found.eigenvalues >= 0).all()
    left, sizes, right = np.linalg.svd(S)  # a root by another way
    root = left @ np.diag(np.sqrt(sizes)) @ right
    five = newton_schulz_sqrt(torch.from_numpy(S)[None])[0].numpy()
    np.testing.assert_allclose(found.s_root, root.mean(1), rtol=1e-8, atol=1e-7)
    np.testing.assert_allclose(found.s_five, five.mean(1), rtol=1e-9, atol=1e-12)
    assert found.matrix_distance == pytest.approx(np.linalg.norm(five - root) / np.linalg.norm(root), rel=1e-6)
    ours = second_order_statistic(torch.from_numpy(maps)[None])[0].numpy()
    np.testing.assert_allclose(ours, found.s_five, rtol=1e-4, atol=1e-5 * np.abs(found.s_five).max())


def test_spectrum_of_channels_that_do_not_correlate():
    """A = I / C: every eigenvalue is 1 / C, and f there is the scalar recurrence."""
    C = 16
    rows = np.array([[1.0]])
    while len(rows) < C:
        rows = np.block([[rows, rows], [rows, -rows]])  # of Hadamard: orthogonal
    maps = np.concatenate([rows, -rows], 1).reshape(C, 4, 8)
    found = spectrum(maps)
    y, z = 1 / C, 1.0
    for _ in range(5):
        t = (3 - z * y) / 2
        y, z = y * t, t * z
    np.testing.assert_allclose(found.eigenvalues, 1 / C)
    np.testing.assert_allclose(found.five, y)
    assert found.effective_rank == pytest.approx(C)
    assert found.matrix_distance == pytest.approx(abs(y - 0.25) / 0.25)
    assert found.statistic_distance == pytest.approx(found.matrix_distance)


def test_one_direction_needs_no_steps():
    """a = 1 is a fixed point of the recurrence, and f(0) = 0: where all channels vary as one, f gives the true root."""
    wave = np.sin(np.arange(20.0)).reshape(1, 4, 5)
    found = spectrum(wave * np.arange(1, 7).reshape(6, 1, 1))
    assert found.effective_rank == pytest.approx(1, abs=1e-9)
    assert found.statistic_distance < 1e-6


def test_no_variance_no_spectrum():
    assert spectrum(np.full((3, 4, 4), 0.1, np.float32)) is None
    assert spectrum(np.zeros((3, 4, 4), np.float32)) is None


def test_gate_of_the_statistic_is_the_gate(image):
    model = tiny((4, "SOCA"))
    ((name, view),) = view_blocks(model, image).items()
    gate = gate_of_statistic(gated_blocks(model)[name], spectrum(view.maps).s_five)
    np.testing.assert_allclose(gate, view.gate, atol=1e-4)


# --- detections -------------------------------------------------------------------------------------------------------


def test_rows_and_strides_of_detections(image):
    model = tiny((4, "SOCA"))
    found = trace_detections(model, image, conf_thres=0.05, iou_thres=0.45, max_det=40)
    decoded = model(image)[0][0]
    assert len(found.boxes) == 40
    counts = 3 * 8 * 12, 3 * 4 * 6  # strides 8 and 16
    for box, row, stride in zip(found.boxes, found.rows, found.strides):
        assert box[4] == (decoded[row, 5:] * decoded[row, 4]).max()
        torch.testing.assert_close((box[:2] + box[2:4]) / 2, decoded[row, :2])
        assert stride == (8 if row < counts[0] else 16)
    nothing = trace_detections(model, image, conf_thres=1.0)
    assert len(nothing.boxes) == len(nothing.rows) == len(nothing.strides) == 0


def test_class_activation_by_finite_differences(image):
    """alpha by finite differences: a channel of A as a whole is raised and lowered, in float64."""
    model = tiny((4, "SOCA"), ("SPPF", "SE")).double()
    image = image.double()[:, :, :32, :32]
    rows, labels = [48, 50, 53, 57, 59], [0, 1, 1, 0, 1]  # of the map of stride 16, 2 x 2, to which both blocks lead
    found = class_activation(model, image, rows, labels)
    columns = [5 + label for label in labels]
    decoded = model(image)[0][0]
    np.testing.assert_allclose(found.scores, decoded[rows, 4] * decoded[rows, columns])
    for name, block in gated_blocks(model).items():
        outputs = []

        def nudge(_, x, y, outputs=outputs):
            outputs.append(y[0].clone())
            steps = 1e-6 * torch.eye(y.shape[1], dtype=y.dtype)
            return y + torch.cat([steps, -steps])[:, :, None, None]

        C = view_blocks(model, image)[name].maps.shape[0]
        hook = block.register_forward_hook(nudge)
        decoded = model(image.expand(2 * C, -1, -1, -1))[0]
        hook.remove()
        up, down = (decoded[:, rows, 4] * decoded[:, rows, columns]).split(C)  # (C, 5) both
        alpha = (up - down) / 2e-6 / outputs[0][0].numel()
        expected = torch.einsum("cn,chw->nhw", alpha, outputs[0]).relu().numpy()
        assert (expected.max((1, 2)) > 0).sum() >= 2
        for maps, one in zip(found.maps, expected):
            np.testing.assert_allclose(maps[name], one, rtol=1e-3, atol=1e-4 * expected.max())


def test_a_block_that_does_not_lead_to_a_detection_has_no_map(image):
    model = tiny(("SPPF", "SE"))  # before the coarser of two maps
    found = class_activation(model, image, [0, 3 * 8 * 12], [0, 0])
    (first,), (second,) = (maps.values() for maps in found.maps)
    assert first is None and second.shape == (4, 6)
    assert class_activation(model, image, [], []).maps == []


def test_without_the_gate_the_activation_is_that_of_the_level_map(image):
    """As of a network whose block, GCT as it is built, is the identity."""
    model, level = tiny(("SPPF", "SE")), tiny(("SPPF", "GCT"))
    values = {name: t for name, t in model.state_dict().items() if "conv_du" not in name}
    level.load_state_dict(values, strict=False)
    with without_gates(model, "one"):
        found = class_activation(model, image, [3 * 8 * 12], [0])
    expected = class_activation(level, image, [3 * 8 * 12], [0])
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(*(next(iter(a.maps[0].values())) for a in (found, expected)))
