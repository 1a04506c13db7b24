"""Words of places are those of the patient, however the voxels lie; warnings tell misuse."""

import numpy as np
import pytest

from monai_dpmm.transforms.where import body_box, look_around, position_words

AFFINES = {
    "RAS": np.diag([1.0, 1, 1, 1]),
    "LPS": np.diag([-2.0, -1, 1, 1]),
    "PIR": np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
    "oblique": np.array([[0.9, 0.2, 0, 0], [-0.2, 0.9, 0.1, 0], [0, -0.1, 1, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((12, 12, 12), "right anterior upper"),
        ((-12, -12, -12), "left posterior lower"),
        ((0, 12, 0), "midline anterior"),
        ((12, 0, -12), "right lower"),
    ],
)
def test_words_follow_the_world(affine, place, words):
    """A ball off the middle of its grid, whose box is looked at."""
    shape = (60, 50, 45)
    center = np.array([33, 24, 20])
    world = affine[:3, :3] @ center + affine[:3, 3]
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    body = np.linalg.norm(places - world, axis=-1) < 18
    assert position_words(world + place, body_box(body, affine)) == words


def test_without_a_body_there_are_no_words():
    nothing, lesion = np.zeros((3, 3, 3), bool), {"peak_mm": [1.0, 1, 1]}
    assert look_around([lesion], nothing, None, np.eye(4), None) == []
    assert look_around([lesion], nothing, nothing, np.eye(4), None) == []
    assert lesion == {"peak_mm": [1.0, 1, 1]}


ORIGIN = {"spacing_mm": {"lowest": [0.8, 0.8, 1.0], "highest": [1.0, 1.0, 1.5]}}


@pytest.mark.parametrize(
    ("spacing", "warned"),
    [
        ((1, 1, 1), False),
        ((1.9, 1, 1), False),
        ((3.2, 1, 1), True),
        ((0.45, 1, 0.45), False),
        ((0.3, 1, 1), True),
        ((5, 1, 1), True),
    ],
)
def test_voxels_far_from_the_trainings_are_told(spacing, warned):
    lines = look_around(
        [], np.zeros((4, 4, 4)), np.ones((4, 4, 4)) > 0, np.diag([*spacing, 1]), ORIGIN
    )
    assert bool(lines) == warned
    assert not warned or "those of the training 0.8 x 0.8 x 1 to 1 x 1 x 1.5 mm" in lines[0]


def test_a_mask_of_half_the_body_is_told_and_a_large_lesion_is_not():
    body = np.zeros((10, 10, 10), bool)
    body[2:8] = True
    mask = np.zeros_like(body)
    mask[2:5] = True
    (line,) = look_around([], mask, body, np.eye(4), None)
    assert "the mask covers 50 % of the body" in line
    mask[3:5] = False
    assert look_around([], mask, body, np.eye(4), ORIGIN) == []
    picture = look_around([{"rank": 1}], np.ones((4, 4)), np.ones((4, 4)) > 0, None, ORIGIN)
    assert "100 %" in picture[0]
