"""Encoders of transformers, small enough to test with, for the inputs of `helpers.tiny`."""

from typing import Any

from cavmae_sync_hf.model.configuration_cavmae_sync import CavMaeSyncConfig

from .tiny import TINY

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_IMAGES = _SIZES | {"image_size": 32, "patch_size": 8}
_WINDOWED = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
}  # fmt: skip
_SPEECH = _SIZES | {
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}  # fmt: skip

VIDEO_ENCODERS: dict[str, dict[str, Any]] = {
    "vit": _IMAGES,
    "vit_mae": _IMAGES,
    "vit_msn": _IMAGES,
    "deit": _IMAGES,
    "ijepa": _IMAGES,
    "dinov2": _IMAGES,
    "dinov2_with_registers": _IMAGES | {"num_register_tokens": 3},
    "dinov3_vit": _IMAGES | {"num_register_tokens": 3},
    "clip_vision_model": _IMAGES,
    "siglip_vision_model": _IMAGES,
    "aimv2_vision_model": _IMAGES,
    "videomae": _IMAGES | {"num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False},
    "vjepa2": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "mlp_ratio": 2,
        "crop_size": 32,
        "patch_size": 8,
        "frames_per_clip": 4,
        "tubelet_size": 2,
        "pred_hidden_size": 24,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
    },
    "swin": _WINDOWED,
    "swinv2": _WINDOWED,
}
AUDIO_ENCODERS: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": _SIZES | {
        "patch_size": 8, "num_mel_bins": 16, "max_length": 64, "frequency_stride": 8, "time_stride": 4,
    },
    "whisper": {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_layers": 1,
        "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "max_source_positions": 50, "num_mel_bins": 16,
        "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    },
    "qwen2_audio_encoder": {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "max_source_positions": 50, "num_mel_bins": 16, "init_std": 0.2,
    },
    "wav2vec2": _SPEECH,
    "hubert": _SPEECH,
    "unispeech": _SPEECH,
    "unispeech-sat": _SPEECH,
    "data2vec-audio": _SPEECH | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
    "wavlm": _SPEECH,
    "pe_audio_encoder": _SIZES | {
        "head_dim": 8,
        "dac_config": {"encoder_hidden_size": 4, "downsampling_ratios": [2, 8, 10, 12], "codebook_dim": 8},
    },
}  # fmt: skip
ENCODERS = [("video", kind) for kind in VIDEO_ENCODERS] + [("audio", kind) for kind in AUDIO_ENCODERS]


def encoder_settings(modality: str, kind: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a small encoder, as `video_encoder_config` and `audio_encoder_config` take it."""
    known = VIDEO_ENCODERS if modality == "video" else AUDIO_ENCODERS
    return {"model_type": kind} | known[kind] | changes


def encoder_config(audio: str | None = None, video: str | None = None, **overrides: Any) -> CavMaeSyncConfig:
    """The tiny configuration with encoders in place of its towers.

    Args:
        audio: Kind of the audio encoder, `None` for the tower.
        video: Of the video encoder.
        overrides: Other settings.
    """
    settings = dict(TINY)
    if audio not in (None, "audio-spectrogram-transformer"):
        del settings["num_mel_bins"]
    for modality, kind in (("audio", audio), ("video", video)):
        if kind is not None:
            settings[f"{modality}_encoder_config"] = encoder_settings(modality, kind)
    return CavMaeSyncConfig(**(settings | overrides))
