"""Stand-ins for the networks of controlnet-aux: whatever they are shown, they answer with what is true.

Each is put into controlnet-aux's own detector, as `Auxiliary.assemble` puts the network there.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from controlkit.preprocessors.auxiliary import auxiliary
from format_pictures.still_life import SIDE, still_life

SURE = 0.995
"""Certainty of an outline where there is one, in place of 1, whose logit is infinite."""
LEVELS = 5
"""Side outputs of HED, each half as large as the one before."""


class Truth(torch.nn.Module):
    """A network that computes nothing: a function, with a parameter that says where it is."""

    def __init__(self, answer: Callable[[torch.Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.answer = answer
        self.place = torch.nn.Parameter(torch.zeros(1))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, seen: torch.Tensor) -> Any:
        """The truth, of a picture of the scene's size."""
        if tuple(seen.shape[-2:]) != (SIDE, SIDE):
            raise ValueError(f"shown a picture of {tuple(seen.shape)}, the scene has {SIDE} pixels")
        return self.answer(seen)


def plane(values: Any) -> torch.Tensor:
    """(1, 1, 256, 256) of (256, 256)."""
    return torch.from_numpy(values.copy()).float()[None, None]


def outline() -> torch.Tensor:
    """(1, 1, 256, 256): where there are outlines."""
    return plane(still_life().outline)


def distance() -> torch.Tensor:
    """(1, 1, 256, 256): distances."""
    return plane(still_life().distance)


def logit(share: torch.Tensor) -> torch.Tensor:
    """What a network answers before the sigmoid."""
    return torch.logit(share.clamp(1 - SURE, SURE))


def hed() -> Any:
    """Side outputs: the brightest outline of each cell of 1, 2, 4, 8 and 16 pixels."""
    sides = [logit(functional.max_pool2d(outline(), 2**level)) for level in range(LEVELS)]
    return auxiliary("hed").HEDdetector(Truth(lambda _: sides))


def pidinet() -> Any:
    """The last output alone is used."""
    return auxiliary("pidi").PidiNetDetector(Truth(lambda _: [outline()]))


def teed() -> Any:
    """One output, as all its outputs would be."""
    return auxiliary("teed").TEEDdetector(Truth(lambda _: [logit(outline())]))


def lineart_realistic() -> Any:
    """Black lines on white."""
    network = Truth(lambda _: 1 - outline())
    return auxiliary("lineart").LineartDetector(network, network)


def lineart_anime() -> Any:
    """Black lines on white, from -1 to 1."""
    return auxiliary("lineart_anime").LineartAnimeDetector(Truth(lambda _: 1 - 2 * outline()))


def mlsd() -> Any:
    """At half the size: a sure centre for each straight border, and the way from it to both ends."""
    planes = torch.full((1, 9, SIDE // 2, SIDE // 2), -9.0)
    for segment in still_life().segments:
        ends = torch.tensor(segment).view(2, 2) / 2
        across, down = ends.mean(0).long().tolist()
        planes[0, 0, down, across] = 9
        planes[0, 1:5, down, across] = (ends - torch.tensor([across, down])).flatten()
    return Truth(lambda _: planes)


def midas() -> Any:
    """Inverse distance."""
    return Truth(lambda _: 1 / distance()[0])


def leres() -> Any:
    """Distance."""
    network = Truth(lambda _: None, depth_model=Truth(lambda _: distance()))
    return auxiliary("leres").LeresDetector(network, None)


def zoe() -> Any:
    """Distance."""
    network: Any = Truth(lambda _: None)
    network.infer = lambda _: distance()
    return network


def normal_bae() -> Any:
    """Normals to the left, up and towards the camera, and a certainty that is not used."""
    normal = torch.from_numpy(still_life().normal.copy()).permute(2, 0, 1)[None]
    answer = torch.cat([normal, torch.ones(1, 1, SIDE, SIDE)], 1)
    return auxiliary("normalbae").NormalBaeDetector(Truth(lambda _: [[answer]]))


def sam() -> Any:
    """For a point: the side or lid that it lies on, and twice the solid; of the floor itself."""
    from format_pictures.regions import masks_at

    side = 1024
    encoder = Truth(lambda _: None)
    network = auxiliary("segment_anything.modeling.sam").Sam(
        image_encoder=encoder, prompt_encoder=encoder, mask_decoder=encoder
    )
    network.image_encoder = _Called(lambda seen: seen, img_size=side)
    network.prompt_encoder = _Called(
        lambda points, **_: (points[0][:, 0] / side, None), get_dense_pe=lambda: None
    )
    network.mask_decoder = _Called(lambda sparse_prompt_embeddings, **_: masks_at(sparse_prompt_embeddings))
    return network


class _Called(torch.nn.Module):
    """A part of a network that is a function, with what else it is asked for."""

    def __init__(self, answer: Callable[..., Any], **also: Any) -> None:
        super().__init__()
        self.answer = answer
        self.__dict__.update(also)

    def forward(self, *given: Any, **named: Any) -> Any:
        """What the function says."""
        return self.answer(*given, **named)


def openpose() -> Any:
    """Heatmaps of joints and fields of limbs, at an eighth of what the network is shown."""
    from format_pictures.poses import fields

    module = auxiliary("open_pose")
    body = module.Body.__new__(module.Body)
    body.model = _Called(lambda seen: fields(seen.shape[2] // 8, seen.shape[3] // 8))
    body.model.place = torch.nn.Parameter(torch.zeros(1))
    return SimpleNamespace(whole=module.OpenposeDetector(body))
