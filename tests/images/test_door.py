"""Every kind of picture that can be handed in, and what it becomes to the bit (faults H1 to H21)."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from controlkit.errors import ControlKitWarning, HintError, ParameterError
from controlkit.images import as_map, as_mask, as_picture, as_pictures

RGB = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = RGB[..., 0]
WIDE = np.array([[0, 1, 256], [40000, 65534, 65535]], dtype=np.uint16)


def expected(array: Any) -> torch.Tensor:
    """(H, W, 3) or (H, W) in 0..255 as a map."""
    values = np.asarray(array, dtype=np.float32) / 255
    values = np.repeat(values[..., None], 3, 2) if values.ndim == 2 else values
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def one_map(image: Any, **options: Any) -> torch.Tensor:
    result = as_map(image, **options)
    assert isinstance(result, torch.Tensor)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert not result.requires_grad
    return result


def with_alpha(alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([RGB, alpha.astype(np.uint8)]))


def palette(transparency: int | None = None) -> Image.Image:
    image = Image.fromarray(GRAY % 4).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], dtype=np.uint8)
HALF = np.full((6, 9), 128)
FLOAT = torch.rand(2, 3, 6, 9)

ACCEPTED: dict[str, tuple[Callable[[], Any], Callable[[], torch.Tensor]]] = {
    "RGB": (lambda: Image.fromarray(RGB), lambda: expected(RGB)),
    "L": (lambda: Image.fromarray(GRAY), lambda: expected(GRAY)),
    "H3 I;16": (lambda: Image.fromarray(WIDE), lambda: expected(WIDE / np.float64(65535) * 255)),
    "H4 uint16": (lambda: WIDE, lambda: expected(WIDE / np.float64(65535) * 255)),
    "H4 uint16 big-endian": (lambda: WIDE.astype(">u2"), lambda: expected(WIDE / np.float64(65535) * 255)),
    "H4 torch uint16": (lambda: torch.from_numpy(WIDE), lambda: expected(WIDE / np.float64(65535) * 255)),
    "H5 opaque alpha": (lambda: with_alpha(np.full((6, 9), 255)), lambda: expected(RGB)),
    "H6 palette": (palette, lambda: expected(COLOURS[GRAY % 4])),
    "H6 1-bit": (lambda: Image.fromarray(GRAY > 99), lambda: expected((GRAY > 99) * 255)),
    "H7 YCbCr": (
        lambda: Image.fromarray(RGB).convert("YCbCr"),
        lambda: expected(Image.fromarray(RGB).convert("YCbCr").convert("RGB")),
    ),
    "H7 CMYK": (lambda: Image.fromarray(RGB).convert("CMYK"), lambda: expected(RGB)),
    "H15 uint8 array": (lambda: RGB, lambda: expected(RGB)),
    "H15 uint8 tensor": (lambda: torch.from_numpy(RGB), lambda: expected(RGB)),
    "H15 uint8 gray": (lambda: GRAY, lambda: expected(GRAY)),
    "H16 CHW array": (lambda: RGB.transpose(2, 0, 1), lambda: expected(RGB)),
    "H16 HWC tensor": (lambda: torch.from_numpy(RGB.copy()), lambda: expected(RGB)),
    "H16 NHWC array": (lambda: RGB[None], lambda: expected(RGB)),
    "H16 NHWC tensor": (lambda: FLOAT.permute(0, 2, 3, 1), lambda: FLOAT),
    "H16 NCHW": (lambda: FLOAT, lambda: FLOAT),
    "H16 NCHW array": (lambda: FLOAT.numpy(), lambda: FLOAT),
    "H16 CHW": (lambda: FLOAT[0], lambda: FLOAT[:1]),
    "H16 HW float": (lambda: FLOAT[0, 0], lambda: FLOAT[:1, :1].expand(1, 3, 6, 9)),
    "H21 gradient": (lambda: FLOAT.clone().requires_grad_(), lambda: FLOAT),
    "H21 parameter": (lambda: torch.nn.Parameter(FLOAT.clone()), lambda: FLOAT),
    "H21 non-contiguous": (lambda: FLOAT.flip(3).flip(3)[..., ::2], lambda: FLOAT[..., ::2]),
    "H21 negative strides": (lambda: RGB[::-1, ::-1], lambda: expected(RGB[::-1, ::-1].copy())),
    "H21 bool": (lambda: GRAY > 99, lambda: expected((GRAY > 99) * 255)),
    "H21 bool tensor": (lambda: torch.from_numpy(GRAY > 99), lambda: expected((GRAY > 99) * 255)),
    "H21 float64": (lambda: FLOAT.double(), lambda: FLOAT),
    "H21 float16": (lambda: FLOAT.half(), lambda: FLOAT.half().float()),
    "H21 bfloat16": (lambda: FLOAT.bfloat16(), lambda: FLOAT.bfloat16().float()),
    "H21 longdouble": (lambda: FLOAT.numpy().astype(np.longdouble), lambda: FLOAT),
    "H20 list": (lambda: [RGB, Image.fromarray(RGB)], lambda: expected(RGB).expand(2, 3, 6, 9)),
    "H20 mixed types": (
        lambda: (FLOAT[:1], FLOAT[1].permute(1, 2, 0).numpy(), RGB, palette()),
        lambda: torch.cat([FLOAT, expected(RGB), expected(COLOURS[GRAY % 4])]),
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_pictures_have_their_exact_values(case: str) -> None:
    given, wanted = ACCEPTED[case]
    result = one_map(given(), notes=[])
    wanted = wanted()
    assert result.shape == wanted.shape
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-7)


def test_a_single_pixel_is_allowed_with_a_note() -> None:
    notes: list[str] = []
    assert one_map(Image.new("RGB", (1, 1), "red"), notes=notes).flatten().tolist() == [1, 0, 0]
    assert "single pixel" in notes[0]


def test_extreme_aspects_are_allowed_when_asked() -> None:
    assert one_map(Image.new("L", (1, 4096)), any_aspect=True).shape == (1, 3, 4096, 1)


@pytest.mark.parametrize(
    ("mode", "full", "scale"), [("I", 255, 255), ("I", 300, 65535), ("I", 70000, 2**31 - 1)]
)
def test_32_bit_gray_is_scaled_by_its_range(mode: str, full: int, scale: int) -> None:
    notes: list[str] = []
    image = Image.new(mode, (2, 1), full)
    image.putpixel((0, 0), 0)
    result = one_map(image, notes=notes)[0, 0, 0]
    torch.testing.assert_close(result, torch.tensor([0.0, full / scale]))
    assert "states no range" in notes[0]


@pytest.mark.parametrize(("full", "scale"), [(0.5, 1), (1.0, 1), (200.0, 255), (4000.0, 65535)])
def test_float_gray_is_scaled_by_its_range(full: float, scale: float) -> None:
    result = one_map(Image.new("F", (2, 2), full), notes=[])
    torch.testing.assert_close(result, torch.full((1, 3, 2, 2), full / scale))


ALPHA: dict[str, Callable[[], Image.Image]] = {
    "RGBA": lambda: with_alpha(HALF),
    "RGBa": lambda: with_alpha(HALF).convert("RGBa"),
    "LA": lambda: with_alpha(HALF).convert("LA"),
    "La": lambda: with_alpha(HALF).convert("LA").convert("La"),
    "PA": lambda: palette().convert("PA"),
    "P with transparency": lambda: palette(transparency=3),
    "L with transparency": lambda: _tagged(Image.fromarray(GRAY), int(GRAY[0, 0])),
    "RGB with transparency": lambda: _tagged(Image.fromarray(RGB), tuple(int(v) for v in RGB[0, 0])),
}


def _tagged(image: Image.Image, transparency: Any) -> Image.Image:
    image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize("mode", ALPHA)
@pytest.mark.parametrize("background", ["black", "white", (10, 200, 30)])
def test_every_kind_of_transparency_is_laid_on_the_background(mode: str, background: Any) -> None:
    image = ALPHA[mode]()
    if mode == "PA":
        image.putalpha(Image.fromarray(HALF.astype(np.uint8)))
    straight = {"RGBa": "RGBA", "La": "LA"}.get(mode, image.mode)
    layer = np.asarray(image.convert(straight).convert("RGBA"), dtype=np.float64)
    ground = {"black": 0, "white": 255}.get(background, background)
    share = layer[..., 3:] / 255
    wanted = share * layer[..., :3] + (1 - share) * np.asarray(ground)
    notes: list[str] = []
    result = one_map(image, background=background, notes=notes)
    torch.testing.assert_close(result, expected(wanted), rtol=0, atol=1.01 / 255)
    assert any("transparent" in note for note in notes)


def test_transparent_is_black_by_default_and_outside_for_masks() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert not one_map(clear, notes=[]).any()
    mask = as_mask(clear, notes=[])
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (1, 1, 4, 4)
    assert not mask.any()


@pytest.mark.parametrize("background", ["blakc", (1, 2), (1, 2, 300), None, (0.0, 0.0, 0.0)])
def test_unknown_backgrounds_are_refused(background: Any) -> None:
    with pytest.raises(ParameterError, match="background"):
        as_map(with_alpha(HALF), background=background, notes=[])


def test_lab_and_profiles_are_converted() -> None:
    flat = Image.new("RGB", (4, 4), (200, 100, 50))
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(flat, srgb, lab, outputMode="LAB")
    assert converted is not None
    converted.info.clear()
    torch.testing.assert_close(one_map(converted), one_map(flat), rtol=0, atol=3 / 255)


def test_cmyk_with_a_broken_profile_is_converted_and_noted() -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    image.info["icc_profile"] = b"not a profile"
    notes: list[str] = []
    torch.testing.assert_close(one_map(image, notes=notes), expected(RGB))
    assert "profile" in notes[0]


@pytest.mark.parametrize("profile", ["sRGB", "XYZ"])
def test_profiles_never_change_the_numbers_of_rgb(profile: str) -> None:
    image = Image.fromarray(RGB)
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile(profile)).tobytes()  # type: ignore[arg-type]
    notes: list[str] = []
    assert torch.equal(one_map(image, notes=notes), expected(RGB))
    assert bool(notes) == (profile != "sRGB")


def test_the_frame_of_an_animation_is_used_with_a_note() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    notes: list[str] = []
    assert one_map(Image.open(data), notes=notes)[0, :, 0, 0].tolist() == [1, 0, 0]
    assert "several frames; frame 0" in notes[0]


def test_overshoot_of_resampling_is_clamped_with_a_note() -> None:
    notes: list[str] = []
    values = torch.tensor([[-0.009, 0.0, 0.5, 1.0, 1.2]])
    result = one_map(values, notes=notes)[0, 0, 0]
    torch.testing.assert_close(result, torch.tensor([0, 0, 0.5, 1, 1]))
    assert "2 values outside" in notes[0]


def test_rounding_errors_are_clamped_silently() -> None:
    notes: list[str] = []
    assert one_map(torch.tensor([[0.0, 1 + 1e-7]]), notes=notes).max() == 1
    assert not notes


def test_maps_that_mark_hidden_pixels_with_minus_one_can_be_read() -> None:
    values = FLOAT.clone()
    values[:, :, 2:4] = -1
    assert torch.equal(one_map(values, lowest=-1), values)


def test_notes_become_warnings_for_the_caller_where_no_list_is_given() -> None:
    with pytest.warns(ControlKitWarning, match="single pixel") as caught:
        as_map(Image.new("RGB", (1, 1)))
    assert caught[0].filename == __file__


def test_nearly_black_zero_and_one_integers_are_noted() -> None:
    notes: list[str] = []
    as_mask((GRAY > 99).astype(np.uint8), notes=notes)
    assert "should be bool" in notes[0]


def test_bgr_modules_get_red_and_blue_exchanged() -> None:
    assert torch.equal(one_map(RGB, channel_order="bgr"), expected(RGB[..., ::-1].copy()))
    assert torch.equal(one_map(RGB, channel_order="rgb"), expected(RGB))


@pytest.mark.parametrize(("order", "channels"), [("gbr", 3), ("bgr", 1), (1, 3)])
def test_unknown_channel_orders_are_refused(order: Any, channels: int) -> None:
    with pytest.raises(ParameterError, match="channel_order"):
        as_map(RGB, channel_order=order, channels=channels)


def test_lists_of_different_sizes_stay_lists() -> None:
    result = as_map([RGB, RGB[:4], GRAY])
    assert isinstance(result, list)
    assert [tuple(row.shape) for row in result] == [(1, 3, 6, 9), (1, 3, 4, 9), (1, 3, 6, 9)]


def test_results_share_no_memory_with_the_input() -> None:
    array, tensor = RGB.astype(np.float32) / 255, FLOAT.clone()
    first, second = one_map(array), one_map(tensor)
    array[:], tensor[:] = 0, 0
    assert first.any()
    assert torch.equal(second, FLOAT)


def test_inputs_are_not_changed() -> None:
    image, tensor = with_alpha(HALF), FLOAT.clone().requires_grad_()
    before = image.tobytes()
    as_map(image, notes=[])
    as_map(tensor)
    assert image.tobytes() == before
    assert image.mode == "RGBA"
    assert tensor.requires_grad


def test_one_channel_maps_are_pillows_luma() -> None:
    luma = np.asarray(Image.fromarray(RGB).convert("L"), dtype=np.float32) / 255
    for given in (Image.fromarray(RGB), RGB, torch.from_numpy(RGB.transpose(2, 0, 1).copy())):
        assert torch.equal(one_map(given, channels=1)[0, 0], torch.from_numpy(luma))
    torch.testing.assert_close(
        one_map(RGB / 255, channels=1)[0, 0], torch.from_numpy(luma), rtol=0, atol=0.003
    )
    gray = FLOAT[:, :1].expand(2, 3, 6, 9)
    assert torch.equal(one_map(gray, channels=1), FLOAT[:, :1])


def test_other_channel_counts_are_for_arrays_only() -> None:
    assert one_map(torch.rand(2, 6, 8, 9), channels=6).shape == (2, 6, 8, 9)
    assert one_map(np.random.default_rng(0).random((8, 9, 6)), channels=6).shape == (1, 6, 8, 9)
    with pytest.raises(HintError, match="6 channels"):
        as_map(Image.fromarray(RGB), channels=6)
    with pytest.raises(HintError, match=r"3 channels in shape .* needed 6 channels"):
        as_map(RGB[:5], channels=6)


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 1), (1, 6, 9), (1, 1, 6, 9), (1, 6, 9, 1)])
def test_masks_of_any_layout_have_one_channel(shape: tuple[int, ...]) -> None:
    mask = as_mask((GRAY > 99).reshape(shape))
    assert isinstance(mask, torch.Tensor)
    assert torch.equal(mask[0, 0], torch.from_numpy(GRAY > 99).float())


def test_masks_say_that_they_are_masks() -> None:
    with pytest.raises(HintError, match=r"^mask; found shape \(5, 6, 9\)|^mask; found 5 channels"):
        as_mask(np.zeros((5, 6, 9)))


def test_pictures_are_rgb_images_of_their_own() -> None:
    source = Image.fromarray(RGB)
    result = as_picture(source)
    assert result.mode == "RGB"
    assert result is not source
    assert np.array_equal(np.asarray(result), RGB)
    assert np.array_equal(np.asarray(as_picture(RGB / 255)), RGB)
    assert np.asarray(as_picture(Image.fromarray(WIDE)))[..., 0].tolist() == [[0, 0, 1], [156, 255, 255]]


def test_pictures_come_one_by_one_or_as_a_list() -> None:
    assert [image.size for image in as_pictures([RGB, RGB[:4]])] == [(9, 6), (9, 4)]
    assert len(as_pictures(FLOAT)) == 2
    with pytest.raises(HintError, match="2 pictures"):
        as_picture(FLOAT)
