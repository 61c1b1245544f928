"""Find objects with an ONNX file that export.py wrote; needs numpy, opencv-python and onnxruntime, and no torch.

python detect.py yolov5n.onnx photo.jpg          prints a line per box: class, confidence, x1, y1, x2, y2 in pixels
python detect.py yolov5n.onnx photo.jpg out.jpg  and draws them
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

CONFIDENCE, OVERLAP, MOST = 0.25, 0.45, 1000  # as detect.py has them
GREY = 114  # around a picture that does not fill its frame


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float, tuple[float, float]]:
    """A BGR picture (h, w, 3) in a frame (height, width), its gain, and its padding (left, top), not rounded."""
    (h, w), (height, width) = image.shape[:2], size
    gain = min(height / h, width / w)
    inner = max(round(w * gain), 1), max(round(h * gain), 1)
    if inner != (w, h):
        image = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
    left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
    border = round(top - 0.1), round(top + 0.1), round(left - 0.1), round(left + 0.1)
    framed = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=(GREY,) * 3)
    return framed, gain, ((width - w * gain) / 2, (height - h * gain) / 2)


def suppress(corners: np.ndarray, scores: np.ndarray) -> list[int]:
    """Rows of corners (n, 4) that overlap no row before them, in descending order of their scores (n,)."""
    order, kept = scores.argsort(kind="stable")[::-1], []
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    while len(order) and len(kept) < MOST:
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(corners[best, :2], corners[order, :2])
        high = np.minimum(corners[best, 2:], corners[order, 2:])
        shared = (high - low).clip(0).prod(1)
        order = order[shared / (areas[best] + areas[order] - shared) <= OVERLAP]
    return kept


def decode(rows: np.ndarray, gain: float, padding: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Rows (N, 5 + nc): x, y, w, h, objectness, class scores -> boxes (n, 6) in pixels of a picture of (h, w).

    A box is x1, y1, x2, y2, confidence, class.
    """
    rows = rows[rows[:, 4] > CONFIDENCE]
    scores = rows[:, 5:] * rows[:, 4:5]
    confidence, label = scores.max(1), scores.argmax(1)
    sensible = (confidence > CONFIDENCE) & (rows[:, 2:4] >= 2).all(1)
    rows, confidence, label = rows[sensible], confidence[sensible], label[sensible]
    corners = np.concatenate((rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2), 1)
    # each class in a region of its own, so that classes do not suppress each other
    kept = suppress(corners + label[:, None] * (np.ptp(corners) + 1 if len(corners) else 0), confidence)
    corners = (corners[kept] - (padding * 2)) / gain
    corners = corners.clip(0, (shape[1], shape[0]) * 2)
    return np.concatenate((corners, confidence[kept, None], label[kept, None]), 1)


def find(session: onnxruntime.InferenceSession, image: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Boxes (n, 6) in a BGR picture, as `decode` gives them, and the names of the classes."""
    entries = session.get_modelmeta().custom_metadata_map
    if "names" not in entries:
        raise SystemExit("the file has no metadata; write it with this project's export.py")
    names, size = json.loads(entries["names"]), json.loads(entries["imgsz"])
    if json.loads(entries["nms"]) or json.loads(entries["half"]):
        raise SystemExit("this example decodes on its own, in float32: export without --nms and --half")
    frame, gain, padding = letterbox(image, size)
    pixels = np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1))[None].astype(np.float32) / 255
    rows = session.run(None, {session.get_inputs()[0].name: pixels})[0][0]
    return decode(rows, gain, padding, image.shape[:2]), names


def main(model: str, picture: str, drawn: str | None = None) -> None:
    """The command line."""
    image = cv2.imread(picture)
    if image is None:
        raise SystemExit(f"cannot read the picture {picture}")
    boxes, names = find(onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]), image)
    for *corners, confidence, label in boxes.tolist():
        print(f"{names[int(label)]} {confidence:.4f} " + " ".join(f"{v:.2f}" for v in corners))
        x1, y1, x2, y2 = (round(v) for v in corners)
        cv2.rectangle(image, (x1, y1), (x2, y2), (0, 94, 213), 2)
        cv2.putText(image, f"{names[int(label)]} {confidence:.2f}", (x1 + 3, y1 + 16), 0, 0.5, (0, 94, 213), 1)
    if drawn and not cv2.imwrite(drawn, image):
        raise SystemExit(f"cannot write {drawn}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
