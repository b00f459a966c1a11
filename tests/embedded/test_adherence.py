"""Scores with cases worked out by hand."""

import numpy as np
import pytest
from PIL import Image

import controlkit.embedded as embedded
from controlkit.evaluation import binding, commonest, depth_correlation, edge_f1, segmentation_iou
from controlkit.evaluation.adherence import f1_of_edges, foreground_band


def column(at: int) -> np.ndarray:
    edges = np.zeros((16, 16), bool)
    edges[:, at] = True
    return edges


def test_edges_within_the_tolerance_count():
    assert f1_of_edges(column(5), column(5)) == 1.0
    assert f1_of_edges(column(7), column(5)) == 1.0
    assert f1_of_edges(column(8), column(5)) == 0.0
    assert f1_of_edges(column(8), column(5), tolerance=3.0) == 1.0


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    # all 16 found pixels are right; 16 of the 32 wanted ones are found: 2 * 1 * 0.5 / 1.5
    assert f1_of_edges(column(2), column(2) | column(12)) == pytest.approx(2 / 3)
    assert f1_of_edges(column(2) | column(12), column(2)) == pytest.approx(2 / 3)


def test_empty_edge_maps():
    none = np.zeros((16, 16), bool)
    assert f1_of_edges(none, none) == 1.0
    assert f1_of_edges(none, column(3)) == f1_of_edges(column(3), none) == 0.0


def test_a_scene_follows_its_own_edges_and_not_anothers():
    one, two = embedded.scene(1), embedded.scene(2)
    assert edge_f1(one.image, one.canny) == 1.0
    assert edge_f1(one.image, two.canny) < 0.5
    with pytest.raises(ValueError, match="resize one of them"):
        edge_f1(one.image.resize((64, 64)), one.canny)


def test_depth_is_compared_on_the_widened_foreground():
    mask = np.zeros((64, 64), bool)
    mask[30:34, 30:34] = True
    assert foreground_band(mask).sum() == 12 * 12
    exact = np.tile(np.arange(64.0), (64, 1))
    assert depth_correlation(3.0 * exact + 1.0, exact, mask) == pytest.approx(1.0)
    assert depth_correlation(-exact, exact, mask) == pytest.approx(-1.0)
    far_off = exact.copy()
    far_off[:, :20] = 1000.0
    assert depth_correlation(far_off, exact, mask) == pytest.approx(1.0)
    assert depth_correlation(np.ones((64, 64)), exact, mask) == 0.0
    with pytest.raises(ValueError, match="shapes differ"):
        depth_correlation(exact[:32], exact, mask)


def test_intersection_over_union_leaves_the_floor_out():
    wanted = np.array([[0, 0, 1, 1], [0, 0, 2, 2]])
    found = np.array([[0, 1, 1, 1], [0, 0, 0, 2]])
    assert segmentation_iou(found, wanted) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert segmentation_iou(wanted, wanted) == 1.0
    assert segmentation_iou(found, np.zeros_like(wanted)) == 1.0
    with pytest.raises(ValueError, match="shapes differ"):
        segmentation_iou(found[:1], wanted)


def test_binding_asks_for_the_colour_at_the_place():
    instances = np.array([[1, 1, 0, 2, 2]])
    assert binding(np.array([[3, 3, 0, 5, 5]]), instances, [3, 5]) == 1.0
    assert binding(np.array([[5, 5, 0, 3, 3]]), instances, [3, 5]) == 0.0
    assert binding(np.array([[3, 0, 0, 0, 0]]), instances, [3, 5]) == 0.5


def test_commonest_ignores_the_floor():
    assert commonest(np.array([0, 0, 0, 2, 2, 1])) == 2
    assert commonest(np.zeros(4, int)) == 0


def test_a_broken_picture_scores_nothing():
    grey = Image.new("RGB", (128, 128), (128, 128, 128))
    assert edge_f1(grey, embedded.scene(1).canny) == 0.0
