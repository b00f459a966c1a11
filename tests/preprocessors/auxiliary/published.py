"""Weight files in the layouts in which they are published, with random weights."""

from __future__ import annotations

import contextlib
import functools
import io
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data

from controlkit.preprocessors.auxiliary import auxiliary
from controlkit.preprocessors.base import Pixels

Tensors = dict[str, torch.Tensor]

HELD = 2.4
"""What makes torch's own random weights keep the size of what passes through, from layer to layer."""


def photo(height: int, width: int) -> Pixels:
    """(height, width, 3) uint8: the astronaut."""
    return np.array(Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.LANCZOS))


def pixels(image: Pixels) -> torch.Tensor:
    """(1, 3, height, width) of 0 to 255."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()


def spread(network: Any, bias: float = 0.0, gain: float = 1.0) -> Any:
    """Random biases and statistics, so that nothing in a network is at its neutral start."""
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand_like(tensor))
        elif name.endswith(("bias", "running_mean")):
            tensor.add_(bias * torch.randn_like(tensor))
        elif tensor.ndim > 1:
            tensor.mul_(gain)
    return network


def hed() -> Any:
    network = spread(auxiliary("hed").ControlNetHED_Apache2(), 0.1, 1.7)
    network.norm.data += 120
    return network


def pidinet() -> Any:
    return spread(auxiliary("pidi").pidinet(), 1.0, 1.8)


def teed() -> Any:
    return spread(auxiliary("teed").TED(), 1.0, 1.0)


def lineart() -> Any:
    return spread(auxiliary("lineart").Generator(3, 1, 3), 0.1, 2.0)


def lineart_anime() -> Any:
    norm = functools.partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    network = auxiliary("lineart_anime").UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False)
    return spread(network, 0.1, 2.0)


def mlsd() -> Any:
    return spread(auxiliary("mlsd.models.mbv2_mlsd_large").MobileV2_MLSD_Large(), 0.5, 1.4)


def midas() -> Any:
    network = auxiliary("midas.midas.dpt_depth").DPTDepthModel(
        path=None, backbone="vitb_rn50_384", non_negative=True
    )
    spread(network, 0.1, 1.0)
    network.scratch.output_conv[4].bias.data += 1
    return network


def leres() -> Any:
    module = auxiliary("leres.leres.multi_depth_model_woauxi")
    return spread(module.RelDepthModel(backbone="resnext101"), 0.1, 1.5)


def zoe() -> Any:
    config = auxiliary("zoe.zoedepth.utils.config").get_config("zoedepth", "infer")
    return spread(
        auxiliary("zoe.zoedepth.models.zoedepth.zoedepth_v1").ZoeDepth.build_from_config(config), 0.1
    )


def normal_bae() -> Any:
    settings = types.SimpleNamespace(
        mode="client", architecture="BN", pretrained="scannet", sampling_ratio=0.4, importance_ratio=0.7
    )
    return spread(auxiliary("normalbae.nets.NNET").NNET(settings), 0.1, 1.5)


def body() -> Any:
    """A few joints of each kind on a photograph, and limbs that all point the same way: bodies are found."""
    network = spread(auxiliary("open_pose.model").bodypose_model(), 0.1, HELD).eval()
    limbs, joints = network.model6_1.Mconv7_stage6_L1, network.model6_2.Mconv7_stage6_L2
    limbs.weight.data *= 0.1
    limbs.bias.data.normal_()
    joints.bias.data[:] = 100  # an activation follows; this is above it
    _, answer = network(pixels(photo(184, 184)[..., ::-1]) / 256 - 0.5)
    size = 0.15 / answer.std((0, 2, 3)).clamp(min=1e-6)
    joints.weight.data *= size[:, None, None, None]
    joints.bias.data[:] = (100 - answer.mean((0, 2, 3))) * size - 0.125
    return network


def hand() -> Any:
    return spread(auxiliary("open_pose.model").handpose_model(), 0.1, HELD)


def face() -> Any:
    return spread(auxiliary("open_pose.face").FaceNet(), 0.1, HELD)


def sam(model: str) -> Any:
    network = auxiliary("segment_anything.build_sam").sam_model_registry[model](checkpoint=None)
    return spread(network, 0.05)


def plain(state: Tensors) -> Any:
    return state


def parallel(state: Tensors) -> Any:
    """As ``torch.nn.DataParallel`` names them."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


def trained(state: Tensors) -> Any:
    """As training code saves them, with what it needs to go on."""
    return {"epoch": 20, "state_dict": parallel(state), "optimizer": {"state": {}, "param_groups": []}}


def as_model(state: Tensors) -> Any:
    return {"model": parallel(state), "optimizer": None, "epoch": 5}


def with_indices(state: Tensors) -> Any:
    """ZoeDepth's, which older versions of timm saved with the indices of relative positions."""
    attention = [name for name in state if name.endswith("relative_position_bias_table")]
    indices = {f"{name.rpartition('.')[0]}.relative_position_index": torch.zeros(3) for name in attention}
    return {"model": {**state, **indices}, "optimizer": None, "epoch": 5}


def as_depth_model(state: Tensors) -> Any:
    return {"depth_model": parallel(state), "scheduler": {}, "step": 7}


def without_block(state: Tensors) -> Any:
    """As OpenPose's files have it: without the name of the block that the network has each layer in."""
    return {name.partition(".")[2]: tensor for name, tensor in state.items()}


LAYOUTS: dict[str, tuple[Callable[[], Any], Callable[[Tensors], Any]]] = {
    "ControlNetHED.pth": (hed, plain),
    "table5_pidinet.pth": (pidinet, trained),
    "5_model.pth": (teed, plain),
    "Anyline/MTEED.pth": (teed, plain),
    "sk_model.pth": (lineart, plain),
    "sk_model2.pth": (lineart, plain),
    "netG.pth": (lineart_anime, parallel),
    "mlsd_large_512_fp32.pth": (mlsd, plain),
    "dpt_hybrid-midas-501f0c75.pt": (midas, plain),
    "res101.pth": (leres, as_depth_model),
    "ZoeD_M12_N.pt": (zoe, with_indices),
    "scannet.pt": (normal_bae, as_model),
    "body_pose_model.pth": (body, without_block),
    "hand_pose_model.pth": (hand, without_block),
    "facenet.pth": (face, plain),
    "mobile_sam.pt": (functools.partial(sam, "vit_t"), plain),
    "checkpoints/sam_vit_b_01ec64.pth": (functools.partial(sam, "vit_b"), plain),
}


def write(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a file as it is published below a folder, with random weights."""
    build, layout = LAYOUTS[name]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        state = {key: tensor.clone() for key, tensor in build().state_dict().items()}
        torch.save(layout(state), path)
    return path
