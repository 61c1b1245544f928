"""Names of result files."""

from pathlib import Path

import pytest
import torch

from utils.inference.outputs import CropNames, crop_folder, result_stems, summary


@pytest.mark.parametrize(
    ("files", "stems"),
    [
        (["a.jpg"], ["a"]),
        (["cam/1.jpg", "cam/2.jpg"], ["1", "2"]),
        # the folders that tell them apart
        (["shots/cam1/7.jpg", "shots/cam2/7.jpg", "shots/cam2/8.jpg"], ["cam1_7", "cam2_7", "8"]),
        (["x/a/c/7.jpg", "x/b/c/7.jpg"], ["a_c_7", "b_c_7"]),
        # one of them lies in the shared folder
        (["x/7.jpg", "x/deep/7.jpg"], ["7", "deep_7"]),
        # folders do not tell them apart
        (["a.jpg", "a.png", "b.jpg"], ["a", "a_2", "b"]),
        # a name made that way is taken
        (["s/a/b_7.jpg", "s/a_b/7.jpg", "s/a/b/7.jpg"], ["b_7", "a_b_7", "a_b_7_2"]),
        (["a.jpg", "a.png", "a_2.jpg"], ["a", "a_3", "a_2"]),
        # file systems that know no capitals
        (["A.jpg", "a.jpg"], ["A", "a_2"]),
        ([], []),
    ],
)
def test_results_never_share_a_name(files, stems):
    found = result_stems([Path(f) for f in files])
    assert found == stems
    assert len({s.lower() for s in found}) == len(files)


@pytest.mark.parametrize(
    "stems, second",
    [
        (["a", "b"], "a2"),
        (["a", "a2"], "a-2"),  # a2 is another image
        (["frame1", "frame12", "frame123"], "frame1-2"),
        (["a", "a2", "a-2"], "a--2"),
        (["a", "a02"], "a2"),  # numbers have no zero in front
        (["A", "a2"], "A-2"),  # some file systems know no capitals
    ],
)
def test_names_of_crops_belong_to_one_source(stems, second):
    names = CropNames(stems)
    assert names.name(stems[0], 1) == stems[0] and names.name(stems[0], 2) == second
    made = [names.name(stem, k).lower() for stem in stems for k in range(1, 300)]
    assert len(set(made)) == len(made)


def test_each_class_has_crops_of_its_own():
    """Names that differ in signs only, that lead elsewhere, or are too long for a file system."""
    names = ["N/A", "N:A", "N_A", "50%", "50°", "a.", "a", "../../x", "x" * 300, "x" * 301, "=1\x1b[2J", ""]
    folders = [crop_folder(Path("crops"), name) for name in names]
    assert len(set(folders)) == len(names) and all(folder.parent == Path("crops") for folder in folders)
    assert crop_folder(Path("crops"), "traffic light") == Path("crops/traffic light")


def test_a_summary_is_one_line():
    boxes = torch.tensor([[0, 0, 1, 1, 0.9, 0.0]])
    assert summary(boxes, ["a\x1b[2J\nerror: x"]) == r"1 a\x1b[2J\nerror: x"
