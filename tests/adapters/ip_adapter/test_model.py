"""An IP-Adapter from its files: every projection, in every container, saved and read back, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import controlkit as ck
from controlkit.adapters.ip_adapter import IPAdapterConfig
from controlkit.errors import ConfigError, HintError, Incomplete, ParameterError, ShapeMismatch, Unsupported
from tests import tiny
from tests.adapters.ip_adapter import peers
from tests.golden_cases import assert_equal


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embedding(kind: peers.Kind, rows: int = 2, hidden: int = peers.HIDDEN) -> Tensor:
    return draw(rows, peers.PROJECTED) if kind == "plain" else draw(rows, 7, hidden)


def projected(unet: Any, flat: dict[str, Tensor], given: Tensor) -> Tensor:
    """The tokens by diffusers."""
    projection = unet._convert_ip_adapter_image_proj_to_diffusers(peers.nested(flat)["image_proj"])
    return projection.requires_grad_(False)(given)


# --- the network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("kind", peers.KINDS)
def test_tokens_keys_and_values_are_those_of_diffusers(kind: peers.Kind, family: tiny.Family) -> None:
    unet = tiny.unet(family)
    flat, given = peers.state(unet, kind), embedding(kind)
    module = ck.load(flat)
    assert isinstance(module, ck.IPAdapter)
    tokens = module.tokens(given)
    assert_equal(tokens, projected(unet, flat, given))
    keys, values = module(given)
    unet._load_ip_adapter_weights([peers.nested(flat)])
    processors = [p for name, p in unet.attn_processors.items() if name.endswith("attn2.processor")]
    assert len(processors) == len(keys) == len(values)
    for processor, key, value in zip(processors, keys, values, strict=True):
        assert_equal(key, processor.to_k_ip[0](tokens).detach())
        assert_equal(value, processor.to_v_ip[0](tokens).detach())


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 24, "inner": 64, "queries": 3, "hidden": 10, "ff": 4},
        {"width": 64, "inner": 192, "queries": 16, "hidden": 48, "ff": 4},
    ],
)
def test_all_sizes_of_a_resampler_are_read_from_shapes(sizes: dict[str, int]) -> None:
    unet = tiny.unet("sd2")
    flat = peers.state(unet, "plus", **sizes)
    module = ck.load(flat)
    assert isinstance(module, ck.IPAdapter)
    given = embedding("plus", hidden=sizes["hidden"])
    assert_equal(module.tokens(given), projected(unet, flat, given))
    assert (module.base, module.config.dim_head) == ("sd2", 64)


def _resample(flat: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """The resampler written out, with a head count of one's own and attention by the softmax."""
    part = peers.nested(flat)["image_proj"]

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = part[f"{name}.weight"], part[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ part[f"{name}.weight"].T + part.get(f"{name}.bias", torch.zeros(()))

    latents = part["latents"].expand(len(x), -1, -1)
    x = linear("proj_in", x)
    for at in (f"layers.{i}" for i in range(2)):
        asking = norm(f"{at}.0.norm2", latents)
        asked = torch.cat([norm(f"{at}.0.norm1", x), asking], dim=1)
        q, (k, v) = linear(f"{at}.0.to_q", asking), linear(f"{at}.0.to_kv", asked).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        latents = linear(f"{at}.0.to_out", (weights @ v).transpose(1, 2).flatten(2)) + latents
        inner = torch.nn.functional.gelu(linear(f"{at}.1.1", norm(f"{at}.1.0", latents)))
        latents = linear(f"{at}.1.3", inner) + latents
    return norm("norm_out", linear("proj_out", latents))


@pytest.mark.parametrize(
    ("inner", "config", "heads"),
    [(128, None, 2), (128, {"heads": 4}, 4), (24, {"dim_head": 8}, 3), (24, {"heads": 6, "dim_head": 4}, 6)],
)
def test_heads_in_the_words_of_the_original(inner: int, config: dict[str, int] | None, heads: int) -> None:
    flat = peers.state(tiny.unet("sd1"), "plus", inner=inner, depth=2, ff=3, width=32)
    constructor = {
        "dim": 32,
        "depth": 2,
        "num_queries": 6,
        "embedding_dim": 24,
        "output_dim": 768,
        "ff_mult": 3,
    }
    for given in (config, {**constructor, **(config or {})}):
        module = ck.load(flat, config=given)
        assert isinstance(module, ck.IPAdapter)
        assert module.config.heads == heads
        assert_equal(module.tokens(embedding("plus")), _resample(flat, embedding("plus"), heads))


def test_other_words_of_the_original() -> None:
    unet = tiny.unet("sd1")
    config = {"cross_attention_dim": 768, "clip_embeddings_dim": 16, "clip_extra_context_tokens": 4}
    module = ck.load(peers.state(unet, "plain"), config=config)
    assert isinstance(module, ck.IPAdapter)
    assert module.config.num_tokens == 4
    with pytest.raises(ShapeMismatch):
        ck.load(peers.state(unet, "plain"), config={"clip_embeddings_dim": 17})
    with pytest.raises(ConfigError, match="another name"):
        ck.load(peers.state(unet, "plus"), config={"num_queries": 6, "num_tokens": 5})
    with pytest.raises(ConfigError, match="heads"):
        ck.load(peers.state(unet, "plus", inner=24))
    with pytest.raises(ConfigError, match="only keys that are known"):
        ck.load(peers.state(unet, "plus"), config={"rotary": True})
    with pytest.raises(Unsupported, match="apply_pos_emb"):
        ck.load(peers.state(unet, "plus"), config={"apply_pos_emb": True})


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", peers.KINDS)
def test_both_containers(kind: peers.Kind, tmp_path: Path) -> None:
    flat = peers.state(tiny.unet("sd1"), kind)
    torch.save(peers.nested(flat), tmp_path / "ip-adapter_sd15.bin")
    save_file(flat, tmp_path / "a file.safetensors")
    expected = ck.load(flat)
    assert isinstance(expected, ck.IPAdapter)
    for name in ("ip-adapter_sd15.bin", "a file.safetensors"):
        module = ck.load(tmp_path / name)
        assert isinstance(module, ck.IPAdapter)
        assert not module.notes
        assert torch.equal(module.tokens(embedding(kind)), expected.tokens(embedding(kind)))
        info = ck.inspect(tmp_path / name)
        assert (info.kind, info.base, info.layout, info.loadable) == (
            "ip-adapter",
            "sd1",
            "ip-original",
            True,
        )
        assert info.config["projection"] == module.config.projection
    folder = ck.load(tmp_path, weight_name="a file.safetensors")
    assert folder.kind == "ip-adapter"


@pytest.mark.parametrize("kind", peers.KINDS)
def test_a_saved_folder_is_read_by_both(kind: peers.Kind, tmp_path: Path) -> None:
    pipe = peers.pipeline()
    flat = peers.state(pipe.unet, kind, inner=128)
    module = ck.load(flat, config={"heads": 4} if kind == "plus" else None)
    assert isinstance(module, ck.IPAdapter)
    control = module.on(peers.photo(1), encoder=pipe.image_encoder)
    with ck.attach(pipe, control):
        expected = peers.call(pipe)
    module.save(tmp_path / "folder")
    module.save(tmp_path / "a.safetensors", layout="original")
    for source in (tmp_path / "folder", tmp_path / "folder" / "diffusion_pytorch_model.safetensors"):
        again = ck.load(source)
        assert isinstance(again, ck.IPAdapter)
        assert again.config == module.config
        with ck.attach(pipe, again.on(peers.photo(1), encoder=pipe.image_encoder)):
            assert torch.equal(peers.call(pipe), expected)
    assert ck.load(tmp_path / "a.safetensors").state_dict().keys() == flat.keys()
    if kind != "plus":  # whose heads diffusers takes to be 64 wide
        pipe.load_ip_adapter(
            str(tmp_path / "folder"),
            subfolder="",
            weight_name="diffusion_pytorch_model.safetensors",
            image_encoder_folder=None,
        )
        assert torch.equal(peers.call(pipe, ip_adapter_image=peers.photo(1)), expected)


def test_a_saved_resampler_is_read_by_diffusers(tmp_path: Path) -> None:
    pipe = peers.pipeline()
    module = peers.load(pipe.unet, "plus")
    with ck.attach(pipe, module.on(peers.photo(1), encoder=pipe.image_encoder)):
        expected = peers.call(pipe)
    module.save(tmp_path)
    name = "diffusion_pytorch_model.safetensors"
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=name, image_encoder_folder=None)
    assert torch.equal(peers.call(pipe, ip_adapter_image=peers.photo(1)), expected)


