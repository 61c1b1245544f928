"""LabelMe JSON: the shapes that are objects, and the faults of the others."""

import json

import pytest

from utils.data.formats.labelme import load


def test_labelme_circle_and_other_shapes(tmp_path, capfd):
    shapes = [
        {"label": "cat", "shape_type": "circle", "points": [[50, 25], [53, 29]]},
        {"label": "cat", "shape_type": "line", "points": [[50, 25], [53, 29]]},
        {"label": "cat", "shape_type": "rectangle", "points": [[30, 29], [10, 5]]},  # drawn from the lower right
    ]
    content = {"imagePath": "..\\images\\x.png", "imageWidth": 100, "imageHeight": 50, "shapes": shapes}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.json").write_text(json.dumps(content))
    image = load(tmp_path).images[0]
    assert image.name == "labels/a.png" and [item.box for item in image.objects] == [(45, 20, 55, 30), (10, 5, 30, 29)]
    assert "a.json: shapes[1]: a shape of the type 'line' is not an object; left out" in capfd.readouterr().err


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"label": ""}, r"a\.json: shapes\[0\]: needs a label"),
        ({"label": "cat", "shape_type": ["line"]}, r"a\.json: shapes\[0\]: shape_type must be text, got \['line'\]"),
        ({"label": "cat", "points": [[1, 2], [3, 4]]}, r"a\.json: shapes\[0\]: points must be 3 or more pairs"),
        (
            {"label": "cat", "points": [[1, 2], [3, 4], [5, None]]},
            r"a\.json: shapes\[0\]: points must be 3 or more pairs",
        ),
        (3, r"a\.json: shapes\[0\]: must be an object \{\.\.\.\}, got 3"),
    ],
)
def test_labelme_faults_name_file_and_shape(tmp_path, shape, message):
    (tmp_path / "a.json").write_text(json.dumps({"imageWidth": 9, "imageHeight": 9, "shapes": [shape]}))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_an_image_is_read_only_from_the_folders_that_were_named(tmp_path, png_file):
    """LabelMe keeps its files where it is told to: `../images/x.png` is usual, and may not lead to any file."""
    for folder in ("set/labels", "set/images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "set/images/x.png").write_bytes(png_file(1))
    (tmp_path / "private.png").write_bytes(png_file(1))

    def read(folder, name, *image_folders):
        (tmp_path / "set/labels/a.json").write_text(json.dumps({"imagePath": name, "shapes": []}))
        return load(tmp_path / folder, [tmp_path / f for f in image_folders]).images[0]

    for name in ("..\\images\\x.png", f"{tmp_path}/set/images/x.png"):
        image = read("set", name)
        assert image.source == tmp_path / "set/images/x.png" and (image.width, image.height) == (64, 48)
    assert read("set/labels", "../images/x.png", "set/images").source == tmp_path / "set/images/x.png"
    for folder, name in (
        ("set", "../../private.png"),
        ("set", f"{tmp_path}/private.png"),
        ("set/labels", "../images/x.png"),
    ):
        with pytest.raises(ValueError, match=r"a\.json: imagePath: a file name must lie below .*/set.*, got "):
            read(folder, name)
    (tmp_path / "set/labels/a.png").write_bytes(png_file(2))  # beside its JSON: the name there is not needed
    assert read("set", "/home/somebody/a.png").source == tmp_path / "set/labels/a.png"
