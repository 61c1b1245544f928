import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from utils.training.loss import BCE, ComputeLoss, FocalLoss, smooth_labels
from utils.training.targets import build_targets

HYP = {"box": 0.05, "obj": 1.0, "cls": 0.5, "cls_pw": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0}
P5 = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


def make_head(nc=4, anchors_px=P5, strides=(8, 16, 32), dtype=torch.float32):
    stride = torch.tensor(strides, dtype=dtype)
    anchors = torch.tensor(anchors_px, dtype=dtype).view(len(strides), -1, 2) / stride.view(-1, 1, 1)
    return SimpleNamespace(nl=len(strides), na=anchors.shape[1], nc=nc, anchors=anchors, stride=stride)


def random_batch(nc=4, seed=0, dtype=torch.float64, objects=12):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, 12, 16, 5 + nc), (2, 3, 6, 8, 5 + nc), (2, 3, 3, 4, 5 + nc)]
    raw = [torch.randn(s, generator=generator, dtype=torch.float64).mul(1.5).to(dtype) for s in shapes]
    targets = torch.rand(objects, 6, generator=generator, dtype=torch.float64)
    targets[:, 0] = torch.randint(0, 2, (objects,), generator=generator)
    targets[:, 1] = torch.randint(0, nc, (objects,), generator=generator)
    targets[:, 4:] = targets[:, 4:] * 0.5 + 0.03
    return raw, targets.to(torch.float32 if dtype != torch.float64 else dtype)