@pytest.mark.parametrize(
    "missing", ["ip_adapter.7.to_k_ip.weight", "ip_adapter.5.", "image_proj.norm_out.bias"]
)
def test_incomplete_files_are_refused(missing: str) -> None:
    flat = peers.state(tiny.unet("sd1"), "plus")
    cut = {name: tensor for name, tensor in flat.items() if not name.startswith(missing)}
    with pytest.raises(Incomplete):
        ck.load(cut)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"image_proj.norm.weight": (768,), "image_proj.proj.0.weight": (1024, 512)}, "FaceID"),
        ({"image_proj.perceiver_resampler.proj_in.weight": (8, 8)}, "FaceID plus"),
        ({"image_proj.pos_emb.weight": (257, 24)}, "pos_emb"),
        ({"ip_adapter.1.to_k_ip.bias": (16,)}, "bias"),
    ],
)
def test_variants_are_refused_by_name(extra: dict[str, tuple[int, ...]], said: str) -> None:
    flat = peers.state(tiny.unet("sd1"), "plus")
    with pytest.raises(Unsupported, match=said):
        ck.load({**flat, **{name: torch.zeros(shape) for name, shape in extra.items()}})


def test_untrained_weights_are_remarked_on() -> None:
    flat = peers.state(tiny.unet("sd1"), "plain")
    zeros = {name: t * 0 if "to_v_ip" in name else t for name, t in flat.items()}
    with pytest.warns(ck.ControlKitWarning, match="no effect"):
        ck.load(zeros)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
