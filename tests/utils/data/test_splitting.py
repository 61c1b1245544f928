"""Every class comes into every part in its share, groups stay whole, and a seed decides."""

import numpy as np
import pytest

from utils.data.splitting import groups_of, keys_by_name, stratify


def part(shown, shares, groups=None, seed=0):
    groups = groups or [[i] for i in range(len(shown))]
    return stratify(np.array(shown), groups, shares, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(5))
def test_each_class_has_its_share_in_each_part(seed):
    # 600 images of 6 classes, the rarest of 10 images, up to three of them in an image, one in ten without any
    rng, shares = np.random.default_rng(seed), (0.7, 0.15, 0.15)
    shown = rng.random((600, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0]
    shown[rng.choice(600, 10, replace=False), 5] = True
    shown = shown.astype(int)
    dealt = part(shown, shares, seed=seed)
    for i, share in enumerate(shares):
        # at random the rarest class would be missing from val or test in one of five splits
        assert (abs(shown[dealt == i].sum(0) - share * shown.sum(0)) <= 2).all()
        assert abs((dealt == i).sum() - share * 600) <= 12


def test_one_image_for_each_part_by_hand():
    # three images of class 0 and three of class 1: each of the three equal parts gets one of both
    dealt = part([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], (1 / 3,) * 3)
    assert sorted(dealt[:3]) == sorted(dealt[3:]) == [0, 1, 2]


def test_images_without_objects_fill_the_room_that_is_left():
    dealt = part(np.zeros((20, 3), int), (0.5, 0.25, 0.25))
    assert np.bincount(dealt).tolist() == [10, 5, 5]


def test_groups_stay_whole_and_the_seed_decides():
    shown = np.eye(4, dtype=int)[np.arange(200) % 4]
    groups = groups_of(200, [str(i // 8) for i in range(200)])
    assert len(groups) == 25
    dealt = part(shown, (0.6, 0.2, 0.2), groups)
    assert all(len({*dealt[group].tolist()}) == 1 for group in groups)
    assert np.bincount(dealt).tolist() == [120, 40, 40]
    assert part(shown, (0.6, 0.2, 0.2), groups).tolist() == dealt.tolist()
    assert part(shown, (0.6, 0.2, 0.2), groups, seed=1).tolist() != dealt.tolist()


def test_groups_by_names_and_pairs():
    keys = keys_by_name(["x/a_1.jpg", "y/a_2.jpg", "x/b_1.jpg", "x/c.jpg"], r"^(.*)_\d")
    assert keys == ["a", "a", "b", None]
    assert keys_by_name(["x/run12_3.jpg"], r"run\d+") == ["run12"]
    assert groups_of(4, keys) == [[0, 1], [2], [3]]
    assert groups_of(4, keys, [(1, 3)]) == [[0, 1, 3], [2]]
