"""The names of utils/datasets.py under the name that this file has since v6.2."""

from utils.datasets import (
    IMG_FORMATS,
    VID_FORMATS,
    LoadImages,
    LoadScreenshots,
    LoadStreams,
    LoadWebcam,
    create_dataloader,
    img2label_paths,
    letterbox,
)

__all__ = [
    "IMG_FORMATS",
    "VID_FORMATS",
    "LoadImages",
    "LoadScreenshots",
    "LoadStreams",
    "LoadWebcam",
    "create_dataloader",
    "img2label_paths",
    "letterbox",
]
