"""Box geometry against recorded numbers, hand values and slow loops."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from utils import boxes as B
from utils.data.letterbox import scale_boxes

KINDS = ("iou", "giou", "diou", "ciou")


def close(actual, expected, rtol=1e-6, atol=1e-9):
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


@pytest.fixture
def recorded(parity):
    """The recorded box numbers, with the tables `px` and `nm` as arrays."""
    numbers = parity("boxes")
    return {**numbers, "px": np.array(numbers["px"], float), "nm": np.array(numbers["nm"], float)}


@pytest.fixture
def overlaps(parity):
    return parity("metrics")


# --- conversions ------------------------------------------------------------------------------------------------------


def test_corner_and_centre_forms_as_recorded(recorded):
    close(B.xyxy_to_xywh(recorded["px"]), recorded["corner_to_centre"])
    close(B.xywh_to_xyxy(recorded["px"]), recorded["centre_to_corner"])
    float32 = torch.tensor(recorded["px"], dtype=torch.float32)
    close(B.xywh_to_xyxy(float32), recorded["centre_to_corner_f32"], rtol=1e-4)


def test_normalised_to_corners_as_recorded(recorded):
    for case in recorded["normalised_to_corner"]:
        close(B.xywhn_to_xyxy(recorded["nm"], case["w"], case["h"], case["padw"], case["padh"]), case["out"])


def test_corners_to_normalised_as_recorded(recorded):
    for case in recorded["corner_to_normalised"]:
        boxes = recorded["px"].copy()
        close(B.xyxy_to_xywhn(boxes, case["w"], case["h"], clip=case["clip"], eps=case["eps"]), case["out"])
        close(boxes, recorded["px"], rtol=0)  # v6.1 clipped its argument; here it stays


def test_scale_boxes_as_recorded(recorded):
    for case in recorded["scale_back"]["cases"]:
        for boxes in (torch.tensor(recorded["px"], dtype=torch.float32), recorded["px"].astype(np.float32)):
            out = scale_boxes(boxes, case["net_hw"], case["image_hw"], case["ratio_pad"])
            assert type(out) is type(boxes)
            close(out, case["out"], rtol=1e-4, atol=1e-4)
            close(boxes, recorded["px"].astype(np.float32), rtol=0)


def test_clip_boxes_as_recorded(recorded):
    float32 = recorded["px"].astype(np.float32)
    for boxes in (torch.tensor(float32), float32):
        close(B.clip_boxes(boxes, recorded["clip"]["hw"]), recorded["clip"]["out"])


def test_scale_boxes_by_hand():
    # golden: 384 x 640 input of a 720 x 1280 image: gain 1/2, 12 rows of border
    box = np.array([[100.0, 100.0, 200.0, 200.0]])
    close(scale_boxes(box, (384, 640), (720, 1280)), [[200.0, 176.0, 400.0, 376.0]])


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_conversions_are_each_others_inverse(kind):
    centre = kind(np.random.default_rng(0).uniform(0.1, 0.9, (50, 4)))
    close(B.xyxy_to_xywh(B.xywh_to_xyxy(centre)), centre)
    close(B.xyxy_to_xywhn(B.xywhn_to_xyxy(centre, 640, 480), 640, 480), centre)
    close(B.xywhn_to_xyxy(centre, 640, 480), B.xywh_to_xyxy(centre) * kind([640.0, 480.0, 640.0, 480.0]))


# --- polygons ---------------------------------------------------------------------------------------------------------


def test_points_to_pixels_as_recorded(recorded):
    for case in recorded["segment_to_pixels"]:
        for points, expected in zip(recorded["segments"], case["out"]):
            close(B.points_to_pixels(np.array(points), case["w"], case["h"], case["padw"], case["padh"]), expected)


def test_polygon_to_box_as_recorded(recorded):
    for case in recorded["segment_box"]["cases"]:
        box = B.polygon_to_box(np.array(case["points"], float), case["w"], case["h"])
        # v6.1 gives (1, 4) where no point is inside, else (4,); here it is always (4,)
        close(box, np.reshape(case["out"], 4))


def test_polygons_to_boxes_as_recorded(recorded):
    close(B.polygons_to_boxes([np.array(points) for points in recorded["segments"]]), recorded["segments_boxes"]["out"])


def test_no_polygons_give_no_boxes():
    assert B.polygons_to_boxes([]).shape == (0, 4)
    assert B.resample_polygons([]) == []


def test_resample_polygons_as_recorded(recorded, parity_inputs):
    polygons = [np.array(points) for points in recorded["segments"]]
    for case in recorded["resample"]:
        resampled = B.resample_polygons(polygons, case["n"])
        for points, expected in zip(resampled, case.get("out", [])):
            close(points, expected)
        for points, summary in zip(resampled, case.get("summaries", [])):
            assert list(points.shape) == summary["shape"]
            close([points.sum(), np.abs(points).mean()], [summary["sum"], summary["mean_abs"]])
            samples = parity_inputs.indices(points.size, len(summary["samples"]))
            close(points.ravel()[samples], summary["samples"])


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_round_up_as_recorded(recorded):
    for number, divisor, expected in recorded["divisible"]:
        assert B.round_up(number, divisor) == expected


def test_check_image_size_as_recorded(recorded):
    for case in recorded["image_size"]:
        assert B.check_image_size(case["size"], case["stride"], case["floor"]) == case["out"]


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (50, "50 is not a multiple of the model's stride 32 and less than 64, 2 times the stride; using 64"),
        (32, "32 is less than 64, 2 times the stride; using 64"),
        (100, "100 is not a multiple of the model's stride 32; using 128"),
        ([96, 100], "[96, 100] is not a multiple of the model's stride 32; using [96, 128]"),
    ],
)
def test_a_changed_size_is_explained(size, says, capsys):
    B.check_image_size(size, 32, floor=64)
    assert capsys.readouterr().err == f"image size {says}\n"
    B.check_image_size(128, 32, floor=64)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", [0, -32, [640, 0]])
def test_sizes_must_be_positive(size):
    with pytest.raises(ValueError, match="must be positive"):
        B.check_image_size(size)


# --- overlaps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_paired_iou_and_its_gradient_as_recorded(overlaps, kind):
    recorded = overlaps["iou"]
    a, b = (torch.tensor(recorded[name], dtype=torch.float32) for name in ("pairs1", "pairs2"))
    corners = [torch.cat([x[:, :2], x[:, :2] + x[:, 2:]], 1) for x in (a, b)]
    close(B.paired_iou(*corners, kind=kind, xywh=False), recorded[kind]["corner"], rtol=1e-6, atol=1e-6)

    a.requires_grad_()
    iou = B.paired_iou(a, b, kind=kind)
    iou.sum().backward()
    close(iou.detach(), recorded[kind]["centre"], rtol=1e-6, atol=1e-6)
    close(a.grad[:10], recorded[kind]["grad_centre_first10"], rtol=1e-5, atol=1e-5)


def test_overlap_matrices_as_recorded(overlaps):
    matrix, ioa = overlaps["iou_matrix"], overlaps["ioa"]
    close(B.box_iou(torch.tensor(matrix["a"]), torch.tensor(matrix["b"])), matrix["iou"], atol=1e-6)
    assert list(B.box_iou(torch.zeros(0, 4), torch.zeros(2, 4)).shape) == matrix["empty"]
    close(B.box_ioa(np.array(ioa["a"]), np.array(ioa["b"])), ioa["ioa"], atol=1e-6)


@pytest.mark.parametrize(
    ("pred", "target", "expected"),  # expected: IoU, GIoU, DIoU, CIoU
    [
        ([10, 10, 4, 6], [11, 9, 5, 5], [0.473684, 0.403754, 0.446098, 0.445638]),  # partly over each other
        ([0.5, 0.5, 1, 1], [0.7, 0.4, 0.8, 1.5], [0.466667, 0.375758, 0.452216, 0.450015]),  # in cells, not pixels
        ([5, 5, 2, 2], [20, 20, 3, 1], [0, -0.975758, -0.777874, -0.784856]),  # apart
    ],
)
def test_paired_iou_golden_numbers(pred, target, expected):
    pred, target = torch.tensor([pred]).float(), torch.tensor([target]).float()
    close([B.paired_iou(pred, target, kind=kind).item() for kind in KINDS], expected, rtol=0, atol=1e-6)


def test_unknown_kind_of_iou_is_refused():
    with pytest.raises(ValueError, match="got 'siou'"):
        B.paired_iou(torch.zeros(1, 4), torch.zeros(1, 4), kind="siou")


def random_corners(rng, n):
    corner = rng.uniform(0, 60, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 40, (n, 2))], 1)


def slow_iou(a, b):
    """Intersection and union counted from the definition, one pair at a time."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height, width * height / (sum(area) - width * height)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_box_iou_against_slow_loop(dtype):
    rng = np.random.default_rng(0)
    a, b = random_corners(rng, 12), random_corners(rng, 9)
    slow = [[slow_iou(x, y)[1] for y in b] for x in a]
    close(B.box_iou(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)), slow, rtol=1e-5, atol=1e-6)
    paired = B.paired_iou(torch.tensor(a)[:, None], torch.tensor(b)[None], kind="iou", xywh=False)  # broadcast
    close(paired, slow, atol=1e-6)


