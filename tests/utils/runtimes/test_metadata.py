"""What files of others state about themselves is read, and checked before it is used."""

import json

import pytest

from utils.runtimes.metadata import NAMES, TEXT_LENGTH, Metadata, assumed_metadata

META = Metadata(
    names=("red", "weiß"), stride=32, imgsz=(64, 96), batch=2, nms=True, half=True, conf_thres=0.25, iou_thres=0.5
)


def test_metadata_survives_both_stores():
    assert Metadata.from_texts(META.as_texts(), "x") == META
    assert Metadata.from_json(META.as_json(shape=[1]), "x") == META
    assert Metadata.from_texts({"names": '["a"]', "other": "{"}, "x") == Metadata(names=("a",))
    assert Metadata.from_texts({"author": "me"}, "x") is None and Metadata.from_json("", "x") is None


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"names": []}, "names"),
        ({"names": [1]}, "names"),
        ({"names": "ab"}, "names"),
        ({"names": ["a"] * (NAMES + 1)}, "1 to 10000 class names of at most 200 characters, found"),
        ({"names": ["a" * 201]}, "names"),
        ({"names": {"0": "a", "10000": "b"}}, "names"),
        ({"names": {"-1": "a"}}, "names"),
        ({"names": {"a": "b"}}, "names"),
        ({"names": ["a"], "stride": 1025}, "stride"),
        ({"names": ["a"], "stride": 10**400}, "stride"),
        ({"names": ["a"], "stride": float("nan")}, "stride"),
        ({"names": ["a"], "stride": True}, "stride"),
        ({"names": ["a"], "imgsz": [64, 65_537]}, "imgsz"),
        ({"names": ["a"], "imgsz": [64, 0.5]}, "imgsz"),
        ({"names": ["a"], "nms": 1}, "nms in its metadata must be true or false, found 1"),
        ({"names": ["a"], "conf_thres": float("inf")}, "conf_thres in its metadata must be a number from 0 to 1"),
        ({"names": ["a"], "iou_thres": "0.5"}, "iou_thres"),
        ({"names": ["a"], "stride": 0}, "stride in its metadata must be a whole number from 1 to 1024, found 0"),
        ({"names": ["a"], "batch": "2"}, "batch"),
        ({"names": ["a"], "imgsz": [64]}, "imgsz in its metadata must be height and width"),
        ({"names": ["a"], "imgsz": 64}, "imgsz"),
    ],
)
def test_metadata_that_makes_no_sense(entries, says):
    with pytest.raises(ValueError, match=f"x.onnx: .*{says}"):
        Metadata.from_json(json.dumps(entries), "x.onnx")


def test_metadata_that_is_no_json():
    with pytest.raises(ValueError, match="x: its metadata is not JSON"):
        Metadata.from_json("{", "x")
    with pytest.raises(ValueError, match="x: its metadata is not JSON"):
        Metadata.from_texts({"names": "["}, "x")


def test_later_releases_number_their_names():
    assert Metadata.from_json('{"names": {"0": "a", "1": "b"}}', "x").names == ("a", "b")


def test_what_a_file_without_metadata_tells():
    known = assumed_metadata([1, 3, 320, 640], 7)
    assert (known.names, known.imgsz, known.batch, known.stride) == (("class0", "class1"), (320, 640), 1, 64)
    free = assumed_metadata(["b", 3, "h", "w"], "n")
    assert free.dynamic and len(free.names) == 1000


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "(" * 100_000,
        "-" * 100_000 + "1",
        "{" * 9 + "}" * 9,
        "9" * 5000,
        "__import__('os').getcwd()",
        "{0: 'a'",
        "{0: ['a']}[0]",
        "\0",
        b"\xff",
        "[" + " " * TEXT_LENGTH + "]",
        "{[]: 1}",
    ],
)
def test_text_that_is_neither_json_nor_python(text):
    with pytest.raises(ValueError, match=r"^x: its metadata (is not JSON|may have)") as refused:
        Metadata.from_json(text, "x")
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("{0: 'a', 1: 'b'}", ("a", "b")),
        ("['a', 'b']", ("a", "b")),
        ("{1: \"it's\", 0: '[{('}", ("[{(", "it's")),
        ("{0: 'a', 2: 'c'}", ("a", "1", "c")),
    ],
)
def test_names_as_python_text(names, expected):
    """ONNX files of v6.2 and later; their image size is that of the input."""
    found = Metadata.from_texts({"stride": "32", "names": names}, "x", (1, 3, 320, 640))
    assert found == Metadata(names=expected, stride=32, imgsz=(320, 640))
    assert Metadata.from_texts({"names": names}, "x", ("batch", 3, "height", "width")).dynamic


def test_torchscript_of_v61_states_its_shape():
    found = Metadata.from_json('{"shape": [2, 3, 64, 96], "stride": 32, "names": ["a"]}', "x")
    assert found == Metadata(names=("a",), stride=32, imgsz=(64, 96), batch=2)
    huge = Metadata.from_json(json.dumps({"shape": [1, 3, 10**30, 64], "names": ["a"]}), "x")
    assert huge.dynamic and huge.imgsz == (640, 640)


def test_metadata_without_names():
    assert Metadata.from_json('{"stride": 16}', "x") == Metadata(names=(), stride=16)
