"""Measures non-maximum suppression: this project's, and the way that v6.1 is described to do it.

    python benchmarks/bench_nms.py                                              # random predictions
    python benchmarks/bench_nms.py --weights yolov5n.pt --data coco-val128.yaml --batches 16

Both alternate in one process on the same tensors, with one thread; medians of processor time are printed. README.md in
this folder keeps dated results.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import nms as ours
from utils.boxes import xywh_to_xyxy

SETTINGS = {"val": (0.001, 0.6, 300, True), "detect": (0.25, 0.45, 1000, False)}  # confidence, IoU, boxes, multi-label


def straightforward(
    decoded: torch.Tensor, conf_thres: float, iou_thres: float, max_det: int, multi_label: bool
) -> list[torch.Tensor]:
    """Suppresses in v6.1's steps, image by image, with classes 7680 pixels apart; it writes into its input."""
    candidates = decoded[..., 4] > conf_thres
    detections = [torch.zeros(0, 6)] * len(decoded)
    for i, rows in enumerate(decoded):
        rows[((rows[:, 2:4] < 2) | (rows[:, 2:4] > 7680)).any(1), 4] = 0
        rows = rows[candidates[i]]
        scores = rows[:, 5:] * rows[:, 4:5]
        corners = xywh_to_xyxy(rows[:, :4])
        if multi_label:
            row, label = (scores > conf_thres).nonzero().T
            boxes = torch.cat((corners[row], scores[row, label, None], label[:, None].float()), 1)
        else:
            confidence, label = scores.max(1, keepdim=True)
            boxes = torch.cat((corners, confidence, label.float()), 1)[confidence[:, 0] > conf_thres]
        if len(boxes) > 30000:
            boxes = boxes[boxes[:, 4].argsort(descending=True)[:30000]]
        kept = torch.ops.torchvision.nms(boxes[:, :4] + boxes[:, 5:] * 7680, boxes[:, 4], iou_thres)
        detections[i] = boxes[kept[:max_det]]
    return detections


def drawn(batch: int, objects: int = 12, classes: int = 80) -> torch.Tensor:
    """Returns random predictions like those of a trained detector at 640 pixels: most rows are far below any threshold,
    a few hundred are around each object, and their classes are uncertain.
    """
    generator = torch.Generator().manual_seed(0)
    decoded = torch.rand(batch, 25200, 5 + classes, generator=generator)
    decoded[..., :2] *= 640
    decoded[..., 2:4] = 10 + 200 * decoded[..., 2:4]
    decoded[..., 4] = 1e-4 * decoded[..., 4]
    decoded[..., 5:] **= 8
    centre = torch.rand(batch, objects, 2, generator=generator) * 640
    near = torch.randint(25200, (batch, objects, 60), generator=generator).flatten(1)
    for image, rows, centres in zip(decoded, near, centre):
        centres = centres.repeat_interleave(60, 0)
        image[rows, :2] = centres + torch.randn(len(rows), 2, generator=generator) * 6
        image[rows, 4] = torch.rand(len(rows), generator=generator) ** 3
    return decoded


@torch.inference_mode()
def predicted(weights: str, data: str, batches: int) -> list[torch.Tensor]:
    """Returns the predictions of a detector for the first batches of eight images of a val split."""
    from models.backend import Backend
    from utils.data.dataset_yaml import load_dataset_yaml
    from utils.data.loader import create_dataloader
    from utils.data.options import LoaderOptions

    model, entry = Backend(weights).eval(), load_dataset_yaml(data, ("val",))
    loader, _ = create_dataloader(
        entry["val"], LoaderOptions(image_size=640, batch_size=8, stride=model.stride, pad=0.5, rect=True, workers=0)
    )
    return [model(images.float() / 255)[0].clone() for images, *_ in (b for b, _ in zip(loader, range(batches)))]


def measure(forms: dict[str, Callable[[torch.Tensor], object]], batches: list[torch.Tensor], rounds: int) -> dict:
    """Returns the median milliseconds per image of each form over the rounds."""
    images = sum(map(len, batches))
    times = {name: [] for name in forms}
    for _ in range(rounds):
        for name, run in forms.items():
            start = time.process_time()
            for decoded in batches:
                run(decoded)
            times[name].append(1000 * (time.process_time() - start) / images)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.inference_mode()
def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description="Time non-maximum suppression against v6.1's way.")
    parser.add_argument("--weights", help=".pt file that predicts, with --data (default: random predictions)")
    parser.add_argument("--data", help="data set YAML")
    parser.add_argument(
        "--batches", type=int, default=2, help="number of batches of eight images (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each form (default: %(default)s)")
    opt = parser.parse_args()
    torch.set_num_threads(1)
    batches = predicted(opt.weights, opt.data, opt.batches) if opt.weights else [drawn(8) for _ in range(opt.batches)]

    print("| settings | images | candidates | ours, ms per image | v6.1's way | ratio | torchvision's kernel in ours |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, (conf, iou, max_det, several) in SETTINGS.items():
        inside, candidates = [0.0], [0]
        kernel = ours._nms

        def watched(corners: torch.Tensor, *rest, kernel=kernel, inside=inside, candidates=candidates) -> torch.Tensor:
            start = time.process_time()
            kept = kernel(corners, *rest)
            inside[0] += time.process_time() - start
            candidates[0] += len(corners)
            return kept

        def run(decoded: torch.Tensor, conf=conf, iou=iou, several=several, max_det=max_det) -> list[torch.Tensor]:
            return ours.non_max_suppression(decoded, conf, iou, multi_label=several, max_det=max_det)

        detections = [run(decoded) for decoded in batches]
        ours._nms = watched
        for decoded in batches:
            run(decoded)
        ours._nms = kernel
        forms = {"ours": run, "v6.1": lambda d, a=(conf, iou, max_det, several): straightforward(d, *a)}
        ms, images = measure(forms, batches, opt.rounds), sum(map(len, batches))
        expected = [straightforward(decoded, conf, iou, max_det, several) for decoded in batches]
        same = sum(
            len(a) == len(b) and torch.equal(a[:, 4:], b[:, 4:])
            for x, y in zip(detections, expected)
            for a, b in zip(x, y)
        )
        print(
            f"| {name} | {images} | {candidates[0] / images:.0f} | {ms['ours']:.2f} | {ms['v6.1']:.2f} | "
            f"{ms['v6.1'] / ms['ours']:.2f} | {1000 * inside[0] / images:.2f} |"
        )
        print(f"{same} of {images} images have the same boxes", file=sys.stderr)


if __name__ == "__main__":
    main()
