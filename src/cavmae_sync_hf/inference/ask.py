# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions about clips, answered in words and with moments by a model with a language model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def answer_scores(model: Any, processor: Any, inputs: Mapping[str, Tensor], answers: Sequence[str]) -> Tensor:
    """How likely each of some answers is, as log-probability of its tokens and of the end after them.

    Args:
        model: A `CavMaeSyncForConditionalGeneration` in evaluation mode.
        processor: Its processor.
        inputs: Of one prompt, `(1, tokens)`, with its clips.
        answers: In words.

    Returns:
        `(answers,)`, float32.
    """
    tokenizer = processor.tokenizer
    rows = [torch.tensor(tokenizer(f"{answer}{tokenizer.eos_token or ''}", add_special_tokens=False)["input_ids"])
            for answer in answers]  # fmt: skip
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    there = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    asked = model(**inputs, use_cache=True, logits_to_keep=1)
    cache = asked.past_key_values
    cache.batch_repeat_interleave(len(rows))
    mask = torch.cat([inputs["attention_mask"].expand(len(rows), -1), there], dim=1)
    # The last token of each answer is only looked for, so that nothing needs to follow it.
    said = model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits[:, :-1]
    logits = torch.cat([asked.logits.expand(len(rows), -1, -1), said], dim=1).float()
    likely = logits.log_softmax(dim=-1).gather(2, ids.unsqueeze(-1)).squeeze(-1)
    return (likely * there).sum(dim=1).cpu()
