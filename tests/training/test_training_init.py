"""Pretraining starts from an ImageNet MAE: which weights land where, which stay random, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from cavmae_sync_hf.model.errors_cavmae_sync import TrainingError
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncModel, sincos_positions
from cavmae_sync_hf.training import ModelArguments, build_for_pretraining

# 3 and 2 heads are nobody's published counts: a folder's own configuration must be asked for them.
WIDTH, PATCH, HEADS, DEPTH, DECODER_WIDTH = 24, 4, 3, 3, 16
# The small world of the tests: 8 mel bins by 12 steps are 2 x 3 patches.
SIZES = {"num_mel_bins": 8, "audio_length": 12}
KINDS = ("authors' file", "authors' file, adapted", "transformers folder")


@pytest.fixture(scope="module")
def mae() -> dict[str, Tensor]:
    """An MAE's tensors under its authors' names, all of them different."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    def module(name: str, out: int, *rest: int) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(out, *rest), f"{name}.bias": normal(out)}

    def layer(name: str, width: int, inner: int) -> dict[str, Tensor]:
        tensors = module(f"{name}.attn.qkv", 3 * width, width) | module(f"{name}.attn.proj", width, width)
        tensors |= module(f"{name}.mlp.fc1", inner, width) | module(f"{name}.mlp.fc2", width, inner)
        return tensors | module(f"{name}.norm1", width) | module(f"{name}.norm2", width)

    tensors = module("patch_embed.proj", WIDTH, 3, PATCH, PATCH) | {"cls_token": normal(1, 1, WIDTH)}
    tensors |= module("norm", WIDTH) | module("decoder_norm", DECODER_WIDTH)
    tensors |= module("decoder_embed", DECODER_WIDTH, WIDTH) | {"mask_token": normal(1, 1, DECODER_WIDTH)}
    tensors |= module("decoder_pred", 3 * PATCH**2, DECODER_WIDTH)
    for index in range(DEPTH):
        tensors |= layer(f"blocks.{index}", WIDTH, 2 * WIDTH)
    tensors |= layer("decoder_blocks.0", DECODER_WIDTH, 2 * DECODER_WIDTH)
    for name, width in (("pos_embed", WIDTH), ("decoder_pos_embed", DECODER_WIDTH)):
        # The class token's position comes first, and is zero.
        tensors[name] = torch.cat([torch.zeros(1, 1, width), sincos_positions((4, 4), width)], dim=1)
    return tensors


def write(kind: str, mae: dict[str, Tensor], folder: Path) -> str:
    """The MAE as it travels: its authors' file, what the CAV-MAE authors made of it, or a ViT-MAE folder."""
    if kind == "transformers folder":
        vit_mae(mae).save_pretrained(folder / "vit-mae")
        return str(folder / "vit-mae")
    if kind == "authors' file":
        torch.save({"model": mae}, folder / "mae_pretrain_full.pth")
        return str(folder / "mae_pretrain_full.pth")
    torch.save({f"module.{name}": tensor for name, tensor in adapted(mae).items()}, folder / "ori_mae_11.pth")
    return str(folder / "ori_mae_11.pth")


