"""tools/explain.py: FLOPs against formulas counted by hand, the table, the drawing."""

import cv2
import pytest

from models.second_order import chebyshev_coefficients
from models.yolo import Model
from tools import explain as tool
from utils import cli


def stack(*rows: list, channels: int = 48) -> Model:
    """Rows on a map of so many channels at stride 8, and a head that looks at it."""
    backbone = [[-1, 1, "Conv", [channels, 8, 8, 0]], *rows]
    head = [[[-1], 1, "Detect", ["nc", "anchors"]]]
    return Model({"nc": 1, "depth_multiple": 1, "width_multiple": 1, "anchors": 1, "backbone": backbone, "head": head})


def soca_flops(C: int, M: int, hidden: int) -> int:
    """28 products with a vector of S (C x C), which is formed once, or of Xc and Xc^T; and the gate."""
    steps = len(chebyshev_coefficients()) - 1
    if C <= M:
        statistic = 2 * C * C * M + steps * 2 * C * C
    else:
        statistic = steps * 4 * C * M
    return statistic + 4 * C * hidden


# fewer positions than channels, and more
@pytest.mark.parametrize(("C", "size"), [(48, 32), (48, 64), (48, 160), (256, 120)])
def test_flops_by_hand(C, size):
    M = (size // 8) ** 2
    rows = [-1, 1, "SOCA", []], [-1, 1, "SE", []], [-1, 1, "Conv", [C, 3, 1]], [-1, 1, "nn.Identity", []]
    lines = tool.explain(stack(*rows, channels=C), size)
    assert [line.module for line in lines] == ["Conv", "SOCA", "SE", "Conv", "Identity", "Detect"]
    expected = [2 * M * C * 3 * 64, soca_flops(C, M, C // 8), 4 * C * (C // 16), 2 * M * C * C * 9, 0, 2 * M * C * 6]
    assert [line.flops for line in lines] == expected


@pytest.mark.parametrize("C", [48, 16])
def test_non_local_blocks_are_counted(C):
    """RLNL: four 1 x 1 convolutions, and in each of four regions m x m scores and as many sums."""
    lines = tool.explain(stack([-1, 1, "RLNL", []], channels=C), 128)
    M, c, m = 256, C // 2, 64
    assert lines[1].flops == 4 * 2 * M * C * c + 4 * 2 * (2 * m * m * c)


def test_transformers_are_counted():
    """C3TR: projections, scores and sums over positions; none hides in a fused kernel."""
    lines = tool.explain(stack([-1, 1, "C3TR", [48]]), 64)
    M, C, c = 64, 48, 24
    outer = 2 * M * (2 * C * c + C * C)
    layer = 2 * M * c * c * (3 + 3 + 1 + 2) + 4 * M * M * c
    assert lines[1].flops == outer + 2 * M * c * c + layer


def test_the_same_sum_as_the_models_own():
    model = Model("SOCA-n.yaml")
    lines = tool.explain(model, 128)
    assert sum(line.flops for line in lines) / 1e9 == pytest.approx(model.gflops(128), rel=1e-9)
    assert sum(line.parameters for line in lines) == sum(p.numel() for p in model.parameters())
    assert [line.row for line in lines] == list(range(26))
    assert lines[24][1:5] == (-1, "SOCA", 256, 32)
    assert lines[25][1:5] == ([17, 20, 24], "Detect", None, None)
    assert model.training and not model.model[0]._forward_hooks


def test_the_table():
    text = tool.table(tool.explain(Model("SOCA-n.yaml"), 64)).splitlines()
    assert text[0].split() == ["row", "from", "module", "channels", "stride", "parameters", "GFLOPs", "%"]
    assert text[25].split()[:5] == ["24", "-1", "SOCA", "256", "32"]
    assert text[-1].split()[0] == "total"
    assert len(text) == 1 + 26 + 1
    shares = sum(float(row.split()[-1]) for row in text[1:-1])
    assert shares == pytest.approx(100, abs=0.2)


def test_kinds():
    lines = tool.explain(Model("yolov5n.yaml", insert=[{"after": "P5", "module": "SE"}]), 64)
    kinds = {line.row: tool.kind(line) for line in lines}
    assert [row for row, kind in kinds.items() if kind == "attention"] == [24]
    assert [row for row, kind in kinds.items() if kind == "join"] == [11, 12, 15, 16, 19, 22]
    assert kinds[25] == "detect"


def test_the_command(tmp_path, capsys):
    drawing = tmp_path / "network.png"
    arguments = ["yolov5n.yaml", "--attention", "SE@P3", "--imgsz", "64", "--picture", str(drawing)]
    tool.main(cli.parse(tool.make_parser(), argv=arguments))
    assert "SE " in capsys.readouterr().out
    pixels = cv2.imread(str(drawing))
    assert pixels.shape[1] > pixels.shape[0] > 400
    orange = (abs(pixels.astype(int) - (0x2E, 0x57, 0xE4)).sum(2) < 10).sum()  # the colour of attention, once
    assert orange > 200


def test_wrong_names_of_drawings():
    opt = cli.parse(tool.make_parser(), argv=["yolov5n.yaml", "--picture", "network.doc"])
    with pytest.raises(ValueError, match=r"--picture must end in \.png, \.svg or \.pdf"):
        tool.main(opt)
