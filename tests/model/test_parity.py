# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The converted models against outputs of the published CAV-MAE and CAV-MAE Sync code (see `fixtures/README.md`).

Both sides compute in float32 with different orders of summation, so values agree to a few units of its rounding
through twelve layers; the tolerance is relative to the largest value of a tensor.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cavmae_sync_hf.convert import convert_state_dict

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOLERANCE = 1e-5
# A gradient sums over all tokens and samples, forward and backward.
GRADIENT_TOLERANCE = 2e-5
CASES = {case["case"]: case for case in json.loads((FIXTURES / "cases.json").read_text())}


def expected_of(case: str) -> dict[str, torch.Tensor]:
    files = sorted(FIXTURES.glob(f"{case}.safetensors")) + sorted(FIXTURES.glob(f"{case}_[io]*puts.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def converted(case: str, **overrides):
    """The case's model; of its settings only the head counts are given, which no tensor tells."""
    published = torch.load(FIXTURES / f"{case}.pth", weights_only=True)
    heads = {name: CASES[case][name] for name in CASES[case] if name.endswith("_attention_heads")}
    conversion = convert_state_dict(published, heads | overrides)
    model = conversion.model_class(conversion.config).eval()
    model.load_state_dict(conversion.state_dict)
    return model


def relative_error(ours: torch.Tensor, published: torch.Tensor) -> float:
    assert ours.shape == published.shape
    return ((ours.detach() - published).abs().max() / published.abs().max()).item()


def inputs_of(published: dict[str, torch.Tensor], noise: bool = False) -> dict[str, torch.Tensor]:
    """The case's samples as clips of one frame."""
    inputs = {
        "pixel_values_videos": published["pixel_values"].unsqueeze(1),
        "input_values": published["input_values"].unsqueeze(1),
    }
    if noise:
        inputs |= {
            "video_noise": published["noise_visual"].unsqueeze(1),
            "audio_noise": published["noise_audio"].unsqueeze(1),
        }
    return inputs


@pytest.fixture(scope="module", params=["sync", "cavmae"])
def case(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def published(case):
    return expected_of(case)


@pytest.fixture(scope="module")
def model(case):
    return converted(case)


@pytest.fixture(scope="module")
def step(model, published):
    """One pretraining step at the given noise, with gradients."""
    output = model(**inputs_of(published, noise=True))
    output.loss.backward()
    return output


def test_config__is_inferred(case, model):
    expected, config = CASES[case], model.config
    for name in ("audio_length", "hidden_size", "decoder_hidden_size", "decoder_num_hidden_layers"):
        assert getattr(config, name) == expected[name], name
    assert config.num_register_tokens == expected["num_register_tokens"]
    assert config.use_global_tokens == expected["global_token"]
    assert config.contrastive_loss_weight == expected["contrast_loss_weight"]
    assert config.reconstruction_loss_weight == expected["mae_loss_weight"]
    assert config.norm_pix_loss == expected["norm_pix_loss"]
    assert config.temperature == expected["temperature"]
    assert config.audio_mask_ratio == config.video_mask_ratio == expected["mask_ratio"]


@torch.no_grad()
def test_features__patch_tokens(model, published):
    output = model.model(**inputs_of(published))
    assert relative_error(output.audio_patch_embeds[:, 0], published["audio_patch_tokens"]) < TOLERANCE
    assert relative_error(output.video_patch_embeds[:, 0], published["visual_patch_tokens"]) < TOLERANCE


@torch.no_grad()
def test_features__embeddings(case, model, published):
    output = model.model(**inputs_of(published))
    for ours, modality in ((output.audio_embeds, "audio"), (output.video_embeds, "visual")):
        if case == "sync":
            token = published[f"{modality}_global_token"]
        else:
            token = published[f"{modality}_patch_tokens"].mean(dim=1)
        assert relative_error(ours[:, 0], torch.nn.functional.normalize(token, dim=-1)) < TOLERANCE


@torch.no_grad()
def test_features__samples_as_frames_of_one_clip(model, published):
    inputs = {name: values.transpose(0, 1) for name, values in inputs_of(published).items()}
    output = model.model(**inputs)
    assert relative_error(output.audio_patch_embeds[0], published["audio_patch_tokens"]) < TOLERANCE
    assert relative_error(output.video_patch_embeds[0], published["visual_patch_tokens"]) < TOLERANCE


def test_pretraining__masks_are_equal(step, published):
    assert torch.equal(step.audio_mask[:, 0], published["mask_audio"])
    assert torch.equal(step.video_mask[:, 0], published["mask_visual"])


def test_pretraining__losses(model, step, published):
    weighted = model.config.contrastive_loss_weight * step.contrastive_loss
    reconstruction = step.audio_reconstruction_loss + step.video_reconstruction_loss
    for ours, name in (
        (step.loss, "loss"),
        (weighted, "loss_contrastive_weighted"),
        (step.audio_reconstruction_loss, "loss_mae_audio"),
        (step.video_reconstruction_loss, "loss_mae_visual"),
        (reconstruction, "loss_mae"),
    ):
        assert relative_error(ours.reshape(1), published[name]) < TOLERANCE, name


def test_pretraining__contrastive_accuracy(step, published):
    assert step.contrastive_accuracy.item() == pytest.approx(published["contrastive_accuracy"].item(), abs=1e-6)


def test_pretraining__masked_patch_tokens(case, step, published):
    if case != "sync":
        assert "masked_audio_patch_tokens" not in published
        return
    assert relative_error(step.audio_patch_embeds[:, 0], published["masked_audio_patch_tokens"]) < TOLERANCE
    assert relative_error(step.video_patch_embeds[:, 0], published["masked_visual_patch_tokens"]) < TOLERANCE


def test_pretraining__reconstructions(case, model, step, published):
    if case != "sync":
        assert "recon_audio_nhwc" not in published
        return
    audio = model.unpatchify_audio(step.audio_reconstruction, published["input_values"].shape[1])[:, 0]
    assert relative_error(audio.transpose(1, 2).unsqueeze(-1), published["recon_audio_nhwc"]) < TOLERANCE
    video = model.unpatchify_video(step.video_reconstruction)[:, 0]
    assert relative_error(video.permute(0, 2, 3, 1), published["recon_visual_nhwc"]) < TOLERANCE


def published_gradients(model) -> dict[str, torch.Tensor]:
    """Gradients under the fixture's names, with q, k and v, and both modalities' registers, in one tensor."""

    def fused(layer):
        parts = (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj)
        return torch.cat([part.weight.grad for part in parts])

    base = model.model
    towers = (base.audio_tower, base.video_tower)
    return {
        "grad_qkv_audio0": fused(base.audio_tower.layers[0]),
        "grad_qkv_joint0": fused(base.joint_layers[0]),
        "grad_norm1_a_joint": base.joint_layers[0].layernorm_before["audio"].weight.grad,
        "grad_register": torch.cat([tower.embeddings.register_tokens.grad[0] for tower in towers]),
        "grad_decoder_pred_v": model.decoder.predictions["video"].weight.grad,
    }


def test_pretraining__gradients():
    published, model = expected_of("sync"), converted("sync")
    model(**inputs_of(published, noise=True)).loss.backward()
    for name, gradient in published_gradients(model).items():
        assert relative_error(gradient, published[name]) < GRADIENT_TOLERANCE, name


@torch.no_grad()
def test_contrast__bidirectional_on_unmasked_global_tokens():
    published, model = expected_of("sync"), converted("sync", bidirectional_contrast=True)
    loss = model.model(**inputs_of(published), return_loss=True).loss
    assert relative_error(loss.reshape(1), published["contrastive_unmasked_bidirectional"]) < TOLERANCE


@pytest.mark.parametrize(
    ("mode", "modality", "given"),
    [
        ("multimodal", "multimodal", ("input_values", "pixel_values_videos")),
        ("audioonly", "audio", ("input_values",)),
        ("videoonly", "video", ("pixel_values_videos",)),
        ("missingaudioonly", "multimodal", ("input_values",)),
        ("missingvideoonly", "multimodal", ("pixel_values_videos",)),
    ],
)
@torch.no_grad()
def test_classifier__logits_in_five_modes(mode, modality, given):
    published = expected_of("cavmae_ft")
    inputs = inputs_of(published)
    logits = converted("cavmae_ft", modality=modality)(**{name: inputs[name] for name in given}).logits
    assert relative_error(logits, published[f"logits_{mode}"]) < TOLERANCE
