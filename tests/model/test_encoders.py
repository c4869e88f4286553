"""Encoders of transformers in place of the towers: every known kind with tiny random weights."""

import copy
import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from cavmae_sync_hf import (
    CavMaeSyncConfig,
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    load_model,
)
from cavmae_sync_hf.export.towers import make_towers
from cavmae_sync_hf.inference.moments import MediaSpan, embed_moments
from cavmae_sync_hf.model.batching_cavmae_sync import cut_windows
from cavmae_sync_hf.model.encoder_families_cavmae_sync import FAMILIES
from cavmae_sync_hf.model.errors_cavmae_sync import ModelError
from cavmae_sync_hf.model_card import create_model_card
from cavmae_sync_hf.training.freezing import freeze_unused
from helpers.apart import run_apart
from helpers.clips import noise, write_clip
from helpers.encoders import ENCODERS, encoder_config, encoder_settings
from helpers.tiny import TINY, tiny_config, tiny_inputs


def inputs_of(config: CavMaeSyncConfig, batch_size: int = 2, num_frames: int = 2) -> dict[str, torch.Tensor]:
    return tiny_inputs(batch_size, num_frames) | {
        "input_values": torch.randn(batch_size, num_frames, config.audio_length, config.num_mel_bins)
    }


def model_of(modality: str, kind: str, **overrides) -> CavMaeSyncModel:
    return CavMaeSyncModel(encoder_config(**{modality: kind}, **overrides)).eval()


def images_of(model: CavMaeSyncModel, modality: str) -> torch.Tensor:
    name = {"audio": "input_values", "video": "pixel_values_videos"}[modality]
    return model.as_images(modality, inputs_of(model.config)[name]).flatten(0, 1)


def test_known_encoders__are_all_tested():
    assert {kind for _, kind in ENCODERS} == set(FAMILIES)


