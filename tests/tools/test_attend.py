"""tools/attend.py: the page of one model and of two, every kind of block, and errors about bad input."""

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
from small_world import NAMES, TINY, boxes_image, lively, write_boxes, write_yaml

import val
from models.attention_view import REPLACEMENTS, gated_blocks
from models.registry import keeps_channels, registered
from models.yolo import Model
from tools import attend
from tools.attend_measures import classes_in_turn
from tools.attend_report import SIDE, Block, ModelView, ScoredDetection, _range, as_html, as_text
from tools.attend_split import _measured, others
from utils import checkpoint, cli


def write_model(path, *inserted: tuple, bias: float = 2.0):
    """Writes the tiny detector with inserted blocks, which detects boxes of confidence near sigmoid(bias) / 2."""
    torch.manual_seed(0)
    model = Model(TINY, nc=2, insert=[{"after": after, "module": module} for after, module in inserted])
    model.names = NAMES
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "conv_du" in name:
                p.copy_(torch.randn_like(p))
        for conv in model.model[-1].m:
            conv.bias.view(3, -1)[:, 4] = bias
            conv.bias.view(3, -1)[:, 5:] = torch.tensor([0.0, 0.5])
    checkpoint.save(path, {"model": model.eval(), "ema": None})
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "zwei <Kästen>.png"
    cv2.imencode(".png", boxes_image())[1].tofile(path)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(*arguments)`: exit status, standard output and standard error of the command."""

    def command(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            cli.run(attend.main, lambda: cli.parse(attend.make_parser(), argv=[*map(str, arguments)]), "attend.py")
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return command


class Page(HTMLParser):
    """What a page refers to, and its images."""

    def __init__(self, text: str):
        super().__init__()
        self.images, self.others, self.charts = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.charts += tag == "svg"
        for key in ("src", "href"):
            if key in values:
                found = re.fullmatch(r"data:image/(jpeg|png);base64,(.*)", values[key])
                data = np.frombuffer(base64.b64decode(found[2]), np.uint8) if found else None
                (self.images.append(cv2.imdecode(data, 1)) if found else self.others.append(values[key]))


def test_one_model(tmp_path, photo, run):
    weights, page = write_model(tmp_path / "soca.pt", (4, "SOCA")), tmp_path / "page.html"
    code, out, err = run(photo, "--weights", weights, "--img", 96, "--html", page)
    assert code == 0, err
    assert "5-SOCA: 32 channels on a map of 12 x 8; gate " in out and "five steps against the root" in out
    text = page.read_text(encoding="utf-8")
    read = Page(text)
    sides = [max(p.shape[:2]) for p in read.images]
    assert sides.count(SIDE) == 2 + 1 + 8 and 96 not in sides  # the frame is enlarged before it is drawn on
    # detections with and without, 8 channels, emphasis, four detections with and without
    assert len(read.images) == 2 + 8 + 1 + 8 and all(p is not None for p in read.images)
    assert read.others == [] and "http" not in text and "@import" not in text and "url(" not in text
    assert read.charts == 4
    assert "What attention does with zwei &lt;Kästen&gt;.png" in text and "<Kästen>" not in text
    assert "nan" not in re.sub(r"base64,[^']*", "", text)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["page.html", photo.name, "soca.pt"])


def test_two_models_side_by_side(tmp_path, photo, run):
    one = write_model(tmp_path / "soca.pt", (4, "SOCA"), ("SPPF", "SOCA"))
    two = write_model(tmp_path / "se.pt", (4, "SE"))
    page = tmp_path / "page.html"
    code, out, err = run(photo, "--weights", one, two, "--img", 96, "--html", page, "--without", "one")
    assert code == 0, err
    text = page.read_text(encoding="utf-8")
    assert "5-SOCA beside 5-SE" in text and "gates, each in falling order" in text
    assert "8-SOCA" in text  # which the second model has no counterpart of
    assert "1, as if the block were not there" in text
    # the head's finer map has the first block alone before it
    assert Page(text).charts == 1 + 4 + 1 + 4
    assert out.count(" with the gate, ") == 2


@pytest.mark.parametrize("module", [c.__name__ for c in registered(keeps_channels) if hasattr(c, "gate")] + ["LSRAG"])
def test_every_block_with_a_gate(module, tmp_path, photo, run):
    weights, page = write_model(tmp_path / "a.pt", ("SPPF", module)), tmp_path / "page.html"
    code, out, err = run(photo, "--weights", weights, "--img", 64, "--html", page, "--detections", 1)
    assert code == 0, err
    assert ("7.soca-SOCA: 64" if module == "LSRAG" else f"7-{module}: 64") in out
    assert page.stat().st_size > 10000


def test_a_page_without_detections(tmp_path, photo, run):
    weights, page = write_model(tmp_path / "a.pt", (4, "SE"), bias=-9), tmp_path / "page.html"
    code, _, err = run(photo, "--weights", weights, "--img", 64, "--html", page)
    assert code == 0, err
    text = page.read_text(encoding="utf-8")
    assert "No detections with the gate." in text and "No detections, so nothing to show." in text


def test_bad_input_is_one_message_and_no_page(tmp_path, photo, run):
    plain, soca = write_model(tmp_path / "plain.pt"), write_model(tmp_path / "soca.pt", (4, "SOCA"))
    page = tmp_path / "page.html"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    for arguments, message in [
        ((photo, "--weights", plain), f"{plain} has no attention with a gate, so there is nothing to show"),
        ((photo, "--weights", soca, plain), "has no attention with a gate"),
        ((photo, "--weights", soca, soca, soca), "--weights takes one file, or two to compare, got 3"),
        ((photo, "--weights", tmp_path / "no.pt"), "no such weights"),
        (("--weights", soca), "give an image, or --data my.yaml"),
        ((photo, "--weights", soca, "--data", "x.yaml"), "give either an image or --data, not both"),
        (("--weights", soca, "--data", "no.yaml"), "no such file: 'no.yaml'"),
        ((tmp_path / "no.jpg", "--weights", soca), "no.jpg"),
        ((broken, "--weights", soca), "broken.jpg"),
        ((photo, "--weights", broken), "broken.jpg"),
        ((photo, "--weights", soca, "--conf-thres", 2), "--conf-thres must be between 0 and 1, got 2"),
        ((photo, "--weights", soca, "--img", 1), "--imgsz must be at least 32, got 1"),
        ((photo, "--weights", soca, "--detections", -1), "--detections must be at least 0, got -1"),
        ((photo, "--weights", soca, "--html", tmp_path / "no" / "page.html"), "--html: "),
    ]:
        code, _, err = run(*arguments, *(() if "--html" in arguments else ("--html", page)))
        assert code == 1 and message in err and err.count("error") == 1, (arguments, err)
        assert not page.exists()


# --- a whole split ----------------------------------------------------------------------------------------------------


def test_others():
    for count in (2, 3, 50):
        for seed in range(3):
            chosen = others(count, seed)
            assert sorted(chosen) == list(range(count)) and not (chosen == np.arange(count)).any()


def write_split(tmp_path, train=1, val=5):
    return write_yaml(tmp_path / "boxes.yaml", write_boxes(tmp_path / "boxes", train, val))


@pytest.fixture
def lively_weights(tmp_path):
    """A detector with SOCA that finds boxes, and whose gate moves with the image."""
    model = lively(nc=2)
    torch.manual_seed(1)
    for p in model.model[3].conv_du.parameters():
        p.data.copy_(3 * torch.randn_like(p))
    checkpoint.save(tmp_path / "lively.pt", {"model": model, "ema": None})
    return tmp_path / "lively.pt"


def test_a_split(tmp_path, run, lively_weights):
    """The first line is what val.py measures; the other ones are the means of passes by hand, image by image."""
    data = write_split(tmp_path)
    page = tmp_path / "page.html"
    words = ("--data", data, "--weights", lively_weights, "--img", 64, "--workers", 0, "--device", "cpu")
    code, out, err = run(*words, "--html", page)
    assert code == 0, err
    found = {words[0]: words[1:] for line in out.splitlines() if (words := re.split("  +", line.strip())) and words[1:]}
    expected = val.run(data, lively_weights, 32, 64, device="cpu", workers=0, plots=False, project=tmp_path)[0]
    assert list(map(float, found["as they are"])) == pytest.approx(expected[2:4], abs=1e-4)
    assert {"their means over the split", "of another image", "none"} < set(found)
    assert float(found["none"][2]) == pytest.approx(float(found["none"][1]) - float(found["as they are"][1]), abs=2e-4)
    spread = re.search(r"3-SOCA: gate [01]\.\d+ to [01]\.\d+; standard deviation over .* (\d\.\d{4}) at most", out)
    assert float(spread[1]) > 0
    assert "5 images" in page.read_text(encoding="utf-8")


def test_constant_gates_lose_nothing_without_the_image():
    """A pass that returns the gates' differences shows which are put in: their own, means, exchanged, ones."""
    model = lively(nc=2)
    images = torch.rand(4, 3, 64, 64)
    block = next(iter(gated_blocks(model).values()))
    torch.nn.init.zeros_(block.conv_du[2].weight)  # the gate is that of the bias, for every image

    def reached(gates) -> np.ndarray:
        with gates, torch.no_grad():
            return model(images)[0].double().mean((0, 1))[:2].numpy()

    rows = _measured(model, "a.pt", reached).rows
    assert [row.map50 for row in rows[1:3]] == pytest.approx([rows[0].map50] * 2, rel=1e-6)
    assert rows[3].map50 != pytest.approx(rows[0].map50, rel=1e-4)


def test_a_split_of_one_image(tmp_path, run, lively_weights):
    code, _, err = run("--data", write_split(tmp_path, 1, 1), "--weights", lively_weights, "--img", 64, "--workers", 0)
    assert code == 1 and "the split must have at least two images" in err


def test_the_axis_of_gates():
    """It ends at 1, at 0, and spans at least a hundredth, so that what differs by rounding looks alike."""
    low, high = _range([np.float32([0.9820, 0.9822])], gate=True)
    assert (low, high) == pytest.approx((0.9771, 0.9871))
    assert _range([np.float32([0.2, 1.0])], gate=True) == pytest.approx((0.16, 1))
    assert _range([np.float32([0.0, 0.9])], gate=True) == pytest.approx((0, 0.945))
    assert _range([np.float32([0.5, 1.5])], gate=True) == pytest.approx((0.45, 1.55))
    assert _range([np.float32([0.2, 1.0])]) == pytest.approx((0.16, 1.04))


def test_every_replacement_of_a_gate_has_words():
    assert tuple(attend.WITHOUT) == REPLACEMENTS


def test_classes_take_turns():
    assert classes_in_turn([2, 2, 0, 2, 0, 1]) == [0, 2, 5, 1, 4, 3]
    assert classes_in_turn([]) == []


def test_what_the_page_says_of_given_numbers():
    frame = np.full((32, 64, 3), 90, np.uint8)
    maps = np.zeros((3, 2, 4), np.float32)
    maps[0], maps[1], maps[2, 0, 1] = 3, 4, 12  # energies 72, 128, 144
    gate = np.float32([0.5, 0.25, 1.0])
    box = np.float32([4, 4, 20, 20, 0.75, 1])
    heat = np.float32([[0, 1], [0, 0]])
    zeros = np.float32([0.5, 0.5, 0.9])
    blocks = [
        Block(name="3-SE", maps=maps, gate=gate, heat=[(heat, None)], gate_of_zeros=zeros),
        Block(name="9-SE", maps=maps, gate=gate, heat=[(None, None)]),
    ]
    one = ModelView(
        title="a.pt", names=["cat", "dog"], frame=frame, shown=[0], blocks=blocks, without=box[None],
        detections=[ScoredDetection(box=box, stride=8, without=0.5)],
    )  # fmt: skip
    text = as_html([one], "x.jpg", "its mean", 0.25)
    order = [text.index(f"channel {c}: {g}; {e} % of the map") for c, g, e in
             ((2, "1.000", 41.9), (0, "0.500", 20.9), (1, "0.250", 37.2))]  # fmt: skip
    assert order == sorted(order)
    assert "<span>1.000</span>" in text and "<span>1.0" not in text.replace("<span>1.000", "")  # the gates' axis
    assert "<td>1<td>dog<td>0.750<td>0.500<td>8" in text
    assert (
        "1, dog: 0.750 with the gate</figcaption>" in text
        and "1, dog: 0.500 without the gate; no feature here supports it" in text
    )
    assert "This block does not affect detection 1 (stride 8)" in text
    assert as_text(one).splitlines() == [
        "a.pt, 64 x 32 px: detections: 1 with the gate, 1 without",
        "  3-SE: 3 channels on a map of 4 x 2; gate 0.250 to 1.000, mean 0.583, standard deviation 0.3118; "
        "the image changes it by up to 0.2500",
        "  9-SE: 3 channels on a map of 4 x 2; gate 0.250 to 1.000, mean 0.583, standard deviation 0.3118",
    ]
