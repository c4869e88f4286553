"""Small models with text, which can be taught by hand what some texts mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertModel

from cavmae_sync_hf import (
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    CavMaeSyncTextDualEncoderConfig,
    CavMaeSyncTextDualEncoderModel,
    save_for_hub,
)
from helpers.tiny import tiny_config, tiny_text_config, tiny_tokenizer


def text_model(av_model: CavMaeSyncModel | None = None, seed: int = 0, **settings: Any) -> Any:
    """A model whose texts' vectors are their mean tokens, projected; with its processor."""
    torch.manual_seed(seed)
    plain = {"num_text_layers": 0, "num_clip_layers": 0, "score_sequences": False}
    av_config = tiny_config() if av_model is None else av_model.config
    config = CavMaeSyncTextDualEncoderConfig.from_av_text_configs(av_config, tiny_text_config(), **(plain | settings))
    model = CavMaeSyncTextDualEncoderModel(config).eval()
    if av_model is not None:
        model.av_model.load_state_dict(av_model.state_dict())
    processor = CavMaeSyncProcessor.from_config(av_config)
    return model, CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor, tiny_tokenizer())


@torch.no_grad()
def teach(
    model: CavMaeSyncTextDualEncoderModel, processor: CavMaeSyncProcessor, meanings: Mapping[str, Tensor]
) -> None:
    """Give each text the direction of a vector, by the projection: there are more of its inputs than texts."""
    head = model.text_head
    pooled = []
    for text in meanings:
        tokens = processor(text=text, return_tensors="pt")
        states = model.text_model(**tokens).last_hidden_state
        pooled.append(states.mean(dim=1)[0])
    wanted = torch.stack([torch.as_tensor(vector).float() for vector in meanings.values()])
    head.projection.weight.copy_((torch.linalg.pinv(torch.stack(pooled)) @ wanted).T)
    head.projection.bias.zero_()


def save_parts(folder: Path) -> None:
    """A tiny model in `model`, and a text encoder with its tokenizer in `encoder`."""
    torch.manual_seed(0)
    config = tiny_config()
    save_for_hub(CavMaeSyncModel(config), CavMaeSyncProcessor.from_config(config), folder / "model")
    BertModel(tiny_text_config()).save_pretrained(folder / "encoder")
    tiny_tokenizer().save_pretrained(folder / "encoder")


def save(model: Any, processor: Any, folder: Path) -> Path:
    """Both in a folder."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
