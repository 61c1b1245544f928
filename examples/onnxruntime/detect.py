"""Detects objects with an ONNX file that export.py wrote; needs numpy, opencv-python and onnxruntime, but not torch.

python detect.py yolov5n.onnx photo.jpg          prints a line per box: class, confidence, x1, y1, x2, y2 in pixels
python detect.py yolov5n.onnx photo.jpg out.jpg  also draws the boxes
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

CONFIDENCE, IOU, MAX_DETECTIONS = 0.25, 0.45, 1000  # the defaults of detect.py
GREY = 114  # around an image that does not fill its frame
SMALL = 640  # pixels: an image whose longer side is less is enlarged to it before boxes are drawn
# Okabe and Ito's colours, which the colour-blind can tell apart, as BGR; text on the blue one is white
BLUE = (178, 114, 0)
COLOURS = ((0, 94, 213), (233, 180, 86), (115, 158, 0), (66, 228, 240), BLUE, (0, 159, 230), (167, 121, 204))


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float, tuple[float, float]]:
    """Returns a BGR image (h, w, 3) in a frame (height, width), its gain, and its padding (left, top), not rounded."""
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
    """Returns the rows of corners (n, 4) that are kept, in descending order of their scores (n,)."""
    order, kept = scores.argsort(kind="stable")[::-1], []
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    while len(order) and len(kept) < MAX_DETECTIONS:
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(corners[best, :2], corners[order, :2])
        high = np.minimum(corners[best, 2:], corners[order, 2:])
        shared = (high - low).clip(0).prod(1)
        order = order[shared / (areas[best] + areas[order] - shared) <= IOU]
    return kept


def decode(rows: np.ndarray, gain: float, padding: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Turns rows (N, 5 + nc) of x, y, w, h, objectness, class scores into boxes (n, 6) in pixels of the image.

    A box is x1, y1, x2, y2, confidence, class. gain, padding: as `letterbox` returns them. shape: (h, w) of the image.
    """
    rows = rows[rows[:, 4] > CONFIDENCE]
    scores = rows[:, 5:] * rows[:, 4:5]
    confidence, label = scores.max(1), scores.argmax(1)
    valid = (confidence > CONFIDENCE) & (rows[:, 2:4] >= 2).all(1)
    rows, confidence, label = rows[valid], confidence[valid], label[valid]
    corners = np.concatenate((rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2), 1)
    # each class is moved to a separate region, so that classes do not suppress each other
    kept = suppress(corners + label[:, None] * (np.ptp(corners) + 1 if len(corners) else 0), confidence)
    corners = (corners[kept] - (padding * 2)) / gain
    corners = corners.clip(0, (shape[1], shape[0]) * 2)
    return np.concatenate((corners, confidence[kept, None], label[kept, None]), 1)


def detect(session: onnxruntime.InferenceSession, image: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Returns the boxes (n, 6) in a BGR image, as `decode` returns them, and the names of the classes."""
    entries = session.get_modelmeta().custom_metadata_map
    if "names" not in entries:
        raise SystemExit("the file has no metadata; export it with this project's export.py")
    names, size = json.loads(entries["names"]), json.loads(entries["imgsz"])
    if json.loads(entries["nms"]) or json.loads(entries["half"]):
        raise SystemExit("this example runs files exported without --nms and --half; export it again")
    frame, gain, padding = letterbox(image, size)
    pixels = np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1))[None].astype(np.float32) / 255
    rows = session.run(None, {session.get_inputs()[0].name: pixels})[0][0]
    return decode(rows, gain, padding, image.shape[:2]), names


def draw(image: np.ndarray, boxes: np.ndarray, names: list[str]) -> np.ndarray:
    """Returns a BGR image, enlarged where it is small, with the boxes (n, 6) and their captions on strips.

    A caption that would hide one of a more confident box is left out.
    """
    gain = max(SMALL / max(image.shape[:2]), 1)
    image = cv2.resize(image, None, fx=gain, fy=gain, interpolation=cv2.INTER_LINEAR)
    height, width = image.shape[:2]
    line = max(round((height + width) / 600), 1)
    scale = max(line / 4, 0.4)  # of the font; below 0.4 it cannot be read
    rows = [(np.round(box[:4] * gain).astype(int).tolist(), box[4], int(box[5])) for box in boxes]
    for corners, _, label in reversed(rows):  # the most confident on top
        cv2.rectangle(image, corners[:2], corners[2:], COLOURS[label % len(COLOURS)], line)
    placed = []
    for (x1, y1, _, _), confidence, label in rows:  # after all outlines, so that none crosses a text
        text, colour = f"{names[label]} {confidence:.2f}", COLOURS[label % len(COLOURS)]
        (w, h), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        w, h = w + 4, h + descent + 3
        x, y = max(min(x1, width - w), 0), y1 - h if y1 >= h else max(y1, 0)  # above the box, or inside
        if any(x < right and left < x + w and abs(y - top) < h for left, right, top in placed):
            continue
        placed.append((x, x + w, y))
        cv2.rectangle(image, (x, y), (x + w, y + h), colour, cv2.FILLED)
        ink = (255, 255, 255) if colour == BLUE else (0, 0, 0)
        cv2.putText(image, text, (x + 2, y + h - descent - 1), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    return image


def main(model: str, path: str, output: str | None = None) -> None:
    """Prints the boxes in the image at path, and writes it with boxes to output."""
    image = cv2.imread(path)
    if image is None:
        raise SystemExit(f"cannot read the image {path}")
    boxes, names = detect(onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]), image)
    for *corners, confidence, label in boxes.tolist():
        print(f"{names[int(label)]} {confidence:.4f} " + " ".join(f"{v:.2f}" for v in corners))
    if output and not cv2.imwrite(output, draw(image, boxes, names)):
        raise SystemExit(f"cannot write {output}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
