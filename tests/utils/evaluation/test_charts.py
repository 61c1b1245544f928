"""Charts say what the numbers say: the best epoch, the mean in black, every count; nothing is cut off or offset."""

import cv2
import numpy as np
import pytest

from utils.evaluation import charts
from utils.evaluation.metrics import ConfusionMatrix, ap_per_class, fitness
from utils.evaluation.plots import figure_bytes
from utils.training.records import COLUMNS


def size(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape


def random_metrics(rng, nc):
    n = 40 * nc
    tp = rng.random((n, 1)) > np.linspace(0.3, 0.9, 10)
    return ap_per_class(tp, rng.random(n), rng.integers(0, nc, n), rng.integers(0, nc, n))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are written, by the name of their file, instead of files."""
    kept = {}
    monkeypatch.setattr(charts, "save_figure", lambda figure, path, dpi: kept.update({path.name: figure}))
    return kept


# --- curves over epochs -----------------------------------------------------------------------------------------------

HEADER = ", ".join(COLUMNS) + "\n"


def write_results(path, epochs, columns=14):
    rows = [
        ", ".join(f"{value:.5g}" for value in [epoch, *np.random.default_rng(epoch).random(columns - 1)])
        for epoch in epochs
    ]
    path.write_text(", ".join(COLUMNS[:columns]) + "\n" + "\n".join(rows) + "\n")


def test_results_chart(tmp_path):
    write_results(tmp_path / "results.csv", range(5))
    write_results(tmp_path / "results_other.csv", [0])
    assert charts.plot_results(tmp_path / "results.csv") == tmp_path / "results.png"
    assert size(tmp_path / "results.png") == (1260, 2880, 3)


def test_every_quantity_has_a_panel_and_a_ring_at_the_best_epoch(tmp_path):
    write_results(tmp_path / "results.csv", range(7))
    table = charts.read_results(tmp_path / "results.csv")
    best = max(range(7), key=lambda row: 0.1 * table.values[row, 6] + 0.9 * table.values[row, 7])
    assert table.best == best
    panels = charts.draw_results({"a run": table}).axes
    drawn = [line.get_ydata() for ax in panels for line in ax.lines if len(line.get_xdata()) == 7]
    for column in table.values[:, 1:].T:
        assert any(np.array_equal(column, curve) for curve in drawn)
    for ax in panels:
        curves = [line for line in ax.lines if len(line.get_xdata()) == 7]
        rings = [line for line in ax.lines if line.get_marker() == "o"]
        assert len(rings) == len(curves) >= 1
        for ring, curve in zip(rings, curves):
            assert (*ring.get_xdata(), *ring.get_ydata()) == (best, curve.get_ydata()[best])
    assert [text.get_text() for text in panels[5].get_legend().get_texts()] == [
        "lr0",
        "lr1",
        "lr2",
        f"best epoch {best}",
    ]


def test_the_best_epoch_is_the_last_of_equals_as_in_training():
    values = np.zeros((4, 14))
    values[:, 0], values[1:3, 7] = range(4), 0.5
    assert charts.ResultTable(list(COLUMNS), values).best == 2


def test_tables_of_old_files_have_no_learning_rate(tmp_path):
    write_results(tmp_path / "results.csv", range(3), columns=11)
    table = charts.read_results(tmp_path / "results.csv")
    assert not charts.draw_results({"old": table}).axes[5].lines
    assert [title for title, _ in charts.panel_figures(table)] == list(charts.PAIRED_PANELS)[:-1]
    assert all(figure_bytes(figure, 50)[1:4] == b"PNG" for _, figure in charts.panel_figures(table))


def test_runs_share_a_panel_by_colour_and_by_style(tmp_path):
    write_results(tmp_path / "results.csv", range(3))
    table = charts.read_results(tmp_path / "results.csv")
    ax = charts.draw_results({"_one": table, "$two$": table}).axes[0]
    one, two = (line for line in ax.lines if len(line.get_xdata()) == 3)
    assert one.get_color() != two.get_color() and one.get_linestyle() != two.get_linestyle()
    assert ax.get_legend_handles_labels()[1] == [" _one", r"\$two\$", "best epoch of each"]  # none is left out
    rings = {line.get_markeredgecolor() for line in ax.lines if line.get_marker() == "o"}
    assert not rings & {one.get_color(), two.get_color()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a line of at least 11 titles"),
        (HEADER, "then one line per epoch"),
        (HEADER + "0, 1, 2\n", r"results.csv:2: expected 14 numbers, got 3"),
        (HEADER + "\n" + "x, " * 13 + "1\n", r"results.csv:3: could not convert string to float: 'x'"),
        (b"\xff\xfe\x00", "results.csv: not a CSV file in UTF-8"),
    ],
)
def test_broken_results_are_named(tmp_path, text, message):
    (tmp_path / "results.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        charts.plot_results(tmp_path / "results.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_results_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results"):
        charts.plot_results(tmp_path / "results.csv")


def test_a_search_is_drawn_without_offsets(tmp_path, figures):
    """Values that differ in the fifth digit: matplotlib alone writes +9.37e-1 in a corner."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([0.9 + 1e-4 * rng.random((9, 7)), 0.937 + 1e-5 * rng.random((9, 6))], 1)
    titles = [*COLUMNS[4:11], *"abcdef"]
    text = [",".join(titles), *(",".join(f"{v:.7f}" for v in row) for row in rows)]
    (tmp_path / "evolve.csv").write_text("\n".join(text) + "\n")
    charts.plot_evolution(tmp_path / "evolve.csv")
    figure = figures["evolve.png"]
    figure_bytes(figure, 50)
    for ax in figure.axes:
        assert not ax.xaxis.get_offset_text().get_text() and not ax.yaxis.get_offset_text().get_text()
    best = int(fitness(rows).argmax())
    (legend,) = figure.legends
    assert f"trial {best}, fitness {fitness(rows)[best]:.4f}" in legend.get_texts()[0].get_text()
    (ring,) = figure.axes[2].lines
    assert [*ring.get_xdata(), *ring.get_ydata()] == pytest.approx([rows[best, 9], fitness(rows)[best]], abs=1e-7)


# --- precision, recall, F1 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nc", [0, 2, 30])  # none, each with its name, too many for a legend
def test_curves(tmp_path, nc):
    metrics = random_metrics(np.random.default_rng(0), nc)
    charts.plot_curves(metrics, tmp_path, ["_plain", "$dollar$"])
    for stem in ("PR", "F1", "P", "R"):
        assert size(tmp_path / f"{stem}_curve.png") == (1500, 2250, 3)


@pytest.mark.parametrize("nc", [20, 21])
def test_the_mean_is_black_and_the_legend_fits(tmp_path, figures, nc):
    metrics = random_metrics(np.random.default_rng(0), nc)
    charts.plot_curves(metrics, tmp_path, [f"a class with a long name, {i}" for i in range(nc)])
    for name, curves in (("PR_curve.png", metrics.pr_curve), ("F1_curve.png", metrics.f1_curve)):
        figure = figures[name]
        (axes,) = figure.axes
        *classes, mean = axes.lines
        assert len(classes) == nc and mean.get_color() == "black"
        assert np.allclose(mean.get_ydata(), curves.mean(0))
        figure_bytes(figure, 50)
        box, whole = axes.get_legend().get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        words = [text.get_text() for text in axes.get_legend().get_texts()]
        assert words[-1].startswith("all classes") and len(words) == (21 if nc == 20 else 2)


def test_lines_are_seen_on_white_and_apart_in_grey():
    """By WCAG's contrast with white; in a print without colours, neighbours have other styles."""
    for i in range(20):
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in charts.line_rgb(i)]
        assert 1.05 / (np.dot((0.2126, 0.7152, 0.0722), channels) + 0.05) > 2
    assert len(set(charts.STYLES)) == 4


