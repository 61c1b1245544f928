import math

import pytest
import torch

from utils.training.targets import LevelTargets, build_targets

ANCHORS = torch.tensor([[[1.25, 1.625], [2.0, 3.75], [4.125, 2.875]], [[1.875, 3.8125], [3.875, 2.8125], [3.7, 7.4]]])
GRIDS = [(16, 20), (8, 10)]


def slow_level(targets, anchors, grid, anchor_t):
    """The rule for one level, one object at a time: rows (image, anchor, row, column, class, dx, dy, w, h)."""
    rows, columns = grid
    positives = []
    for shift_x, shift_y in [(0, 0), (-1, 0), (0, -1), (1, 0), (0, 1)]:
        for anchor, (aw, ah) in enumerate(anchors.tolist()):
            for image, label, x, y, w, h in targets.tolist():
                x, y, w, h = x * columns, y * rows, w * columns, h * rows
                if max(w / aw, aw / w, h / ah, ah / h) >= anchor_t:
                    continue
                # the neighbour must be the nearer one of the two in its direction, and lie in the grid
                if shift_x == -1 and not (x % 1 < 0.5 and x > 1):
                    continue
                if shift_x == 1 and not ((columns - x) % 1 < 0.5 and columns - x > 1):
                    continue
                if shift_y == -1 and not (y % 1 < 0.5 and y > 1):
                    continue
                if shift_y == 1 and not ((rows - y) % 1 < 0.5 and rows - y > 1):
                    continue
                column = min(max(math.trunc(x + shift_x / 2), 0), columns - 1)
                row = min(max(math.trunc(y + shift_y / 2), 0), rows - 1)
                positives.append((image, anchor, row, column, label, x - column, y - row, w, h))
    return positives


def as_rows(level: LevelTargets):
    whole = torch.stack([level.image, level.anchor, level.row, level.column, level.label], 1)
    return torch.cat([whole.double(), level.box.double()], 1)


def random_targets(n, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(n, 6, generator=generator, dtype=dtype)
    targets[:, 0] = torch.randint(0, 3, (n,), generator=generator)
    targets[:, 1] = torch.randint(0, 7, (n,), generator=generator)
    targets[:, 4:] = targets[:, 4:] ** 2 * 0.7 + 0.01
    return targets


@pytest.mark.parametrize("anchor_t", [1.5, 2.91, 4.0, 8.0])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_loop_in_order(anchor_t, seed):
    targets = random_targets(60, seed)
    for level, anchors, grid in zip(build_targets(targets, ANCHORS.double(), GRIDS, anchor_t), ANCHORS.double(), GRIDS):
        expected = torch.tensor(slow_level(targets, anchors, grid, anchor_t), dtype=torch.float64).reshape(-1, 9)
        torch.testing.assert_close(as_rows(level), expected, rtol=0, atol=1e-12)
        assert torch.equal(level.anchor_wh, anchors[level.anchor])


@pytest.mark.parametrize(
    "x, y, cells",
    [
        # the grid is 4 x 4 and the one anchor as large as the object; cells as (column, row) in order
        (0.40, 0.40, [(1, 1), (2, 1), (1, 2)]),  # centre 1.6, 1.6: right and lower neighbour
        (0.55, 0.35, [(2, 1), (1, 1), (2, 0)]),  # centre 2.2, 1.4: left and upper
        (0.625, 0.625, [(2, 2)]),  # centre 2.5, 2.5: half way, no neighbour is nearer
        (0.05, 0.95, [(0, 3)]),  # centre 0.2, 3.8: the nearer neighbours lie outside the grid
        (0.25, 0.75, [(1, 3), (1, 2), (1, 3)]),  # centre 1, 3: "right" of a border is the own cell a second time
        (0.0, 0.0, [(0, 0), (0, 0), (0, 0)]),  # likewise in the first corner
        (1.0, 1.0, [(3, 3), (3, 3), (3, 3)]),  # own cell (4, 4) is clamped into the grid, its neighbours repeat it
    ],
)
def test_cells_by_hand(x, y, cells):
    targets = torch.tensor([[0, 2, x, y, 0.25, 0.25]])
    (level,) = build_targets(targets, torch.ones(1, 1, 2), [(4, 4)], 4.0)
    assert list(zip(level.column.tolist(), level.row.tolist())) == cells
    torch.testing.assert_close(level.box[:, :2] + torch.tensor(cells), targets[:, 2:4].mul(4).expand(len(cells), 2))


def test_threshold_is_strict():
    # sides 4 times and 0.25 times the anchor's: exactly at the threshold, then just inside
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.5, 0.5], [0, 0, 0.5, 0.5, 0.125, 0.125 / 4]])
    anchors = torch.tensor([[[1.0, 1.0]]])
    (level,) = build_targets(targets, anchors, [(8, 8)], 4.0)
    assert len(level.image) == 0
    (level,) = build_targets(targets, anchors, [(8, 8)], 4.001)
    assert len(level.image) > 0


def test_placeholder_anchors_of_no_width_match_nothing():
    targets = random_targets(20, 0, torch.float32)
    (level,) = build_targets(targets, torch.tensor([[[0.0, 0.125]]]), [(8, 8)], 4.0)
    assert len(level.image) == 0


def test_no_objects():
    for level in build_targets(torch.zeros(0, 6), ANCHORS, GRIDS, 4.0):
        assert [tuple(t.shape) for t in level] == [(0,), (0,), (0,), (0,), (0, 4), (0, 2), (0,)]
        assert level.image.dtype == level.label.dtype == torch.int64


def test_arguments_stay_as_they_are():
    targets, anchors = random_targets(20, 1, torch.float32), ANCHORS.clone()
    before = targets.clone()
    build_targets(targets, anchors, GRIDS, 4.0)
    assert torch.equal(targets, before) and torch.equal(anchors, ANCHORS)


def test_assignments_as_recorded(parity):
    for case in parity("loss")["cases"]:
        strides = torch.tensor(case["strides"])
        anchors = torch.tensor(case["anchors_px"]).view(len(strides), -1, 2) / strides.view(-1, 1, 1)
        grids = [gen["shape"][2:4] for gen in case["preds"]]
        targets = torch.tensor(case["targets"]).float().reshape(-1, 6)
        levels = build_targets(targets, anchors, grids, case["hyp"]["anchor_t"])
        for level, expected in zip(levels, case["assigned"], strict=True):
            found = sorted(as_rows(level).tolist())
            assert len(found) == expected["count"], case["name"]
            rows = torch.tensor(found).reshape(-1, 9)
            assert rows[:, :5].tolist() == expected["rows"], case["name"]
            boxes = torch.tensor(expected["boxes"]).reshape(-1, 4)
            torch.testing.assert_close(rows[:, 5:], boxes, rtol=1e-5, atol=1e-5, msg=case["name"])
            cells = [tuple(row[:4]) for row in found]
            assert len(cells) - len(set(cells)) == expected["repeated"], case["name"]
