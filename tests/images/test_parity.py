"""At the right size, a map is to the bit what diffusers' pipelines make of the same picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.images import as_map

processing = pytest.importorskip("diffusers.image_processor")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("size", [(8, 8), (64, 96), (256, 128)])
def test_pictures_agree_with_diffusers_to_the_bit(mode: str, size: tuple[int, int]) -> None:
    array = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(array).convert(mode)
    reference = processing.VaeImageProcessor(do_convert_rgb=True, do_normalize=False)
    assert torch.equal(torch.as_tensor(as_map(image)), reference.preprocess(image))


def test_tensors_and_float_arrays_agree_with_diffusers_to_the_bit() -> None:
    reference = processing.VaeImageProcessor(do_convert_rgb=True, do_normalize=False)
    tensor = torch.rand(2, 3, 16, 24)
    assert torch.equal(torch.as_tensor(as_map(tensor)), reference.preprocess(tensor))
    array = tensor.permute(0, 2, 3, 1).numpy()
    assert torch.equal(torch.as_tensor(as_map(array)), reference.preprocess(array))


def test_every_eight_bit_value_agrees() -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    reference = processing.VaeImageProcessor(do_convert_rgb=True, do_normalize=False)
    assert torch.equal(torch.as_tensor(as_map(image)), reference.preprocess(image))