def test_published_sizes(kind: str) -> None:
    """Numbers of weights of ip-adapter_sd15, ip-adapter-plus_sd15 and ip-adapter-full-face_sd15."""
    widths = [w for w in (320, 640, 1280) for _ in range(2)] + [w for w in (1280, 640, 320) for _ in range(3)]
    config = {
        "plain": IPAdapterConfig(),
        "plus": IPAdapterConfig(projection="resampler", embedding_dim=1280, num_tokens=16),
        "full": IPAdapterConfig(projection="mlp", embedding_dim=1280),
    }[kind]
    module = ck.IPAdapter(config, [*widths, 1280])
    layers = 2 * 768 * sum([*widths, 1280])
    count = sum(p.numel() for p in module.parameters())
    assert layers == 19169280
    assert count - layers == {"plain": 3150336, "plus": 29918208, "full": 2625024}[kind]
    loaded = ck.load(module.state_dict())
    assert isinstance(loaded, ck.IPAdapter)
    assert (loaded.config, loaded.widths, loaded.base) == (
        module.config if kind != "full" else loaded.config,
        module.widths,
        "sd1",
    )


# --- binding ------------------------------------------------------------------------------------------


def control_of(kind: peers.Kind, *args: Any, **options: Any) -> Any:
    return peers.load(tiny.unet("sd1"), kind).on(*args, **options)


