"""The whole validation against release 6.1: official nano weights on 128 COCO photographs, class by class."""

from pathlib import Path

import pytest

from models.backend import Backend
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions
from utils.evaluation.evaluator import EvaluationSettings, evaluate
from utils.files import ROOT, read_yaml


def measure(weights: Path, photographs: Path, augment: bool):
    names = read_yaml(ROOT / "data/coco.yaml")["names"]
    model = Backend(weights).eval()
    loader, _ = create_dataloader(
        str(photographs / "images/val"),
        LoaderOptions(image_size=640, batch_size=8, stride=model.stride, pad=0.5, rect=True, workers=2, nc=len(names)),
    )
    return evaluate(model, loader, names, model.device, settings=EvaluationSettings(augment=augment))


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augment"])
def test_precision_recall_and_map_of_every_class(official_weights, coco_val128, parity, augment):
    recorded = parity("val")["augment" if augment else "plain"]
    result = measure(official_weights, coco_val128, augment)
    m = result.metrics
    rows = {"all": (int(result.labels_per_class.sum()), *m.means())}
    for c, p, r, ap50, ap in zip(m.classes, m.p, m.r, m.ap50, m.ap.mean(1)):
        rows[result.names[c]] = (int(result.labels_per_class[c]), p, r, ap50, ap)
    assert rows.keys() == recorded.keys()
    for name, numbers in recorded.items():
        reference = tuple(numbers[k] for k in ("labels", "P", "R", "mAP50", "mAP50_95"))
        assert rows[name] == pytest.approx(reference, abs=1e-3), name
