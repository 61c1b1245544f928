"""The whole validation against release 6.1: official nano weights on 128 COCO photographs, class by class."""

import pytest

from models.backend import Backend
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions
from utils.evaluation.evaluator import EvaluationSettings, evaluate


def measure(shared, augment: bool):
    data = load_dataset_yaml(shared / "datasets/coco-val128/coco-val128.yaml", ("val",))
    model = Backend(shared / "weights/yolov5n.pt").eval()
    loader, _ = create_dataloader(
        data["val"],
        LoaderOptions(image_size=640, batch_size=8, stride=model.stride, pad=0.5, rect=True, workers=2, nc=data["nc"]),
    )
    return evaluate(model, loader, data["names"], model.device, settings=EvaluationSettings(augment=augment))


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augment"])
def test_precision_recall_and_map_of_every_class(shared, parity, augment):
    recorded = parity("val")["augment" if augment else "plain"]
    result = measure(shared, augment)
    m = result.metrics
    rows = {"all": (int(result.labels_per_class.sum()), *m.means())}
    for c, p, r, ap50, ap in zip(m.classes, m.p, m.r, m.ap50, m.ap.mean(1)):
        rows[result.names[c]] = (int(result.labels_per_class[c]), p, r, ap50, ap)
    assert rows.keys() == recorded.keys()
    for name, numbers in recorded.items():
        reference = tuple(numbers[k] for k in ("labels", "P", "R", "mAP50", "mAP50_95"))
        assert rows[name] == pytest.approx(reference, abs=1e-3), name
