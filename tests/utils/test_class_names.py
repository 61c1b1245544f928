"""Names of classes: chosen by number or name, and compared."""

import pickle

import pytest

from utils.class_names import ClassNames, class_numbers, difference


def test_names_answer_as_a_list_and_as_a_dict():
    names = ClassNames(["a", "b"])
    assert names[0] == "a" and len(names) == 2 and list(names) == ["a", "b"] and names == ["a", "b"]
    assert list(names.items()) == [(0, "a"), (1, "b")] and list(names.keys()) == [0, 1]
    assert "b" in names and 1 in names and 2 not in names and "c" not in names and names.get(2, "?") == "?"
    assert type(pickle.loads(pickle.dumps(names))) is list


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [(None, None), ([1], [1]), (["person", 2], [0, 2]), ("dog", [1]), (2, [2]), (["1"], [1]), (["7"], [2]), ([], [])],
)
def test_classes_by_number_or_name(wanted, numbers):
    """A name wins over a number: the third class is called 7."""
    assert class_numbers(wanted, ["person", "dog", "7"], "w.pt") == numbers


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (["persn"], "w.pt has no class called 'persn'; did you mean 'person'?"),
        (["xyz"], "w.pt has no class called 'xyz'; it has person, dog"),
        ([2], r"w.pt has classes 0 to 1, got \[2\]"),
        ([0.5], "w.pt: a class is given by its number or name, got 0.5"),
        ([-1], r"got \[-1\]"),
    ],
)
def test_classes_that_are_not_there(wanted, says):
    with pytest.raises(ValueError, match=says):
        class_numbers(wanted, ["person", "dog"], "w.pt")


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (["a", "b"], ["a", "b"], None),
        (["Traffic Light", "b"], ["traffic_light", "B"], None),
        (["0", "class1"], ["cat", "dog"], None),
        (["a", "b"], ["b", "a"], "in another order: class 0 is 'a' in w.pt, but 'b' in d.yaml, and 1 more"),
        (["a", "{x}"], ["a", "c"], "differently: class 1 is '{x}' in w.pt, but 'c' in d.yaml"),
    ],
)
def test_two_lists_are_compared(ours, theirs, says):
    assert difference(ours, theirs, "w.pt", "d.yaml") == says
