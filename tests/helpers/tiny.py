"""A model small enough to test with, and inputs that fit it."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from cavmae_sync_hf.model.configuration_cavmae_sync import CavMaeSyncConfig

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_modality_layers": 2,
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 16,
    "audio_length": 48,
    "num_frames": 4,
    "num_register_tokens": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "num_labels": 5,
}


def tiny_config(**overrides: Any) -> CavMaeSyncConfig:
    """12 audio patches (2 mel rows, 6 columns) and 16 frame patches."""
    return CavMaeSyncConfig(**(TINY | overrides))


def tiny_inputs(batch_size: int = 2, num_frames: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Both inputs of the tiny model, all windows and frames different."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values_videos": torch.randn(batch_size, num_frames, 3, 32, 32, generator=generator),
        "input_values": torch.randn(batch_size, num_frames, 48, 16, generator=generator),
    }


def tiny_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """Words of SyncWorld and some others, one token each."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "dog", "bell", "siren", "rain", "drum", "barks", "rings"]
    words += ["and", "then", "before", ",", ".", "is", "heard"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"model_max_length": 32} | names | settings))


def tiny_text_config(**settings: Any) -> BertConfig:
    """A text encoder that fits the tiny tokenizer."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(**({"vocab_size": 60, "max_position_embeddings": 32} | sizes | settings))
