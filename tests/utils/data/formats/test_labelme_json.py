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
    (tmp_path / "a.json").write_text(json.dumps(content))
    image = load(tmp_path).images[0]
    assert image.name == "a.png" and [item.box for item in image.objects] == [(45, 20, 55, 30), (10, 5, 30, 29)]
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
