"""Resizing: exact where nothing is to be done, sharp where labels and lines need it, smooth elsewhere."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controlkit.errors import ParameterError
from controlkit.images import as_map, fit, open_image, to_picture
from controlkit.images.sizes import content
from controlkit.images.thinning import thin


def ramp(height: int = 64, width: int = 96) -> torch.Tensor:
    down, across = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    return ((down + across) / 2).expand(1, 3, height, width).contiguous()


def ring(side: int = 256, radius: float = 0.4) -> torch.Tensor:
    """A circle one pixel wide."""
    turn = torch.linspace(0, 2 * torch.pi, 8 * side)
    points = ((torch.stack([turn.sin(), turn.cos()]) * radius + 0.5) * side).long()
    out = torch.zeros(1, 3, side, side)
    out[0, :, points[0], points[1]] = 1
    return thin(out[:, :1], 4).expand(1, 3, side, side).contiguous()


def areas(side: int = 64) -> torch.Tensor:
    out = torch.zeros(1, 3, side, side)
    out[:, 0, :, side // 3 :] = 0.5
    out[:, 2, side // 2 :] = 0.25
    return out


def pieces(mask: torch.Tensor) -> int:
    """Connected pieces (8 neighbours) of a (H, W) mask."""
    from skimage.measure import label

    numbered: Any = label(mask.numpy(), connectivity=2)
    return int(numbered.max())


def test_the_right_size_is_the_very_tensor() -> None:
    for image in (ramp(), ring(), areas()):
        for resize in ("stretch", "crop", "pad"):
            result, note = fit(image, tuple(image.shape[-2:]), resize=resize)  # type: ignore[arg-type]
            assert result is image
            assert note is None


def test_the_note_says_from_what_to_what_and_how() -> None:
    assert fit(ramp(512, 768), (64, 96))[1] == "map resized 512x768 -> 64x96 (stretch, area)"
    assert fit(ramp(64, 96), (128, 192), resize="crop")[1] == "map resized 64x96 -> 128x192 (crop, bicubic)"
    assert fit(areas(), (32, 32))[1] == "map resized 64x64 -> 32x32 (stretch, nearest)"
    assert fit(ring(), (64, 64), resize="pad")[1] == "map resized 256x256 -> 64x64 (pad, lines kept)"


@pytest.mark.parametrize("size", [(16, 16), (37, 91), (200, 130), (1, 1)])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_labels_keep_exactly_their_colours(size: tuple[int, int], resize: Any) -> None:
    image = areas()
    assert content(image) == "labels"
    before = {tuple(c) for c in image[0].flatten(1).T.tolist()} | {(0.0, 0.0, 0.0)}
    result, _ = fit(image, size, resize=resize)
    assert result.shape == (1, 3, *size)
    assert {tuple(c) for c in result[0].flatten(1).T.tolist()} <= before


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_lines_survive_shrinking_whole_and_thin(factor: int) -> None:
    image = ring()
    assert content(image) == "lines"
    result, _ = fit(image, (256 // factor, 256 // factor))
    mask = result[0, 0] > 0
    assert set(result.unique().tolist()) == {0.0, 1.0}
    assert pieces(mask) == 1
    assert pieces(~mask) >= 1
    length = 2 * torch.pi * 0.4 * 256 / factor
    assert mask.sum() < 1.5 * length


def test_lines_are_known_after_jpeg_compression_and_dark_on_white() -> None:
    data = io.BytesIO()
    to_picture(ring()[0]).save(data, "JPEG", quality=90)
    compressed = torch.as_tensor(as_map(open_image(data)))
    for image in (compressed, 1 - ring()):
        assert content(image) == "lines"
        result, note = fit(image, (128, 128))
        assert note is not None
        assert "lines kept" in note
        mask = (result[0, 0] > 0.5) ^ (image is not compressed)
        assert pieces(mask) == 1
        assert result.unique().numel() == 2


@pytest.mark.parametrize("size", [(300, 300), (512, 512), (700, 1000)])
def test_lines_stay_whole_and_thin_when_enlarged(size: tuple[int, int]) -> None:
    result, _ = fit(ring(), size)
    mask = result[0, 0] > 0
    assert set(result.unique().tolist()) == {0.0, 1.0}
    assert pieces(mask) == 1
    window = torch.nn.functional.avg_pool2d(result[:, :1], 3, 1)
    assert (window == 1).sum() == 0


def test_depth_with_many_grays_is_smooth_and_within_its_range() -> None:
    image = (ramp() * 0.6 * 255).round() / 255 + 0.2
    assert content(image) == "smooth"
    small, _ = fit(image, (32, 48))
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(image, 2))
    large, _ = fit(image, (256, 384))
    assert large.min() >= image.min()
    assert large.max() <= image.max()


def test_photographs_are_smooth() -> None:
    assert content(torch.rand(1, 3, 300, 300)) == "smooth"
    assert content(torch.rand(1, 3, 8, 8)) == "smooth"


def test_labels_can_be_stated() -> None:
    image = (torch.rand(1, 3, 32, 32) * 255).round() / 255
    result, note = fit(image, (16, 16), labels=True)
    assert note is not None
    assert "nearest" in note
    assert set(result.flatten().tolist()) <= set(image.flatten().tolist())
    assert "area" in str(fit(areas(), (16, 16), labels=False)[1])


def test_crop_keeps_the_middle_and_the_proportions() -> None:
    image = torch.zeros(1, 3, 60, 100)
    image[..., 20:80] = 1
    result, _ = fit(image, (60, 60), resize="crop")
    assert torch.equal(result, torch.ones(1, 3, 60, 60))


def test_pad_keeps_all_and_centres_it_on_black() -> None:
    image = torch.ones(1, 3, 30, 60)
    result, _ = fit(image, (60, 60), resize="pad")
    assert torch.equal(result[..., 15:45, :], torch.ones(1, 3, 30, 60))
    assert result.sum() == image.sum()


def test_lists_of_different_sizes_become_one_batch() -> None:
    result, note = fit([ramp(32, 32), ramp(64, 64), areas(64)], (32, 32))
    assert result.shape == (3, 3, 32, 32)
    assert torch.equal(result[:1], ramp(32, 32))
    assert note == (
        "map resized 64x64 -> 32x32 (stretch, area); map resized 64x64 -> 32x32 (stretch, nearest)"
    )


def test_rows_of_a_batch_are_treated_each_by_its_own_content() -> None:
    batch = torch.cat([areas(), ramp(64, 64)])
    result, _ = fit(batch, (128, 128))
    assert torch.equal(result[:1], fit(areas(), (128, 128))[0])
    assert torch.equal(result[1:], fit(ramp(64, 64), (128, 128))[0])


@pytest.mark.parametrize("size", [(0, 8), (8,), (8.0, 8), (-8, 8), (8, 8, 8)])
def test_impossible_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ParameterError, match="size"):
        fit(ramp(), size)


def test_an_unknown_way_to_resize_is_refused() -> None:
    with pytest.raises(ParameterError, match="'stretch', 'crop' or 'pad'"):
        fit(ramp(), (8, 8), resize="squeeze")  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    resize=st.sampled_from(["stretch", "crop", "pad"]),
    levels=st.sampled_from([1, 2, 5, 256]),
    channels=st.sampled_from([1, 3, 6]),
)
def test_any_size_fits_any_other(source: Any, target: Any, resize: Any, levels: int, channels: int) -> None:
    image = (torch.rand(2, channels, *source) * levels).floor().clamp(max=levels - 1) / max(1, levels - 1)
    result, _ = fit(image, target, resize=resize)
    assert result.shape == (2, channels, *target)
    assert torch.isfinite(result).all()
    assert result.min() >= min(0.0, float(image.min()))
    assert result.max() <= image.max()
    assert torch.equal(result, fit(image, target, resize=resize)[0])


def test_thinning_leaves_thin_lines_alone_and_thins_thick_ones() -> None:
    bar = torch.zeros(1, 1, 20, 40)
    bar[..., 8:13, 5:35] = 1
    thinned = thin(bar, 10)
    assert thinned.sum(2).max() == 1
    assert torch.equal(thin(thinned, 10), thinned)
    assert torch.equal(thin(torch.zeros(1, 1, 3, 3), 2), torch.zeros(1, 1, 3, 3))


def test_thinning_keeps_pieces_and_holes_and_is_as_thin_as_scikit_image() -> None:
    from skimage.measure import euler_number
    from skimage.morphology import skeletonize

    blobs = torch.nn.functional.interpolate(torch.rand(1, 1, 12, 12), (96, 96), mode="bicubic") > 0.55
    ours = thin(blobs.float(), 100)[0, 0].bool()
    thick = blobs[0, 0]
    theirs = skeletonize(thick.numpy(), method="zhang")
    assert not (ours & ~thick).any()
    assert pieces(ours) == pieces(thick)
    assert euler_number(ours.numpy(), connectivity=2) == euler_number(thick.numpy(), connectivity=2)
    assert abs(int(ours.sum()) - int(theirs.sum())) <= 0.05 * theirs.sum()


def strokes(dice: random.Random, widest: int) -> torch.Tensor:
    """Six straight strokes, down to single pixels, (1, 1, 40, 40)."""
    out = torch.zeros(1, 1, 40, 40)
    for _ in range(6):
        row, column, width = dice.randrange(40), dice.randrange(40), dice.randint(1, widest)
        down, across = dice.choice([-1, 0, 1]), dice.choice([-1, 0, 1])
        for step in range(dice.randint(1, 20)):
            top, left = max(0, row + down * step), max(0, column + across * step)
            out[0, 0, top : top + width, left : left + width] = 1
    return out


@pytest.mark.parametrize("seed", range(20))
def test_no_stroke_is_lost_however_small(seed: int) -> None:
    dice = random.Random(seed)
    thick, fine = strokes(dice, 4), strokes(dice, 1).expand(1, 3, 40, 40)
    assert pieces(thin(thick, 50)[0, 0]) == pieces(thick[0, 0])
    for size in ((80, 80), (57, 91)):
        assert pieces(fit(fine, size)[0][0, 0]) == pieces(fine[0, 0])
