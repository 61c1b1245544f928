"""What one process of `test_training_distributed.py` does, which starts two of them."""

import sys

import torch

import train
from engine import setup, training
from models.yolo import Model
from utils import cli, dist
from utils.files import ROOT
from utils.training.loss import ComputeLoss

HYP = {"box": 0.05, "cls": 0.5, "cls_pw": 1.0, "obj": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0}
# image, class, x, y, w, h: the first two images have seven boxes, the others one
TARGETS = torch.tensor(
    [
        [0, 0, 0.3, 0.3, 0.2, 0.3], [0, 1, 0.7, 0.6, 0.3, 0.2], [0, 2, 0.5, 0.5, 0.8, 0.7], [0, 1, 0.2, 0.8, 0.1, 0.1],
        [1, 2, 0.4, 0.4, 0.3, 0.3], [1, 0, 0.6, 0.7, 0.2, 0.2], [1, 0, 0.8, 0.2, 0.2, 0.4],
        [3, 1, 0.5, 0.4, 0.4, 0.4],
    ]
)  # fmt: skip


def gradients(images: torch.Tensor, targets: torch.Tensor, group: dist.Group | None) -> dict[str, torch.Tensor]:
    """The gradients of SOCA-n in double precision, with frozen batch norm, for a batch or this process's part of it."""
    torch.manual_seed(0)
    model = Model(ROOT / "models/SOCA-n.yaml", nc=3).double()
    opt = train.parse_opt(known=True)
    network = setup.wrap(model, opt, group)
    network.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    loss = ComputeLoss(model.model[-1], HYP, average=group.average if group else None)
    total, _ = loss(network(images), targets)
    (total * (group.world_size if group else 1)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    return images, TARGETS.double()


def share(images: torch.Tensor, targets: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images 2 rank and 2 rank + 1, with their boxes."""
    mine = targets[(targets[:, 0] // 2) == rank].clone()
    mine[:, 0] -= 2 * rank
    return images[2 * rank : 2 * rank + 2], mine


def draw_nothing() -> None:
    """Leaves out the figures, which take longer than such a small training."""
    setup.plot_labels = lambda *_, **__: None
    training.plot_batch = training.plot_results = training.write_figures = training.write_page = lambda *_, **__: None
    training.MosaicWriter = lambda *_: lambda *_, **__: None


def main() -> None:
    task, *arguments = sys.argv[1:]
    if task == "gradients":
        group = dist.Group("gloo")
        found = gradients(*share(*batch(), group.rank), group)
        torch.save(found, f"{arguments[0]}/{group.rank}.pt")
        group.close()
        return
    if task == "fails" and dist.rank() == 1:
        real, calls = training.step, []

        def step(run, iteration):
            calls.append(iteration)
            if len(calls) == 3:
                raise ValueError("the third step of process 1 went wrong")
            real(run, iteration)

        training.step = step
    if task == "stops":
        falling = iter([0.3, 0.2, 0.1, 0.1, 0.1, 0.1])
        training.fitness = lambda results: [next(falling)]
    draw_nothing()
    sys.argv[1:] = arguments
    cli.run(train.main, train.parse_opt, "train")


if __name__ == "__main__":
    main()
