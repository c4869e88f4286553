"""The language model's processor with a tokenizer of letters, chats, and files for both."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from cavmae_sync_hf import (
    CavMaeSyncForConditionalGeneration,
    CavMaeSyncLMProcessor,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
)
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config

V, A = "<|video|>", "<|audio|>"
TEMPLATE = (
    "{%- for message in messages %}{{ '[' + message.role + '] ' + message.content + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '[assistant] ' }}{%- endif %}"
)
MASKED = (
    "{%- for message in messages %}{{ '[' + message.role + '] ' }}{%- if message.role == 'assistant' %}"
    "{%- generation %}{{ message.content }}{%- endgeneration %}{%- else %}{{ message.content }}{%- endif %}"
    "{%- endfor %}"
)


def letters(template: str | None = TEMPLATE, **settings: Any) -> PreTrainedTokenizerFast:
    """One token per letter, so that lengths can be counted, and what is decoded is what was written."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", **settings)
    made.chat_template = template
    return made


def make(
    tokenizer: PreTrainedTokenizerFast | None = None, config: dict[str, Any] | None = None, **settings: Any
) -> CavMaeSyncLMProcessor:
    """A processor without pooled tokens, unless they are asked for."""
    tokenizer = letters() if tokenizer is None else tokenizer
    CavMaeSyncLMProcessor.add_media_tokens(tokenizer)
    plain = CavMaeSyncProcessor.from_config(tiny_config(**(config or {})))
    tokens = {"tokens_per_frame": 0, "tokens_per_window": 0}
    return CavMaeSyncLMProcessor(plain.feature_extractor, plain.video_processor, tokenizer, **(tokens | settings))


def written(processor: CavMaeSyncLMProcessor, batch: Any) -> list[str]:
    """The texts of a batch, without what fills them up."""
    return [text.replace("<pad>", "") for text in processor.tokenizer.batch_decode(batch["input_ids"])]


def chat(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    """A message of a path of a video, a text, or a ready part each."""
    return [{"role": role, "content": [part if isinstance(part, dict) else told(part) for part in parts]}]


def told(part: Any) -> dict[str, str]:
    if isinstance(part, Path):
        return {"type": "audio" if part.suffix == ".wav" else "video", "path": str(part)}
    return {"type": "text", "text": part}


def write_media(folder: Path) -> dict[str, Path]:
    """A file with both tracks, a longer one, and one of each track alone."""
    return {
        "both": write_clip(folder / "both.mp4", seconds=2, audio=noise(2)),
        "long": write_clip(folder / "long.mp4", seconds=4, audio=noise(4, seed=1)),
        "silent": write_clip(folder / "silent.mp4", seconds=2, audio=False),
        "sound": write_clip(
            folder / "sound.wav", seconds=2, video=False, audio=noise(2, seed=2), audio_codec="pcm_s16le"
        ),
    }


def lm_model(
    tokenizer: PreTrainedTokenizerFast | None = None, *, av: dict[str, Any] | None = None, seed: int = 0, **text: Any
) -> tuple[Any, CavMaeSyncLMProcessor]:
    """A model with random weights that reads letters, and its processor; `text` are sizes of the language model."""
    torch.manual_seed(seed)
    processor = make(tokenizer, av)
    ids = {"pad_token_id": processor.tokenizer.pad_token_id, "eos_token_id": processor.tokenizer.eos_token_id}
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 48, "max_position_embeddings": 1024, "tie_word_embeddings": True,
        "vocab_size": len(processor.tokenizer), "bos_token_id": None,
    }  # fmt: skip
    settings = {"model_type": "qwen3"} | sizes | ids | text
    language = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    av_model = CavMaeSyncModel(tiny_config(**(av or {}))).eval()
    model = CavMaeSyncForConditionalGeneration.from_av_text_pretrained(
        av_model, language, processor.tokenizer, tokens_per_frame=0, tokens_per_window=0
    )
    for name in ("video", "audio"):  # else times would change nothing
        projector = getattr(model.model, f"{name}_projector")
        if projector is not None:
            torch.nn.init.normal_(projector.time_projection.weight, std=0.1)
    return model, processor
