"""v6.1's names for drawing: what they draw on, return and write."""

import inspect

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_world import boxes_image

from utils import plots
from utils.plots import (
    Annotator,
    colors,
    feature_visualization,
    output_to_target,
    plot_images,
    plot_labels,
    plot_one_box,
    plot_results,
    save_one_box,
)

BLUE = (255, 0, 0)


def canvas() -> np.ndarray:
    return np.zeros((80, 120, 3), np.uint8)


def test_arguments_have_the_names_and_order_of_v61():
    for name, wanted in {
        "Annotator": "im line_width font_size font pil example",
        "save_one_box": "xyxy im file gain pad square BGR save",
        "plot_one_box": "x img color label line_thickness",
        "plot_images": "images targets paths fname names max_size max_subplots",
    }.items():
        assert list(inspect.signature(getattr(plots, name)).parameters) == wanted.split()


def test_the_annotator_draws_on_the_image_itself():
    image = canvas()
    annotator = Annotator(image, line_width=2, example=str(["car", "bus"]))
    annotator.box_label(torch.tensor([20.0, 30, 60, 70]), "car 0.50", color=BLUE)
    assert annotator.result() is image is annotator.im and (annotator.lw, annotator.pil) == (2, False)
    assert tuple(image[70, 40]) == BLUE and image[20:30, 20:60].any() and not image[75:].any()
    annotator.rectangle([70, 10, 90, 20], fill=(0, 255, 0), outline=(0, 0, 255), width=1)
    assert tuple(image[15, 80]) == (0, 255, 0) and tuple(image[10, 80]) == (0, 0, 255)
    annotator.text((70, 40), "x", txt_color=(9, 200, 9))
    assert image[40:70, 70:, 1].max() > 100
    assert annotator.line_width == 2


@pytest.mark.parametrize("image", [canvas(), Image.fromarray(canvas())])
def test_the_annotator_draws_with_pillow_on_a_copy(image):
    annotator = Annotator(image, pil=True, font_size=9, example="名")
    annotator.box_label([20, 30, 60, 70], "名 0.5", color=BLUE, txt_color=(255, 255, 255))
    annotator.rectangle([70, 10, 90, 20], fill=(0, 255, 0), outline=None)
    drawn = annotator.result()
    assert annotator.pil and tuple(drawn[70, 40]) == BLUE and tuple(drawn[15, 80]) == (0, 255, 0)
    assert not np.asarray(image).any() and isinstance(annotator.im, Image.Image)


def test_an_image_that_must_not_be_changed_is_copied():
    image = canvas()
    image.flags.writeable = False
    annotator = Annotator(image)
    annotator.box_label([20, 30, 60, 70])
    assert annotator.result().any() and not image.any()


def test_one_box_on_the_image_itself():
    image = canvas()
    plot_one_box([20, 30, 60, 70], image, color=[255, 0, 0], label="名", line_thickness=1)
    assert tuple(image[70, 40]) == BLUE
    plot_one_box(torch.tensor([20, 30, 60, 70]), image)
    assert tuple(image[70, 40]) == colors(0, bgr=True)


def test_crops_are_cut_enlarged_and_numbered(tmp_path):
    image = boxes_image()
    crop = save_one_box(torch.tensor([50.0, 20, 90, 52]), image, tmp_path / "c/a.png", gain=1, pad=0, BGR=True)
    assert (crop == image[20:52, 50:90]).all()
    assert (cv2.imread(str(tmp_path / "c/a.jpg")) > 200).mean() > 0.9
    turned = save_one_box([[50, 20, 90, 52]], image[..., ::-1], tmp_path / "c/a.png", gain=1, pad=0)
    assert (turned == crop).all() and (tmp_path / "c/a2.jpg").is_file()
    # 40 wide and 32 high: a square of 40, times 1.5, plus 4; the image ends below
    square = save_one_box((50, 20, 90, 52), image, gain=1.5, pad=4, square=True, BGR=True, save=False)
    assert square.shape == (64 - 4, 96 - 38, 3)


def test_detections_become_targets_in_pixels():
    rows = output_to_target([torch.tensor([[10.0, 20, 30, 60, 0.5, 2]]), torch.zeros(0, 6)])
    np.testing.assert_allclose(rows, [[0, 2, 20, 40, 20, 40, 0.5]])


def test_mosaics_take_pixels_or_shares(tmp_path):
    images = torch.zeros(1, 3, 64, 96)
    pixels = np.array([[0, 1, 48, 32, 40, 20]], np.float32)
    shares = pixels / [1, 1, 96, 64, 96, 64]
    plot_images(images, pixels, ["a.jpg"], tmp_path / "pixels.png", ["x", "y"])
    plot_images(images, torch.from_numpy(shares), ["a.jpg"], tmp_path / "shares.png", ["x", "y"])
    drawn = cv2.imread(str(tmp_path / "pixels.png"))
    assert drawn[20:].any() and (drawn == cv2.imread(str(tmp_path / "shares.png"))).all()


def test_charts(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results\*\.csv"):
        plot_results(tmp_path / "results.csv")
    header = ["epoch", *(f"{k}/{i}" for k in ("train", "metrics", "val") for i in range(4))]
    (tmp_path / "results.csv").write_text("\n".join([",".join(header), ",".join("0" * 13), ",".join("1" * 13)]))
    plot_results(dir=tmp_path)
    plot_labels(np.array([[0, 0.5, 0.5, 0.1, 0.2]]), ["x"], tmp_path)
    feature_visualization(torch.rand(1, 4, 8, 8), "models.common.Conv", 3, save_dir=tmp_path)
    assert {"results.png", "labels.jpg", "stage3_Conv_features.png", "stage3_Conv_features.npy"} <= {
        p.name for p in tmp_path.iterdir()
    }
