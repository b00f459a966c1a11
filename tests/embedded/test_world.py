"""The small world: deterministic, exact, and described in a closed vocabulary."""

import sys

import numpy as np
import pytest

import controlkit.embedded as embedded
from controlkit.embedded.render import render
from controlkit.embedded.scenes import canny_array
from controlkit.embedded.vocabulary import LENGTH, WORDS, encode, vocabulary
from controlkit.embedded.world import COLOURS, FIRST_TRAINING_SEED, KINDS, Solid, World, sample_world
from controlkit.errors import MissingExtra

SEEDS = range(40)


def test_a_seed_always_gives_the_same_scene():
    first, second = embedded.scene(7), embedded.scene(7)
    assert first.caption == second.caption
    for name in ("image", "canny", "depth", "seg"):
        assert np.array_equal(np.asarray(getattr(first, name)), np.asarray(getattr(second, name)))
    assert not np.array_equal(np.asarray(first.image), np.asarray(embedded.scene(8).image))


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed is -1"):
        embedded.scene(-1)


@pytest.mark.parametrize("seed", SEEDS)
def test_maps_agree_with_the_picture_and_with_each_other(seed: int):
    scene = embedded.scene(seed)
    assert {scene.image.size, scene.canny.size, scene.depth.size, scene.seg.size} == {(128, 128)}
    assert {scene.image.mode, scene.canny.mode, scene.depth.mode, scene.seg.mode} == {"RGB"}
    assert np.array_equal(np.asarray(scene.canny)[..., 0], canny_array(np.asarray(scene.image)))
    assert np.array_equal(np.asarray(scene.seg), np.array(embedded.PALETTE)[scene.labels])
    assert np.array_equal(scene.labels > 0, scene.instances > 0)
    for number, kind in enumerate(scene.kinds, 1):
        seen = scene.labels[scene.instances == number]
        assert seen.size > 100
        assert (seen == embedded.LABELS.index(kind)).all()


def test_near_is_bright():
    depth = np.asarray(embedded.scene(2).depth)[..., 0].astype(int)
    instances = embedded.scene(2).instances
    floor = np.where(instances == 0, depth, -1)
    left_column = floor[:, 0][floor[:, 0] >= 0]
    assert (np.diff(left_column) >= 0).all()
    assert left_column[-1] > left_column[0] + 50
    rows, columns = np.nonzero(instances)
    bottom, top = rows.max(), rows.min()
    assert depth[bottom, columns[rows == bottom]].min() > depth[top, 0]


def test_depth_of_a_sphere_is_the_distance_to_it():
    # the picture's middle looks at (0, 0.72, 0); a sphere of radius 0.72 is hit one radius earlier
    sphere = Solid("sphere", "red", False, x=0.0, z=0.0, size=0.72, yaw=0.0)
    rendering = render(World((sphere,), "", "sand", 1.0))
    distance = np.hypot(7.0, 3.3 - 0.72) - 0.72
    assert rendering.inverse_depth[63:65, 63:65] == pytest.approx(4.5 / distance, abs=2e-3)
    assert rendering.instances[63, 63] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrored_world_gives_the_mirrored_picture(kind: str):
    solids = (
        Solid(kind, "red", True, x=-0.8, z=0.2, size=0.8, yaw=0.4),
        Solid("cube", "blue", False, x=0.9, z=-0.3, size=0.8, yaw=0.7),
    )
    world = World(solids, "left of", "snow", 1.1)
    picture, mirror = render(world).image.astype(int), render(world.mirrored()).image.astype(int)
    # rounding may send a ray at a silhouette to the other side
    assert (np.abs(picture[:, ::-1] - mirror).max(-1) > 2).mean() < 0.002
    assert " right of " in world.mirrored().caption


@pytest.mark.parametrize("colour", COLOURS)
def test_a_solid_has_its_colour(colour: str):
    solid = Solid("cylinder", colour, False, x=0.0, z=0.0, size=1.0, yaw=0.0)
    rendering = render(World((solid,), "", "snow", 1.0))
    mean = rendering.image[rendering.instances == 1].mean(0)
    tones = np.array(list(COLOURS.values()), float)
    cosine = tones @ mean / np.linalg.norm(tones, axis=1) / np.linalg.norm(mean)
    assert list(COLOURS)[int(cosine.argmax())] == colour


def test_captions_name_the_solids_from_left_to_right():
    for seed in range(200):
        world = sample_world(seed)
        positions = [solid.x for solid in world.solids]
        if world.relation == "left of" or len(world.solids) == 3:
            assert positions == sorted(positions)
        if world.relation == "right of":
            assert positions == sorted(positions, reverse=True)
        if world.relation == "in front of":
            assert world.solids[0].z < world.solids[1].z
        assert all(solid.phrase in world.caption for solid in world.solids)


def test_vocabulary_is_closed_and_captions_fit():
    captions = [sample_world(seed).caption for seed in range(500)]
    captions += [sample_world(seed).mirrored().caption for seed in range(500)]
    rows = encode(captions)
    assert {len(row) for row in rows} == {LENGTH}
    known = len(WORDS) + 2
    assert max(max(row) for row in rows) < known
    assert {number for row in rows for number in row} == set(range(known))


def test_no_merge_is_missing_from_the_vocabulary():
    tokens, merges = vocabulary()
    assert len(set(merges)) == len(merges)
    assert all("".join(merge) in tokens for merge in merges)


def test_held_out_seeds_are_below_the_training_seeds():
    assert FIRST_TRAINING_SEED == 1_000_000


def test_without_opencv_a_scene_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match="pip install opencv-python-headless"):
        _ = embedded.scene(1_000_007).canny