def test_ioa_against_slow_loop():
    rng = np.random.default_rng(1)
    a, b = random_corners(rng, 5), random_corners(rng, 7)
    slow = [slow_iou(a[0], y)[0] / ((y[2] - y[0]) * (y[3] - y[1])) for y in b]
    close(B.box_ioa(a[0], b), slow, atol=1e-6)


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        B.xyxy_to_xywh,
        B.xywh_to_xyxy,
        lambda x: B.xywhn_to_xyxy(x, 640, 480, 3, 4),
        lambda x: B.xyxy_to_xywhn(x, 64, 48, clip=True, eps=1e-3),
        lambda x: B.points_to_pixels(x[..., :2], 640, 480),
        lambda x: B.clip_boxes(x, (10, 20)),
        lambda x: scale_boxes(x, (384, 640), (720, 1280)),
    ],
)
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 4), (0, 4)])
def test_both_kinds_of_array_any_shape_and_argument_unchanged(function, shape):
    array = np.random.default_rng(0).uniform(-10, 700, shape)
    tensor, kept = torch.tensor(array), array.copy()
    from_array, from_tensor = function(array), function(tensor)
    assert isinstance(from_array, np.ndarray) and isinstance(from_tensor, torch.Tensor)
    assert_close(from_tensor, torch.tensor(from_array))
    assert np.array_equal(array, kept) and np.array_equal(tensor.numpy(), kept)