@pytest.mark.parametrize(("modality", "kind"), ENCODERS)
@torch.no_grad()
def test_tower__gives_the_global_token_and_the_kept_patches(modality, kind):
    model = model_of(modality, kind, hidden_size=24)
    tower, images = model.tower(modality), images_of(model, modality)
    rows, columns = getattr(model.config, f"{modality}_grid")
    assert tower.grid(images) == (rows, columns) and columns > 1
    tokens = tower(images)
    assert tokens.shape == (4, 1 + rows * columns, 24) and tower.num_tokens == tower.encode(images).shape[1]
    everything = torch.arange(rows * columns).expand(4, -1)
    torch.testing.assert_close(tower(images, everything), tokens, atol=1e-5, rtol=1e-5)
    # Patches carry their positions: their order does not matter, and fewer of them see less of each other.
    few = torch.rand(4, rows * columns).argsort(dim=1)[:, : rows * columns // 2]
    some = tower(images, few)
    torch.testing.assert_close(tower(images, few.flip(1))[:, 1:].flip(1), some[:, 1:], atol=1e-5, rtol=1e-4)
    assert some.shape == (4, 1 + few.shape[1], 24)
    whole = tokens[:, 1:].gather(1, few.unsqueeze(-1).expand(-1, -1, 24))
    assert (whole - some[:, 1:]).abs().max() > 1e-3


IMAGE_ENCODERS = [pair for pair in ENCODERS if pair[0] == "video"]


@pytest.mark.parametrize(
    ("modality", "kind"),
    [
        *IMAGE_ENCODERS,
        ("audio", "audio-spectrogram-transformer"),
        ("audio", "wavlm"),
        ("audio", "qwen2_audio_encoder"),
    ],
)
@torch.no_grad()
def test_removed_patches__are_not_seen(modality, kind):
    model = model_of(modality, kind)
    if kind == "audio-spectrogram-transformer":  # whose patches overlap
        model.config.audio_encoder_config.time_stride = 8
        model = CavMaeSyncModel(model.config).eval()
    tower, images = model.tower(modality), images_of(model, modality)
    rows, columns = tower.grid(images)
    kept = torch.zeros(4, rows, columns, dtype=torch.bool)
    kept[:, :, : columns // 2] = True
    ids = kept.flatten(1).nonzero()[:, 1].view(4, -1)
    other = images.clone()
    other[..., images.shape[-1] // 2 + (3 if kind == "wavlm" else 0) :] = 3.0
    torch.testing.assert_close(tower(other, ids), tower(images, ids), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tower(other), tower(images), atol=1e-3)


def heard_by_encoder(model: CavMaeSyncModel, images: torch.Tensor) -> torch.Tensor:
    tower, seen = model.tower("audio" if images.shape[1] == 1 else "video"), []
    hook = tower.encoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    tower(images)
    hook.remove()
    return seen[0][tower.family.argument]


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("audio-spectrogram-transformer", ASTFeatureExtractor(num_mel_bins=16, max_length=64)),
        ("whisper", WhisperFeatureExtractor(feature_size=16, chunk_length=1)),
        ("wav2vec2", Wav2Vec2FeatureExtractor(do_normalize=True)),
    ],
)
def test_audio_input__is_that_of_the_encoders_own_feature_extractor(kind, own):
    model = model_of("audio", kind)
    extractor = CavMaeSyncProcessor.from_config(model.config).feature_extractor
    waveform = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    ours = extractor(waveform, sampling_rate=16_000, frame_times=[0.24], return_tensors="pt")["input_values"]
    heard = heard_by_encoder(model, model.as_images("audio", ours).flatten(0, 1))[0]
    theirs = own(waveform[: 48 * 160], sampling_rate=16_000, return_tensors="pt")
    wanted = theirs["input_features" if kind == "whisper" else "input_values"][0]
    if kind == "audio-spectrogram-transformer":  # they cut before the mean is taken, and pad at the end
        heard, wanted = heard[:46], wanted[:46]
    assert heard.shape == wanted.shape
    # Whisper's loudest value, and AST's mean of the waveform, are those of slightly other parts.
    torch.testing.assert_close(heard, wanted, atol=2e-3 if kind == "wav2vec2" else 2e-2, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "mean", "std"), [("siglip_vision_model", 0.5, 0.5), ("clip_vision_model", 0.48145466, 0.26862954)]
)
def test_frames__are_normalised_as_the_encoder_was_trained(kind, mean, std):
    pixels = torch.rand(2, 3, 32, 32)
    ours = (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    seen = heard_by_encoder(model_of("video", kind), ours)
    torch.testing.assert_close(seen[:, 0], (pixels[:, 0] - mean) / std, atol=1e-5, rtol=1e-5)
    own = model_of("video", kind, video_encoder_mean=[0.1, 0.2, 0.3], video_encoder_std=[0.5, 0.5, 0.5])
    torch.testing.assert_close(heard_by_encoder(own, ours)[:, 1], (pixels[:, 1] - 0.2) / 0.5, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov3_vit", "clip_vision_model", "videomae", "vjepa2"])
@torch.no_grad()
def test_another_image_size__is_taken(kind):
    model = model_of("video", kind, image_size=48)
    frames = torch.randn(1, 2, 3, 48, 48)
    side = 4 if kind in ("videomae", "vjepa2") else 6  # its positions are fixed, so frames are resized
    assert model.config.video_grid == (side, side)
    assert model(pixel_values_videos=frames).video_patch_embeds.shape == (1, 2, side * side, 32)


def as_vit(tower, config: CavMaeSyncConfig) -> dict[str, torch.Tensor]:
    """Weights of a tower under the names of a ViT."""
    embeddings = tower.embeddings
    positions = embeddings.positions(tower.grid(torch.empty(1, 1, 32, 32))) + embeddings.modality_embedding
    place = torch.zeros_like(positions[:, :1])
    weights = {
        "embeddings.cls_token": embeddings.global_token,
        "embeddings.position_embeddings": torch.cat([place, positions], dim=1),
        "embeddings.patch_embeddings.projection.weight": embeddings.projection.weight,
        "embeddings.patch_embeddings.projection.bias": embeddings.projection.bias,
    }
    for name, value in tower.layers.state_dict().items():
        weights[f"layers.{name}"] = value
    return weights


@torch.no_grad()
def test_native_tower__copied_into_a_vit_gives_the_same_outputs():
    native = CavMaeSyncForPreTraining(tiny_config(num_register_tokens=0, contrastive_loss_weight=1.0)).eval()
    vit = encoder_settings("video", "vit", layer_norm_eps=native.config.layer_norm_eps)
    config = copy.deepcopy(native.config)
    settings = config.to_dict() | {
        "video_encoder_config": vit, "video_encoder_layer": 2, "reconstruction_loss_weight": 1.0,
        "video_encoder_mean": [0.485, 0.456, 0.406], "video_encoder_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    model = CavMaeSyncForPreTraining(CavMaeSyncConfig.from_dict(settings)).eval()
    model.load_state_dict(native.state_dict(), strict=False)
    copied = as_vit(native.model.video_tower, native.config)
    own = model.model.video_tower.encoder.state_dict()
    assert set(own) == set(copied)
    model.model.video_tower.encoder.load_state_dict(copied)
    inputs = tiny_inputs() | {"video_noise": torch.rand(2, 3, 16), "audio_noise": torch.rand(2, 3, 12)}
    expected, found = native(**inputs), model(**inputs)
    for name in ("video_embeds", "video_patch_embeds", "video_reconstruction", "loss"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.model(**tiny_inputs()).similarity, native.model(**tiny_inputs()).similarity, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("modality", "kind"), ENCODERS)
def test_training_in_full__reaches_every_weight_also_with_checkpointing(modality, kind):
    config = encoder_config(**{modality: kind}, encoder_training="full", contrastive_loss_weight=1.0)
    model = CavMaeSyncForPreTraining(config).train()
    assert config.reconstruction_loss_weight == 0
    freeze_unused(model)
    inputs = inputs_of(config)
    torch.manual_seed(1)
    model(**inputs).loss.backward()
    waiting = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not waiting
    plain = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    if not model.model.tower(modality).encoder.supports_gradient_checkpointing or kind.startswith(
        ("swin", "data2vec")
    ):
        return
    if any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        plain = {}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    torch.manual_seed(1)
    model(**inputs).loss.backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-6, rtol=1e-4)


def test_frozen_encoder__stays_as_it_is_and_evaluates():
    config = encoder_config("wav2vec2", "dinov2", contrastive_loss_weight=1.0)
    model = CavMaeSyncForPreTraining(config).train()
    for tower in model.encoder_towers().values():
        assert not tower.encoder.training and not any(weight.requires_grad for weight in tower.encoder.parameters())
    model(**inputs_of(config)).loss.backward()
    assert model.model.audio_tower.pool.query.grad is not None
    assert all(weight.grad is None for name, weight in model.named_parameters() if ".encoder." in name)


def test_lora__begins_without_a_change_and_is_trained_and_saved(tmp_path):
    torch.manual_seed(3)
    plain = CavMaeSyncModel(encoder_config(video="dinov2")).eval()
    settings = plain.config.to_dict() | {"encoder_training": "lora", "encoder_lora_rank": 2}
    model = CavMaeSyncModel(CavMaeSyncConfig.from_dict(settings))
    own = {name.replace(".base_layer.", "."): name for name in model.state_dict() if ".lora_" not in name}
    model.load_state_dict({own[name]: value for name, value in plain.state_dict().items()}, strict=False)
    frames = tiny_inputs()["pixel_values_videos"]
    with torch.no_grad():
        expected = plain(pixel_values_videos=frames).video_embeds
        torch.testing.assert_close(model.eval()(pixel_values_videos=frames).video_embeds, expected)
    trained = [name for name, weight in model.video_tower.encoder.named_parameters() if weight.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    with torch.no_grad():
        for name in trained:
            model.video_tower.encoder.get_parameter(name).normal_()
        changed = model(pixel_values_videos=frames).video_embeds
    assert not torch.allclose(changed, expected, atol=1e-3)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = AutoModel.from_pretrained(tmp_path).eval()(pixel_values_videos=frames).video_embeds
    torch.testing.assert_close(again, changed)


@pytest.mark.parametrize(("modality", "kind"), ENCODERS)
@torch.no_grad()
def test_saved_whole__gives_the_same_again(modality, kind, tmp_path):
    model = CavMaeSyncModel(encoder_config(**{modality: kind})).eval()
    inputs = inputs_of(model.config)
    model.save_pretrained(tmp_path)
    CavMaeSyncProcessor.from_config(model.config).save_pretrained(tmp_path)
    # Under their own names, which is what a training resumes from.
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    again, _ = load_model(tmp_path)
    name = f"{modality}_patch_embeds"
    torch.testing.assert_close(again(**inputs)[name], model(**inputs)[name], atol=1e-5, rtol=1e-5)
    assert type(again.config) is CavMaeSyncConfig and again.config.to_dict().keys() == model.config.to_dict().keys()
    assert AutoConfig.from_pretrained(tmp_path).encoders[modality].model_type == kind


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP, of which the picture's side is wanted."""
    sizes = {
        key: encoder_settings("video", "clip_vision_model")[key] for key in ("hidden_size", "image_size", "patch_size")
    }
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 9,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=sizes))
    model.save_pretrained(tmp_path / "clip")
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path / "clip"


@torch.no_grad()
def test_saved_by_reference__leaves_the_encoder_where_it_is(clip_folder, tmp_path):
    settings = {name: value for name, value in TINY.items() if name != "num_labels"}
    model = CavMaeSyncForPreTraining.from_encoders(
        video=str(clip_folder), save_encoders="reference", **settings
    ).eval()
    assert model.config.video_encoder_config.model_type == "clip_vision_model"
    assert model.config.video_encoder_mean == [0.1, 0.2, 0.3]
    source = CLIPModel.from_pretrained(clip_folder).vision_model
    frames = torch.randn(2, 3, 32, 32)
    seen = heard_by_encoder(model.model, frames)
    torch.testing.assert_close(
        model.model.video_tower.encoder(pixel_values=seen).last_hidden_state,
        source(pixel_values=seen).last_hidden_state,
    )
    model.save_pretrained(tmp_path / "small")
    processor = CavMaeSyncProcessor.from_config(model.config)
    card = str(create_model_card(model, processor))
    assert f"clip_vision_model from {clip_folder}; frozen; its weights are not in this folder" in card
    saved = load_file(tmp_path / "small" / "model.safetensors")
    assert not any("video_tower.encoder." in name for name in saved)
    again = CavMaeSyncForPreTraining.from_pretrained(tmp_path / "small").eval()
    inputs = tiny_inputs()
    torch.testing.assert_close(again.model(**inputs).video_embeds, model.model(**inputs).video_embeds)
    processor.save_pretrained(tmp_path / "small")
    loaded, _ = load_model(tmp_path / "small")
    torch.testing.assert_close(loaded(**inputs).video_embeds, model.model(**inputs).video_embeds)
    base, report = CavMaeSyncModel.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not report["missing_keys"]
    torch.testing.assert_close(base.eval()(**inputs).video_embeds, model.model(**inputs).video_embeds)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("hubert", {}, "`features` 'log_mel', and the audio encoder 'hubert' needs 'waveform'"),
        (
            "audio-spectrogram-transformer", {"sampling_rate": 44_100},
            "`sampling_rate` 44100, and the audio encoder 'audio-spectrogram-transformer' needs 16000; use CavMaeSync",
        ),
    ],
    ids=["input", "sampling rate"],
)  # fmt: skip
def test_processor_of_another_kind__is_refused_beside_a_model(tmp_path, kind, settings, message):
    CavMaeSyncModel(encoder_config(kind)).save_pretrained(tmp_path)
    CavMaeSyncProcessor.from_config(tiny_config(), **settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


def test_reference_to_another_encoder__is_refused(clip_folder):
    config = encoder_config(video="vit", save_encoders="reference", video_encoder_source=str(clip_folder))
    with pytest.raises(ModelError, match="lacks .* weights of the video encoder"):
        CavMaeSyncModel(config).load_encoders()


def test_folder__is_opened_where_the_package_is_not_installed(tmp_path):
    model = CavMaeSyncModel(encoder_config("audio-spectrogram-transformer", "dinov2")).eval()
    CavMaeSyncProcessor.from_config(model.config).save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = model(**tiny_inputs()).similarity.flatten()
    torch.save(tiny_inputs(), tmp_path / "inputs.pt")
    code = (
        "import sys, torch; sys.modules['cavmae_sync_hf'] = None\n"
        "from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained('model', trust_remote_code=True).eval()\n"
        "print(model(**torch.load('inputs.pt')).similarity.flatten().tolist())\n"
    )
    done = run_apart(["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(("modality", "kind"), [("video", "dinov3_vit"), ("audio", "hubert"), ("audio", "whisper")])
@torch.no_grad()
def test_kept_tokens__stand_for_the_input(modality, kind):
    model = model_of(modality, kind)
    inputs = inputs_of(model.config)
    name = {"audio": "input_values", "video": "pixel_values_videos"}[modality]
    tokens = model.encode_tokens(modality, inputs[name])
    given = {key: value for key, value in inputs.items() if key != name} | {f"{modality}_tokens": tokens}
    expected = model(**inputs)
    torch.testing.assert_close(model(**given).similarity, expected.similarity, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="as `encode_tokens` gives them"):
        model(**given | {f"{modality}_tokens": tokens[:, :, 1:]})
    pretraining = CavMaeSyncForPreTraining(model.config).eval()
    pretraining.model = model
    assert pretraining(**given).contrastive_loss.isfinite()


WHOLE_CLIPS = {
    "audio-spectrogram-transformer": {"max_length": 160}, "wav2vec2": {}, "pe_audio_encoder": {},
    "whisper": {"max_source_positions": 100, "init_std": 0.3},
}  # fmt: skip


def hears_clips(kind: str, **settings) -> CavMaeSyncConfig:
    """A configuration whose audio encoder hears clips of 1.6 s, within which windows of 0.48 s lie."""
    sizes = {"audio_encoder_config": encoder_settings("audio", kind, **WHOLE_CLIPS[kind])}
    return encoder_config(kind, audio_context="clip", **({"audio_clip_length": 160} | sizes | settings))


@pytest.mark.parametrize("kind", WHOLE_CLIPS)
@torch.no_grad()
def test_whole_clip__is_heard_once_and_cut_into_windows(kind):
    """And the control: what sounds elsewhere in the clip changes a window's embedding, and only then."""
    config = hears_clips(kind)
    model = CavMaeSyncModel(config).eval()
    alone = CavMaeSyncModel(CavMaeSyncConfig.from_dict(config.to_dict() | {"audio_context": "window"})).eval()
    alone.load_state_dict(model.state_dict(), strict=False)
    sizes: list[int] = []
    model.audio_tower.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs[model.audio_tower.family.argument])), with_kwargs=True
    )
    clips = torch.randn(2, 160, config.num_mel_bins)
    offsets = torch.tensor([[0, 24, 112, 64], [0, 16, 40, 64]])

    def windows(clips: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_values": clips.unsqueeze(1).expand(-1, 4, -1, -1), "window_offsets": offsets}

    inputs = windows(clips)
    tokens = model.encode_tokens("audio", inputs["input_values"], offsets)
    assert sizes == [2] and tokens.shape[:2] == (2, 4)  # two clips, whatever the number of windows
    # The last window is the end of what the encoder makes of the whole.
    rows, columns = config.audio_grid
    whole = model.audio_tower.encode(model.as_images("audio", clips[:1, None])[0])
    end = whole.unflatten(1, (rows, -1))[0, :, -columns:].flatten(0, 1)
    torch.testing.assert_close(tokens[0, 2], end, atol=1e-5, rtol=1e-5)
    other = clips.clone()
    other[:, 100:] = torch.randn(2, 60, config.num_mel_bins)  # far from the first window
    before, after = (model(**windows(sound)).audio_embeds[0] for sound in (clips, other))
    assert (before[0] - after[0]).abs().max() > 1e-4
    cut = [cut_windows(windows(sound)["input_values"], offsets, 48) for sound in (clips, other)]
    before, after = (alone(input_values=values).audio_embeds[0] for values in cut)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[2], after[2])
    with pytest.raises(ValueError, match="needs `window_offsets` .* pass all that its processor gives"):
        model(input_values=inputs["input_values"])
    with pytest.raises(ValueError, match="`window_offsets` has 113; .* starts at 0 to 112"):
        model(input_values=inputs["input_values"], window_offsets=offsets + 1)