# --- the confusion matrix ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nc", [1, 40])  # with numbers in the cells, without
def test_confusion_chart(tmp_path, nc):
    confusion = ConfusionMatrix(nc)
    confusion.matrix[:] = np.random.default_rng(0).integers(0, 9, (nc + 1, nc + 1))
    kept = confusion.matrix.copy()
    charts.plot_confusion_matrix(confusion, tmp_path, [f"class {i}" for i in range(nc)])
    assert np.array_equal(confusion.matrix, kept)
    assert size(tmp_path / "confusion_matrix.png") == (2250, 3000, 3)
    assert size(tmp_path / "confusion_matrix_counts.png") == (1125, 1500, 3)


def test_shares_and_counts_stand_in_the_cells(tmp_path, figures):
    confusion = ConfusionMatrix(2)
    confusion.matrix[:] = [[30, 0, 1], [10, 4, 0], [0, 4, 0]]
    charts.plot_confusion_matrix(confusion, tmp_path, ["a", "b"])
    texts = {
        name: {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in figure.axes[0].texts}
        for name, figure in figures.items()
    }
    assert texts["confusion_matrix.png"] == {
        (0, 0): "0.75",
        (1, 0): "0.25",
        (1, 1): "0.50",
        (2, 1): "0.50",
        (0, 2): "1.00",
    }
    assert texts["confusion_matrix_counts.png"] == {(0, 0): "30", (1, 0): "10", (1, 1): "4", (2, 1): "4", (0, 2): "1"}
    assert all("IoU above 0.45" in figure.axes[0].get_title() for figure in figures.values())


def test_nothing_to_confuse(tmp_path):
    charts.plot_confusion_matrix(ConfusionMatrix(1), tmp_path, ["a"])
    assert (tmp_path / "confusion_matrix_counts.png").is_file()


def test_epochs_that_were_not_validated_are_left_out_of_the_curves():
    values = np.full((4, len(COLUMNS)), 0.5)
    values[:, 0], values[:3, 4:11] = range(4), 0  # --noval
    table = charts.ResultTable(list(COLUMNS), values)
    assert table.validated.tolist() == [False, False, False, True]
    axes = charts.draw_results({"a": table}).axes
    for ax, columns in zip(axes, (*charts.PANELS, (None,))):
        measured = columns[0] is None or 4 <= columns[0] < 11
        assert np.isnan(ax.lines[0].get_ydata()).tolist() == [measured] * 3 + [False]