# --- against plain arithmetic, one number at a time -------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_ciou(a, b, eps=1e-7):
    """Complete IoU of two centre-form boxes (Zheng et al., AAAI 2020), with the constants of v6.1."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    overlap_w = max(0.0, min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2))
    overlap_h = max(0.0, min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2))
    hull_w = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    hull_h = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    ah, bh = ah + eps, bh + eps
    iou = overlap_w * overlap_h / (aw * ah + bw * bh - overlap_w * overlap_h + eps)
    distance = ((ax - bx) ** 2 + (ay - by) ** 2) / (hull_w**2 + hull_h**2 + eps)
    v = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
    return iou - distance - v * v / (v - iou + 1 + eps)


def slow_bce(logit, y, pos_weight, gamma):
    p = sigmoid(logit)
    loss = -(pos_weight * y * math.log(p) + (1 - y) * math.log(1 - p))
    if gamma > 0:
        p_t = y * p + (1 - y) * (1 - p)
        loss *= (0.25 * y + 0.75 * (1 - y)) * (1 - p_t) ** gamma
    return loss


def slow_loss(raw, targets, head, hyp, gr=1.0, by_iou=False):
    """Positives come from build_targets, which has its own slow loop in test_targets.py."""
    e = hyp.get("label_smoothing", 0.0)
    grids = [level.shape[2:4] for level in raw]
    items = [0.0, 0.0, 0.0]
    for level, positives, balance in zip(
        raw, build_targets(targets, head.anchors, grids, hyp["anchor_t"]), (4.0, 1.0, 0.4), strict=True
    ):
        box_losses, class_losses, scores = [], [], {}
        for image, anchor, row, column, box, anchor_wh, label in zip(*(t.tolist() for t in positives)):
            x, y, w, h, _, *classes = level[image, anchor, row, column].tolist()
            predicted = (
                2 * sigmoid(x) - 0.5,
                2 * sigmoid(y) - 0.5,
                (2 * sigmoid(w)) ** 2 * anchor_wh[0],
                (2 * sigmoid(h)) ** 2 * anchor_wh[1],
            )
            iou = slow_ciou(predicted, box)
            box_losses.append(1 - iou)
            for c, logit in enumerate(classes):
                class_losses.append(slow_bce(logit, 1 - e / 2 if c == label else e / 2, hyp["cls_pw"], hyp["fl_gamma"]))
            cell, score = (image, anchor, row, column), (1 - gr) + gr * max(0.0, iou)
            scores[cell] = max(score, scores.get(cell, 0.0)) if by_iou else score
        object_losses = [
            slow_bce(level[cell][4].item(), scores.get(cell, 0.0), hyp["obj_pw"], hyp["fl_gamma"])
            for cell in itertools.product(*map(range, level.shape[:4]))
        ]
        items[0] += hyp["box"] * sum(box_losses) / max(len(box_losses), 1)
        items[1] += hyp["obj"] * balance * sum(object_losses) / len(object_losses)
        if head.nc > 1:
            items[2] += hyp["cls"] * sum(class_losses) / max(len(class_losses), 1)
    return sum(items) * len(raw[0]), items


@pytest.mark.parametrize(
    "nc, changes, options",
    [
        (4, {}, {}),  # as trained by default
        (1, {}, {}),  # one class: no class loss
        (3, {"label_smoothing": 0.1, "cls_pw": 1.7, "obj_pw": 0.6}, {}),
        (3, {"fl_gamma": 1.5, "cls_pw": 0.8, "obj_pw": 1.4}, {}),  # focal
        (3, {"anchor_t": 8.0}, {"gr": 0.3}),
        (3, {"anchor_t": 8.0}, {"sort_obj_iou": True}),
    ],
)
def test_equals_plain_arithmetic(nc, changes, options):
    hyp, head = {**HYP, **changes}, make_head(nc, dtype=torch.float64)
    raw, targets = random_batch(nc)
    total, items = ComputeLoss(head, hyp, **options)(raw, targets)
    slow_total, slow_items = slow_loss(
        raw, targets, head, hyp, options.get("gr", 1.0), options.get("sort_obj_iou", False)
    )
    assert total.shape == (1,) and items.shape == (3,)
    assert total.item() == pytest.approx(slow_total, rel=1e-10)
    assert items.tolist() == pytest.approx(slow_items, rel=1e-10)


def test_gradients_equal_finite_differences(one_thread):
    # CIoU's alpha has no gradient and objectness targets follow the IoU without one, so finite differences agree only
    # where predicted and true boxes have one shape (v = 0 to second order) and gr is 0
    head = SimpleNamespace(nl=1, na=1, nc=2, anchors=torch.ones(1, 1, 2).double(), stride=torch.tensor([16]))
    loss = ComputeLoss(head, {**HYP, "fl_gamma": 1.5, "cls_pw": 2.0}, gr=0.0)
    targets = torch.tensor([[0, 1, 0.4, 0.6, 0.25, 0.25], [0, 0, 0.9, 0.2, 0.25, 0.25]]).double()
    raw = random_batch(2)[0][0][:1, :1, :4, :4].clone()
    raw[..., 2:4] = 0  # one cell wide and high, as the objects
    assert torch.autograd.gradcheck(lambda level: loss([level], targets)[0], raw.requires_grad_(), atol=1e-6)


# --- golden numbers ---------------------------------------------------------------------------------------------------

TARGETS = torch.tensor(
    [
        [0, 1, 0.5, 0.5, 0.2, 0.3],
        [0, 3, 0.12, 0.9, 0.1, 0.08],
        [1, 0, 0.71, 0.33, 0.5, 0.6],
        [1, 2, 0.02, 0.03, 0.05, 0.05],
    ]
)


def golden_raw():
    """Element j of level k is ((7919 j + 104729 k) mod 1000) / 250 - 2."""
    levels = []
    for k, n in enumerate((16, 8, 4)):
        j = torch.arange(2 * 3 * n * n * 9)
        levels.append((((7919 * j + 104729 * k) % 1000).double() / 250 - 2).float().view(2, 3, n, n, 9))
    return levels


@pytest.mark.parametrize(
    "changes, total, items, counts",
    [
        ({}, 12.082972, (0.135628, 4.559418, 1.346440), (28, 24, 6)),
        ({"label_smoothing": 0.1}, 12.068541, (0.135628, 4.559418, 1.339225), (28, 24, 6)),
        ({"fl_gamma": 1.5}, 5.107852, (0.135628, 1.918353, 0.499945), (28, 24, 6)),
        ({"cls_pw": 0.5, "obj_pw": 2}, 11.807479, (0.135628, 4.572039, 1.196072), (28, 24, 6)),
        ({"anchor_t": 2}, 11.947979, (0.134235, 4.554886, 1.284868), (13, 11, 3)),
    ],
)
def test_golden_numbers(changes, total, items, counts):
    hyp, head = {**HYP, **changes}, make_head()
    found_total, found_items = ComputeLoss(head, hyp)(golden_raw(), TARGETS)
    assert found_total.item() == pytest.approx(total, abs=2e-6)
    assert found_items.tolist() == pytest.approx(items, abs=1e-6)
    levels = build_targets(TARGETS, head.anchors, [(16, 16), (8, 8), (4, 4)], hyp["anchor_t"])
    assert tuple(len(level.image) for level in levels) == counts


def relative(found, expected, scale):
    difference = torch.as_tensor(found).double() - torch.as_tensor(expected).double()
    return (difference.abs().max() / scale).item() if difference.numel() else 0.0


def test_values_and_gradients_as_recorded(parity, parity_inputs, one_thread):
    for case in parity("loss")["cases"]:
        options = case["options"]
        assert set(options) <= {"autobalance", "steps", "gr", "sort_obj_iou", "amp"}
        loss = ComputeLoss(
            make_head(case["nc"], case["anchors_px"], case["strides"]),
            case["hyp"],
            options.get("autobalance", False),
            gr=options.get("gr", 1.0),
            sort_obj_iou=options.get("sort_obj_iou", False),
        )
        targets = torch.tensor(case["targets"]).float().reshape(-1, 6)
        for step in case["steps"]:
            raw = [torch.from_numpy(parity_inputs.build(gen)).requires_grad_() for gen in case["preds"]]
            total, items = loss(raw, targets)
            total.backward()
            assert total.item() == pytest.approx(step["total"], rel=1e-6), case["name"]
            assert items.tolist() == pytest.approx(step["items"], rel=1e-6), case["name"]
            assert loss.balance == pytest.approx(step["balance"][: len(raw)], rel=1e-6), case["name"]
            for level, expected in zip(raw, step["grad"], strict=True):
                gradient, norm = level.grad.double(), expected["norm"]
                assert gradient.norm().item() == pytest.approx(norm, rel=1e-6), case["name"]
                samples = gradient.flatten()[parity_inputs.indices(gradient.numel(), 32)]
                assert relative(samples, expected["samples"], norm) < 1e-6, case["name"]
                for image, anchor, row, column, *values in expected["matched"]:
                    assert relative(gradient[image, anchor, row, column, :8], values, norm) < 1e-6, case["name"]


# --- behaviour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, margin", [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_maps_are_lifted_to_float32(dtype, margin):
    raw, targets = random_batch(dtype=dtype)
    loss = ComputeLoss(make_head(), HYP)
    half = [level.clone().requires_grad_() for level in raw]
    full = [level.float().requires_grad_() for level in raw]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, items = loss(half, targets)
    expected, expected_items = loss(full, targets)
    assert total.dtype == items.dtype == torch.float32
    assert torch.equal(total, expected) and torch.equal(items, expected_items)  # the same numbers, the same arithmetic
    total.backward()
    expected.backward()
    for a, b in zip(half, full):
        assert a.grad.dtype == dtype
        assert (a.grad.float() - b.grad).norm() < margin * b.grad.norm()


def test_huge_half_precision_logits_give_finite_gradients():
    raw, targets = random_batch(dtype=torch.float16)
    raw = [(level * 1e4).clamp(-6e4, 6e4).requires_grad_() for level in raw]
    total, _ = ComputeLoss(make_head(), HYP)(raw, targets)
    total.backward()
    assert total.isfinite().all() and all(level.grad.isfinite().all() for level in raw)


def test_half_precision_anchors():
    raw, targets = random_batch(dtype=torch.float32)
    total, _ = ComputeLoss(make_head(dtype=torch.float16), HYP)(raw, targets)
    assert total.item() == pytest.approx(ComputeLoss(make_head(), HYP)(raw, targets)[0].item(), rel=1e-3)


def test_arguments_stay_as_they_are():
    raw, targets = random_batch(dtype=torch.float32)
    hyp, before = dict(HYP), [t.clone() for t in (*raw, targets)]
    ComputeLoss(make_head(), hyp, autobalance=True)(raw, targets)
    assert hyp == HYP and all(torch.equal(a, b) for a, b in zip((*raw, targets), before))


@pytest.mark.parametrize("by_iou", [False, True])
def test_positives_that_share_a_cell(by_iou):
    # a good and a bad prediction target in one cell; the objectness target is the last one's IoU, or the best
    raw = [torch.zeros(1, 1, 4, 4, 6)]  # predicts the anchor's box at the middle of each cell
    good, bad = [0, 0, 0.375, 0.375, 0.25, 0.25], [0, 0, 0.375, 0.375, 0.5, 0.5]
    head = SimpleNamespace(nl=1, na=1, nc=1, anchors=torch.ones(1, 1, 2), stride=torch.tensor([16]))
    loss = ComputeLoss(head, HYP, sort_obj_iou=by_iou)
    expected = {"good": 1.0, "bad": 0.25}
    for order in (("good", "bad"), ("bad", "good")):
        targets = torch.tensor([{"good": good, "bad": bad}[name] for name in order])
        raw = [torch.zeros(1, 1, 4, 4, 6, requires_grad=True)]
        total, _ = loss(raw, targets)
        total.backward()
        # the gradient of mean BCE at logit 0 is (0.5 - target) / cells, times 4, the share of a first level
        target = 0.5 - raw[0].grad[0, 0, 1, 1, 4].item() * 16 / 4
        assert target == pytest.approx(1.0 if by_iou else expected[order[-1]], abs=1e-6)


def test_one_pass_over_many_positives_of_one_cell_is_the_loop():
    # thousands of positives in few cells, more than torch writes in one thread
    raw, _ = random_batch(1, dtype=torch.float32)
    targets = random_batch(1, seed=5, dtype=torch.float32, objects=3000)[1]
    loss = ComputeLoss(make_head(1), HYP)
    levels = build_targets(targets, loss.anchors, [level.shape[2:4] for level in raw], 4.0)
    for level, positives in zip(raw, levels):
        scores = torch.rand(len(positives.image), generator=torch.Generator().manual_seed(1))
        expected = torch.zeros(level.shape[:4])
        for k, cell in enumerate(zip(*(t.tolist() for t in positives[:4]))):
            expected[cell] = scores[k]
        assert torch.equal(loss._object_targets(level.shape[:4], positives, scores), expected)


def test_autobalance_needs_stride_16():
    with pytest.raises(ValueError, match=r"stride 16, but the model has strides \[8, 32, 64\]"):
        ComputeLoss(make_head(strides=(8, 32, 64)), HYP, autobalance=True)


def test_wrong_number_of_levels():
    with pytest.raises(ValueError, match="3 levels, got 1"):
        ComputeLoss(make_head(), HYP)(golden_raw()[:1], TARGETS)


# --- criteria ---------------------------------------------------------------------------------------------------------


def test_criteria_as_recorded(parity, parity_inputs):
    recorded = parity("loss")["elementary"]
    logits, targets = (torch.from_numpy(parity_inputs.build(recorded[name])) for name in "pt")
    losses = {  # the other recorded criteria, quality focal loss and blurred BCE, are used nowhere in v6.1
        "focal g=1.5 a=0.25": FocalLoss(1.5, 0.25)(logits, targets),
        "focal g=2 a=0.5 sum": FocalLoss(2.0, 0.5).elements(logits, targets).sum(),
        "focal g=0.7 none": FocalLoss(0.7).elements(logits, targets),
    }
    expected = {case["loss"]: torch.tensor(case["value"]) for case in recorded["cases"]}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=1e-7)
    for eps, positive, negative in recorded["smooth"]:
        assert smooth_labels(eps) == pytest.approx((positive, negative))


@pytest.mark.parametrize("criterion", [FocalLoss(0.5), FocalLoss(1.5)])
def test_criteria_have_finite_gradients_where_nothing_is_left_to_learn(criterion):
    logits = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0], requires_grad=True)
    criterion(logits, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0])).backward()
    assert logits.grad.isfinite().all()


def test_focal_loss_without_focus_is_half_of_bce():
    logits, targets = torch.randn(50), torch.rand(50)
    torch.testing.assert_close(FocalLoss(0.0, 0.5, 2.0)(logits, targets), BCE(2.0)(logits, targets) / 2)
