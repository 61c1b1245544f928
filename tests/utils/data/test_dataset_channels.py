"""Grey images and images of many channels go the same way as colour: each channel as if it were alone."""

import cv2
import numpy as np
import pytest
import torch

from models.yolo import Model
from utils.data.augmentations import adjust_hsv, warp_image
from utils.data.images import by_fours, read_image
from utils.data.letterbox import letterbox
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions
from utils.evaluation.plots import plot_batch

CHANNELS = 6


def near(a, b):
    """OpenCV 5 warps one, three and four channels exactly, two with places rounded to 1/32 pixel."""
    difference = np.abs(np.asarray(a, int) - np.asarray(b, int))
    return difference.max() <= 12 and difference.mean() < 1


TRAINING = {"image_size": 64, "batch_size": 4, "stride": 32, "augment": True, "workers": 0, "rect": False}


@pytest.fixture
def pages(noise_image):
    """Six images, each of six grey pages."""
    return [np.dstack([noise_image(48 + 8 * (i % 3), 64, seed=9 * i + k)[..., 0] for k in range(6)]) for i in range(6)]


@pytest.fixture
def sets(tmp_path, pages, write_image):
    """Entries of the set as TIFF files of six pages, and of six sets of grey images, one for each page."""
    polygon = ".2 .2 .8 .3 .7 .8 .3 .7"
    for place in range(CHANNELS + 1):
        for i, image in enumerate(pages):
            folder = tmp_path / str(place)
            if place < CHANNELS:
                write_image(folder / "images" / f"{i}.png", image[..., place])
            else:
                (folder / "images").mkdir(parents=True, exist_ok=True)
                assert cv2.imwritemulti(str(folder / "images" / f"{i}.tif"), list(np.moveaxis(image, 2, 0)))
            (folder / "labels").mkdir(exist_ok=True)
            (folder / "labels" / f"{i}.txt").write_text(f"0 {polygon}\n1 .1 .1 .4 .1 .3 .4\n")
    return [str(tmp_path / str(place) / "images") for place in range(CHANNELS)], str(tmp_path / "6" / "images")


@pytest.fixture
def batches(hyp):
    """`batches(entry, channels, **options)`; `options` of augmentation change those of `hyp`."""

    def load(entry, channels, hyp=hyp, **options):
        return list(create_dataloader(entry, LoaderOptions(channels=channels, hyp=hyp, **{**TRAINING, **options}))[0])

    return load


@pytest.mark.parametrize("perspective, options", [(0, {}), (0.001, {}), (0, {"augment": False, "rect": True})])
def test_each_channel_is_what_it_would_be_alone(sets, hyp, batches, perspective, options):
    greys, tiffs = sets
    hyp["perspective"] = perspective
    many = batches(tiffs, CHANNELS, **options)
    for k, entry in enumerate(greys):
        for (grey, targets, *_), (image, same_targets, *_) in zip(batches(entry, 1, **options), many, strict=True):
            assert grey.shape[1] == 1 and image.shape[1] == CHANNELS and image.dtype == torch.uint8
            assert near(grey[:, 0], image[:, k]) and torch.equal(targets, same_targets)


def test_grey_of_a_grey_image_is_one_channel_of_its_colour(sets, hyp, batches):
    """Where no colour is changed, a grey file gives equal channels in colour, and one of them in grey."""
    plain = {**hyp, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
    for grey, colour in zip(batches(sets[0][0], 1, hyp=plain), batches(sets[0][0], 3, hyp=plain), strict=True):
        assert torch.equal(grey[0].expand(-1, 3, -1, -1), colour[0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 9])
def test_operations_keep_the_channel_axis(noise_image, channels):
    image = np.dstack([noise_image(40, 56, seed=k) for k in range(3)])[..., :channels]
    matrix = np.array([[0.9, 0.2, 3], [-0.1, 1.1, 2], [0, 0, 1]])
    for operation in (lambda part: letterbox(part, 64)[0], lambda part: warp_image(part, matrix, (50, 70))):
        result = operation(image)
        assert result.shape[2] == channels
        for c in range(channels):  # OpenCV alone on one channel
            assert near(result[..., c], operation(image[..., c : c + 1])[..., 0])
    assert by_fours(lambda part: part[:5], image).shape == (5, 56, channels)
    assert adjust_hsv(image, np.array([1, 1, 0.5])).shape == image.shape


def test_files_of_every_kind(tmp_path, pages):
    image = pages[0]
    cv2.imwritemulti(str(tmp_path / "pages.tif"), list(np.moveaxis(image.astype(np.uint16) * 257, 2, 0)))
    cv2.imwrite(str(tmp_path / "four.png"), image[..., :4])
    cv2.imwrite(str(tmp_path / "colour.png"), image[..., :3])
    assert (read_image(tmp_path / "pages.tif", 6) == image).all()  # 16 bits become 8
    assert (read_image(tmp_path / "four.png", 4) == image[..., :4]).all()  # transparency is a channel here
    assert (read_image(tmp_path / "colour.png") == image[..., :3]).all()
    grey = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY)
    assert near(read_image(tmp_path / "colour.png", 1)[..., 0], grey)


def test_what_does_not_fit_is_refused(tmp_path, pages):
    def refused(match, channels=6, name="x.tif"):
        with pytest.raises(ValueError, match=match):
            read_image(tmp_path / name, channels)

    planes = list(np.moveaxis(pages[0], 2, 0))
    cv2.imwritemulti(str(tmp_path / "x.tif"), planes[:5])
    refused("x.tif: image has 5 channels, but the data set YAML or the weights say channels: 6")
    cv2.imwritemulti(str(tmp_path / "x.tif"), [planes[0], planes[1][:20]])
    refused("x.tif: pages differ in size", 2)
    cv2.imwritemulti(str(tmp_path / "x.tif"), [plane.astype(np.float32) for plane in planes])
    refused("x.tif: pixels must have 8 or 16 bits, got float32")
    (tmp_path / "x.tif").write_bytes(b"no image")
    refused("x.tif: image cannot be decoded")
    (tmp_path / "x.tif").write_bytes(b"")
    refused("x.tif: image cannot be decoded")
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pages[0][..., :4]).save(tmp_path / "turned.png", exif=exif)
    refused("turned.png: an image of 4 channels must be stored upright", 4, "turned.png")


@pytest.mark.parametrize("channels", [1, 6])
def test_a_model_of_as_many_channels_trains_on_them(sets, batches, channels, tmp_path):
    images, targets, paths, _ = batches(sets[1] if channels == 6 else sets[0][2], channels)[0]
    torch.manual_seed(0)
    model = Model("yolov5n.yaml", ch=channels, nc=2).train()
    raw = model(images.float() / 255)
    sum(level.square().mean() for level in raw).backward()
    assert model.model[0].conv.weight.grad.shape[1] == channels
    assert (model.model[0].conv.weight.grad.flatten(2).abs().amax((0, 2)) > 0).all()  # every channel counts
    plot_batch(images, targets, tmp_path / "batch.jpg", ["a", "b"], paths)
    drawn = cv2.imread(str(tmp_path / "batch.jpg"))
    assert drawn is not None and drawn.mean() > 20