@pytest.mark.parametrize("kind", ["audio-spectrogram-transformer", "wav2vec2"])
@torch.no_grad()
def test_whole_clip__is_the_same_wherever_reading_begins(kind, tmp_path):
    config = hears_clips(kind)
    model, processor = CavMaeSyncModel(config).eval(), CavMaeSyncProcessor.from_config(config)
    path = write_clip(tmp_path / "long.mp4", seconds=12, audio=noise(12))
    runs: list[int] = []
    model.audio_tower.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: runs.append(len(kwargs[model.audio_tower.family.argument])), with_kwargs=True
    )

    def embeds(**options) -> tuple[torch.Tensor, torch.Tensor]:
        parts = list(processor.stream(path, hop=0.2, **options))
        found = [model(**part).audio_embeds[0] for part in parts]
        return torch.cat([part["window_times"][0].mean(dim=-1) for part in parts]), torch.cat(found)

    times, whole = embeds(num_frames=60)
    assert runs == [11]  # clips of 1.6 s, one every 1.12 s, for 60 windows
    _, parts = embeds(num_frames=7)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    clip = processor(videos=path, num_frames=60, return_tensors="pt")
    torch.testing.assert_close(model(**clip).audio_embeds[0], whole, atol=1e-5, rtol=1e-4)
    # Before its start a stream holds silence, so that the first clip alone is another.
    later, rest = embeds(num_frames=5, start=5.0)
    same = [index for index, time in enumerate(later.tolist()) if time > 5.0 + 1.6]
    places = [int((times - later[index]).abs().argmin()) for index in same]
    torch.testing.assert_close(later[same], times[places])
    torch.testing.assert_close(rest[same], whole[places], atol=1e-4, rtol=1e-3)
    assert len(same) > 20 and not torch.allclose(rest[0], whole[25], atol=1e-3)
    found = []
    options = {"hop": 0.2, "num_frames": 3, "batch_size": 8}
    for _, chunks in embed_moments(model, processor, [MediaSpan(path)], **options):
        found += [chunk.values["a"] for chunk in chunks]
    np.testing.assert_allclose(np.concatenate(found), whole.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("audio", "video"), [("audio-spectrogram-transformer", "dinov2"), ("whisper", "dinov3_vit"), ("wav2vec2", "vit")]
)
@torch.no_grad()
def test_towers__are_exported(audio, video):
    for tower in make_towers(CavMaeSyncModel(encoder_config(audio, video)).eval()):
        inputs = torch.randn(1, 2, *tower.io.input_shape)
        expected, found = tower(inputs), torch.export.export(tower, (inputs,)).module()(inputs)
        assert tuple(value.shape[2:] for value in expected) == tower.io.output_shapes
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_states_and_attentions__are_those_of_the_encoder():
    config = encoder_config("whisper", "dinov2_with_registers")
    model = CavMaeSyncModel._from_config(config, attn_implementation="eager").eval()
    output = model(**inputs_of(config), output_hidden_states=True, output_attentions=True)
    assert len(output.video_hidden_states) == config.tower_layers("video") + 2 == 4
    assert output.video_hidden_states[0].shape == (2, 2, 1 + 16 + 3, 32)
    assert output.video_attentions[0].shape == (2, 2, 4, 20, 20)
    assert output.audio_hidden_states[0].shape == (2, 2, 1 + 24, 32)