def adapted(mae: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the CAV-MAE authors' `adapt_vmae_weights.py` makes of an MAE."""
    tensors = {name: mae[name] for name in mae if name.startswith(("norm.", "decoder_", "mask_token"))}
    tensors = {
        name: tensor for name, tensor in tensors.items() if not name.startswith(("decoder_pred", "decoder_pos"))
    }
    joint = DEPTH - 1
    for name, tensor in mae.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            names = [f"blocks_a.{index}.{rest}", f"blocks_v.{index}.{rest}"]
            if int(index) == joint:
                part, _, kind = rest.partition(".")
                own = [f"{part}_{modality}.{kind}" for modality in "av"] if part in ("norm1", "norm2") else []
                names = [f"blocks_u.0.{target}" for target in (rest, *own)]
            tensors |= dict.fromkeys(names, tensor)
    for kind in ("weight", "bias"):
        tensors |= {f"norm_{modality}.{kind}": mae[f"norm.{kind}"] for modality in "av"}
        tensors[f"patch_embed_v.proj.{kind}"] = mae[f"patch_embed.proj.{kind}"]
        tensors[f"decoder_pred_v.{kind}"] = mae[f"decoder_pred.{kind}"]
        tensors[f"decoder_pred_a.{kind}"] = mae[f"decoder_pred.{kind}"][: PATCH**2]
    tensors["patch_embed_a.proj.weight"] = mae["patch_embed.proj.weight"].sum(1, keepdim=True)
    tensors["patch_embed_a.proj.bias"] = mae["patch_embed.proj.bias"]
    tensors |= {f"cls_token_{kind}": mae["cls_token"] for kind in ("a", "v", "av")}
    tensors |= {"pos_embed_v": mae["pos_embed"][:, 1:], "decoder_pos_embed_v": mae["decoder_pos_embed"][:, 1:]}
    tensors |= {"pos_embed_a": sincos_positions((2, 3), WIDTH), "decoder_pos_embed_a": sincos_positions((2, 3), 16)}
    # The authors' model held these before it was filled: drawn at random, or zero.
    generator = torch.Generator().manual_seed(1)
    for modality in "av":
        tensors[f"modality_{modality}"] = torch.randn(1, 1, WIDTH, generator=generator) * 0.02
        tensors[f"decoder_modality_{modality}"] = torch.randn(1, 1, DECODER_WIDTH, generator=generator) * 0.02
    return tensors


def vit_mae(mae: dict[str, Tensor]) -> ViTMAEForPreTraining:
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=2 * WIDTH,
            decoder_hidden_size=DECODER_WIDTH, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
            decoder_intermediate_size=2 * DECODER_WIDTH, image_size=16, patch_size=PATCH,
        )
    )  # fmt: skip
    renamed = {}
    for name, tensor in mae.items():
        target = name.replace("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
        target = target.replace("cls_token", "vit.embeddings.cls_token")
        if name == "pos_embed":
            target = "vit.embeddings.position_embeddings"
        if name.startswith("norm."):
            target = f"vit.layernorm.{name.removeprefix('norm.')}"
        if name.startswith("decoder_blocks."):
            target = name.replace("decoder_blocks.", "decoder.decoder_layers.")
        elif name.startswith("blocks."):
            target = name.replace("blocks.", "vit.layers.")
        elif name.startswith(("decoder_", "mask_token")):
            target = f"decoder.{name}"
        target = target.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        target = target.replace("attn.proj", "attention.o_proj")
        if "attn.qkv" in target:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            renamed |= {target.replace("attn.qkv", f"attention.{part}_proj"): values for part, values in parts}
        else:
            renamed[target] = tensor
    model.load_state_dict(renamed)
    return model


def build(kind: str, mae: dict[str, Tensor], folder: Path, **arguments: Any) -> tuple[Any, Any]:
    settings = dict(SIZES)
    if kind != "transformers folder":  # a file does not tell
        settings |= {"num_attention_heads": HEADS, "decoder_num_attention_heads": 2}
    settings |= arguments.pop("model_config", {})
    source = write(kind, mae, folder)
    return build_for_pretraining(ModelArguments(init_from=source, model_config=settings, **arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_mae__every_weight_lands_where_the_authors_put_it(kind, mae, tmp_path):
    model, _ = build(kind, mae, tmp_path)
    state = model.state_dict()
    projection = mae["patch_embed.proj.weight"]
    assert torch.equal(state["model.video_tower.embeddings.projection.weight"], projection)
    # Published: a grey frame's answer, the sum over the three colours (not their mean).
    expected = projection[:, 0] + projection[:, 1] + projection[:, 2]
    torch.testing.assert_close(state["model.audio_tower.embeddings.projection.weight"][:, 0], expected)
    for modality in ("audio", "video"):
        tower = f"model.{modality}_tower"
        assert torch.equal(state[f"{tower}.embeddings.projection.bias"], mae["patch_embed.proj.bias"])
        assert torch.equal(state[f"{tower}.embeddings.global_token"], mae["cls_token"])
        for index in range(DEPTH - 1):
            check_layer(state, f"{tower}.layers.{index}", mae, f"blocks.{index}")
        assert f"{tower}.layers.{DEPTH - 1}.mlp.fc1.weight" not in state
        assert torch.equal(state[f"model.norms.{modality}.weight"], mae["norm.weight"])
    for norm in ("audio", "video", "fused"):
        check_layer(state, "model.joint_layers.0", mae, f"blocks.{DEPTH - 1}", f".{norm}")
    assert torch.equal(state["model.norms.fused.bias"], mae["norm.bias"])
    check_layer(state, "decoder.layers.0", mae, "decoder_blocks.0")
    assert torch.equal(state["decoder.embed.weight"], mae["decoder_embed.weight"])
    assert torch.equal(state["decoder.mask_token"], mae["mask_token"])
    assert torch.equal(state["decoder.predictions.video.weight"], mae["decoder_pred.weight"])
    assert torch.equal(state["decoder.predictions.audio.bias"], mae["decoder_pred.bias"][: PATCH**2])


@pytest.mark.parametrize("source", ["published", "own"])
def test_single_frames__become_several_that_see_a_still_alike(source, mae, tmp_path):
    single, processor = build(KINDS[0], mae, tmp_path)
    settings = {"frames_per_moment": 3, "frame_step": 0.05}
    if source == "published":
        model, processor = build(KINDS[0], mae, tmp_path, model_config=settings)
    else:
        single.save_pretrained(tmp_path / "own")
        processor.save_pretrained(tmp_path / "own")
        arguments = ModelArguments(init_from=str(tmp_path / "own"), model_config=settings)
        model, processor = build_for_pretraining(arguments)
    assert (processor.video_processor.frames_per_moment, processor.video_processor.frame_step) == (3, 0.05)
    assert model.config.frame_step == 0.05
    model.save_pretrained(tmp_path / "several")
    again = CavMaeSyncModel.from_pretrained(tmp_path / "several").eval()
    frame = torch.randn(1, 2, 3, single.config.image_size, single.config.image_size)
    with torch.no_grad():
        before, seen = (
            single.model.eval().get_video_features(frame),
            again.get_video_features(frame.repeat(1, 1, 3, 1, 1)),
        )
    torch.testing.assert_close(seen.last_hidden_state, before.last_hidden_state)
    with pytest.raises(TrainingError, match="single frames, .* several less their mean; leave out `subtract"):
        build(KINDS[0], mae, tmp_path, model_config=settings | {"subtract_mean_frame": True})
    with pytest.raises(ValueError, match="several: `frames_per_moment` is 3, and weights of several .* those of 5"):
        build_for_pretraining(
            ModelArguments(init_from=str(tmp_path / "several"), model_config={"frames_per_moment": 5})
        )


def check_layer(state: dict[str, Tensor], ours: str, mae: dict[str, Tensor], theirs: str, norm: str = "") -> None:
    for part, values in zip("qkv", mae[f"{theirs}.attn.qkv.weight"].chunk(3), strict=True):
        assert torch.equal(state[f"{ours}.attention.{part}_proj.weight"], values)
    for name, target in (("attn.proj", "attention.o_proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"),
                         ("norm1", f"layernorm_before{norm}"), ("norm2", f"layernorm_after{norm}")):  # fmt: skip
        for kind in ("weight", "bias"):
            assert torch.equal(state[f"{ours}.{target}.{kind}"], mae[f"{theirs}.{name}.{kind}"]), target


@pytest.mark.parametrize("kind", KINDS)
def test_mae__what_it_does_not_have_is_random_and_small(kind, mae, tmp_path):
    model, _ = build(kind, mae, tmp_path)
    state = model.state_dict()
    new = [f"model.{modality}_tower.embeddings.{token}" for modality in ("audio", "video")
           for token in ("modality_embedding", "register_tokens")]  # fmt: skip
    new += [f"decoder.modality_embeddings.{modality}" for modality in ("audio", "video")]
    for name in new:
        values = state[name]
        # initializer_range is 0.02; the smallest of these holds 16 values, whose deviation is within a factor of 2.
        assert 0.01 < values.std() < 0.04 and len(values.unique()) == values.numel(), name
    drawn = [state[name].flatten()[:16] for name in new]
    assert all(not torch.equal(one, other) for place, one in enumerate(drawn) for other in drawn[:place])


@pytest.mark.parametrize("kind", KINDS)
def test_mae__sizes_heads_and_processor(kind, mae, tmp_path):
    model, processor = build(kind, mae, tmp_path, attention="eager")
    config = model.config
    assert (config.hidden_size, config.num_modality_layers, config.num_joint_layers) == (WIDTH, DEPTH - 1, 1)
    assert (config.num_attention_heads, config.decoder_num_attention_heads) == (HEADS, 2)
    assert (config.use_global_tokens, config.num_register_tokens) == (True, 8)
    assert (config.image_size, config.audio_length, config.num_mel_bins) == (16, 12, 8)
    assert config._attn_implementation == "eager"
    # Nothing was trained on the published alignment yet.
    extractor = processor.feature_extractor
    assert (extractor.alignment, extractor.audio_length, extractor.num_mel_bins) == ("time", 12, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_mae__plain_cav_mae_starts_from_it_too(kind, mae, tmp_path):
    model, processor = build(
        kind, mae, tmp_path, family="cav_mae", model_config={"audio_length": 24, "num_frames": 10},
        processor={"alignment": "reference"},
    )  # fmt: skip
    config = model.config
    assert (config.use_global_tokens, config.num_register_tokens) == (False, 0)
    assert (config.contrastive_loss_weight, config.num_frames, config.audio_length) == (0.01, 10, 24)
    assert not any("global_token" in name or "register" in name for name in model.state_dict())
    check_layer(model.state_dict(), "model.audio_tower.layers.1", mae, "blocks.1")
    assert processor.feature_extractor.alignment == "reference"


def test_mae__trains(mae, tmp_path):
    """The towers hold the same weights and no tensor is shared: each learns its own."""
    model, _ = build("transformers folder", mae, tmp_path)
    assert len({value.data_ptr() for value in model.parameters()}) == len(list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    inputs = {
        "pixel_values_videos": torch.randn(4, 1, 3, 16, 16),
        "input_values": torch.randn(4, 1, 12, 8),
    }
    noise = {"video_noise": torch.rand(4, 1, 16), "audio_noise": torch.rand(4, 1, 6)}
    before = model(**inputs, **noise).loss
    before.backward()
    optimizer.step()
    assert model(**inputs, **noise).loss < before
    towers = [model.model.audio_tower, model.model.video_tower]
    first, second = (tower.layers[0].mlp.fc1.weight for tower in towers)
    assert not torch.equal(first, second)


def test_mae__without_a_decoder_is_refused(mae, tmp_path):
    whole = vit_mae(mae)
    encoder = ViTMAEModel(whole.config)
    encoder.load_state_dict(whole.vit.state_dict())
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="encoder.*take a file with a decoder"):
        build_for_pretraining(ModelArguments(init_from=str(tmp_path / "encoder"), model_config=dict(SIZES)))


def test_mae__contradicting_sizes_and_broken_files_are_refused_by_name(mae, tmp_path):
    path = write("authors' file", mae, tmp_path)
    with pytest.raises(ValueError, match=r"mae_pretrain_full\.pth.*hidden_size.*24.*48"):
        build_for_pretraining(ModelArguments(init_from=path, model_config=SIZES | {"hidden_size": 48}))
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page\.pth.*web page"):
        build_for_pretraining(ModelArguments(init_from=str(tmp_path / "page.pth")))