def test_the_unconditional_embedding(tmp_path: Path) -> None:
    encoder = peers.encoder()
    encoder.save_pretrained(tmp_path)
    by_path = control_of("plus", peers.photo(1), encoder=tmp_path).images
    plain = control_of("plain", peers.photo(1), encoder=encoder)
    assert not plain.images.unconditional.any()
    plus = control_of("plus", peers.photo(1), encoder=encoder)
    blank = torch.zeros(1, 3, peers.PIXELS, peers.PIXELS)
    expected = encoder(blank, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(plus.images.unconditional[0], expected)
    assert not plus.images.notes
    assert torch.equal(by_path.embedding, plus.images.embedding)
    assert torch.equal(by_path.unconditional, plus.images.unconditional)
    given = control_of("plus", draw(1, 7, peers.HIDDEN))
    assert not given.images.unconditional.any()
    assert "zeros" in given.images.notes[0]
    named = control_of("plus", draw(1, 7, peers.HIDDEN), unconditional=draw(1, 7, peers.HIDDEN, seed=1))
    assert torch.equal(named.images.unconditional[0], draw(1, 7, peers.HIDDEN, seed=1))


def test_the_same_pictures_in_every_form() -> None:
    encoder = peers.encoder()
    photos = [peers.photo(seed) for seed in range(4)]
    vectors = [control_of("plain", photo, encoder=encoder).images.embedding[0, 0] for photo in photos]
    forms: list[tuple[Any, tuple[int, int]]] = [
        (photos, (4, 1)),
        ([photos[:2], photos[2:]], (2, 2)),
        ([photos], (1, 4)),
        (torch.stack(vectors), (4, 1)),
        (torch.stack(vectors).reshape(2, 2, -1), (2, 2)),
        (vectors, (4, 1)),
        ([vectors[:2], vectors[2:]], (2, 2)),
        ([[vector[None] for vector in vectors]], (1, 4)),
    ]
    for form, (prompts, pictures) in forms:
        images = control_of("plain", form, encoder=encoder).images
        assert images.embedding.shape == (prompts, pictures, peers.PROJECTED)
        assert_equal(images.embedding.flatten(0, 1), torch.stack(vectors))
        assert images.unconditional.shape == (1, pictures, peers.PROJECTED)
    assert control_of("plain", vectors[0]).images.embedding.shape == (1, 1, peers.PROJECTED)
    tokens = [draw(7, peers.HIDDEN, seed=seed) for seed in range(4)]
    images = control_of("plus", [tokens[:2], tokens[2:]]).images
    assert torch.equal(images.embedding, torch.stack(tokens).reshape(2, 2, 7, -1))


@pytest.mark.parametrize(
    ("kind", "given", "options", "error"),
    [
        ("plain", torch.zeros(1, 17), {}, HintError),
        ("plain", torch.full((1, 16), float("nan")), {}, HintError),
        ("plain", torch.zeros(0, 16), {}, HintError),
        ("plus", torch.zeros(1, 16), {}, HintError),
        ("plain", torch.zeros(15), {}, HintError),
        ("plain", [[torch.zeros(16)], [torch.zeros(16), torch.zeros(16)]], {}, HintError),
        ("plain", [torch.zeros(16), [torch.zeros(16)]], {}, HintError),
        ("plain", [[]], {}, HintError),
        ("plain", torch.zeros(1, 16), {"unconditional": torch.zeros(1, 15)}, HintError),
        ("plain", torch.zeros(1, 16), {"unconditional": "zeros"}, HintError),
        ("plus", torch.zeros(1, 7, 24), {"unconditional": torch.zeros(1, 8, 24)}, HintError),
        ("plain", peers.photo(1), {}, ParameterError),
        ("plain", peers.photo(1), {"encoder": "not/there at all"}, ParameterError),
        ("plain", peers.photo(1), {"encoder": "other width"}, ParameterError),
        ("plain", torch.zeros(1, 16), {"scale": "strong"}, ParameterError),
        ("plain", torch.zeros(1, 16), {"start": 0.5, "end": 0.5}, ParameterError),
        ("plain", torch.zeros(1, 16), {"mode": "guess"}, ParameterError),
        ("plain", torch.zeros(1, 16), {"mask": "nowhere.png"}, HintError),
    ],
)
def test_what_cannot_be_bound(
    kind: peers.Kind, given: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    if options.get("encoder") == "other width":
        options = {"encoder": peers.encoder(projected=20)}
    with pytest.raises(error):
        control_of(kind, given, **options)


def test_tokens_refuse_other_shapes() -> None:
    module = peers.load(tiny.unet("sd1"), "plus")
    with pytest.raises(ParameterError, match="penultimate"):
        module.tokens(torch.zeros(1, peers.HIDDEN))