def test_classifier__takes_encoders():
    config = encoder_config("hubert", "siglip_vision_model", classifier_type="frame_attention")
    output = CavMaeSyncForAudioVisualClassification(config)(**inputs_of(config), labels=torch.tensor([0, 1]))
    assert output.logits.shape == (2, 5) and output.loss.isfinite()


def test_earlier_settings__are_saved_as_ever():
    config = tiny_config()
    assert not [
        name for name in config.to_dict() if name.startswith(("audio_encoder", "video_encoder", "audio_context"))
    ]
    assert config.reconstruction_loss_weight == 1.0
    assert "features" not in CavMaeSyncProcessor.from_config(config).to_json_string()


BAD = [
    ({"video_encoder_config": {"model_type": "dinov9"}}, "known encoders are 'vit'.* Perhaps 'dinov"),
    ({"audio_encoder_config": {"model_type": "clap_audio_model"}}, "'clap_audio_model'; known encoders are"),
    ({"audio_encoder_config": {"model_type": "wav2vec2-bert"}}, "'wav2vec2-bert'; known encoders are 'audio-spec"),
    ({"video_encoder_config": {"hidden_size": 3}}, "no `model_type`"),
    ({"video_encoder_config": encoder_settings("audio", "hubert")}, "give it as `audio_encoder_config`"),
    ({"video_encoder_config": encoder_settings("video", "vit", patch_size=14)}, "28 or 42 would work"),
    ({"video_encoder_config": encoder_settings("video", "vit"), "video_encoder_layer": 3}, "has 2 blocks, use 1 to 2"),
    ({"video_encoder_config": encoder_settings("video", "swin"), "video_encoder_layer": 1}, "leave it out"),
    ({"video_encoder_config": encoder_settings("video", "swin"), "encoder_masking": "drop"}, "use 'auto' or 'input'"),
    ({"audio_encoder_config": encoder_settings("audio", "wavlm"), "subtract_mean_spectrum": True, "num_mel_bins": 160},
     "leave the mean"),
    ({"audio_encoder_config": encoder_settings("audio", "wavlm"), "encoder_masking": "drop", "num_mel_bins": 160},
     "use 'auto' or 'input'"),
    ({"audio_encoder_config": encoder_settings("audio", "pe_audio_encoder"), "num_mel_bins": 160},
     "hears waveforms at 48000 Hz, 480 samples per 10 ms"),
    ({"audio_encoder_config": encoder_settings("audio", "audio-spectrogram-transformer", max_length=40)},
     "use at most 40"),
    ({"audio_encoder_config": encoder_settings("audio", "audio-spectrogram-transformer", num_mel_bins=32)},
     "takes 32: use that"),
    ({"audio_encoder_config": encoder_settings("audio", "hubert"), "num_mel_bins": 160,
      "reconstruction_loss_weight": 1.0}, "no patches of 8 x 8 .* use 0"),
    ({"audio_context": "clip"}, "needs an `audio_encoder_config`"),
    ({"audio_context": "clip", "audio_clip_length": 40,
      "audio_encoder_config": encoder_settings("audio", "audio-spectrogram-transformer")}, "shorter than the windows"),
    ({"audio_context": "clip", "audio_clip_length": 100,
      "audio_encoder_config": encoder_settings("audio", "audio-spectrogram-transformer")}, "use at most 64"),
    ({"video_encoder_config": encoder_settings("video", "vit"), "save_encoders": "reference"},
     "in `video_encoder_source`"),
    ({"video_encoder_config": encoder_settings("video", "vit"), "save_encoders": "reference",
      "video_encoder_source": "owner/vit", "encoder_training": "full"}, "would lose trained encoders"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_settings_that_an_encoder_cannot_follow__are_refused_with_what_would_work(settings, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config(**settings)


def test_waveform_windows__hold_the_samples_of_their_times():
    config = encoder_config("pe_audio_encoder")
    processor = CavMaeSyncProcessor.from_config(config)
    extractor = processor.feature_extractor
    assert (extractor.sampling_rate, extractor.num_mel_bins) == (48_000, 480)
    waveform = np.linspace(-1, 1, 96_000, dtype=np.float32)
    made = processor(
        audio=waveform, sampling_rate=48_000, frame_times=[0.1, 1.0], return_times=True, return_tensors="pt"
    )
    values = made["input_values"][0].flatten(1)
    begin = round(float(made["window_times"][0, 1, 0]) * 48_000)
    torch.testing.assert_close(values[1], torch.from_numpy(waveform[begin : begin + 48 * 480]))
    before = round(-float(made["window_times"][0, 0, 0]) * 48_000)
    assert before > 0 and values[0, :before].abs().max() == 0  # silence before the clip
    assert CavMaeSyncModel(config)(**made).audio_embeds.shape == (1, 2, 32)
