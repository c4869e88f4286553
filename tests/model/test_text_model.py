# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The model with text: shapes, scores, losses, positives, saving, and what stays as it was without text."""

import math

import pytest
import torch
from transformers import (
    AutoModel,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    DistilBertConfig,
    DistilBertModel,
    SiglipConfig,
    SiglipModel,
)

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncTextDualEncoderConfig, CavMaeSyncTextDualEncoderModel
from cavmae_sync_hf.model.losses_cavmae_sync import moment_loss, text_loss
from cavmae_sync_hf.model.modeling_text_cavmae_sync import pool_moments, pool_text, sequence_features
from helpers.tiny import tiny_config, tiny_inputs, tiny_text_config

BERT = {
    name: getattr(tiny_text_config(), name)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
} | {"max_position_embeddings": 32}


def build(seed: int = 0, **settings) -> CavMaeSyncTextDualEncoderModel:
    torch.manual_seed(seed)
    config = CavMaeSyncTextDualEncoderConfig.from_av_text_configs(tiny_config(), tiny_text_config(), **settings)
    return CavMaeSyncTextDualEncoderModel(config).eval()


def texts(count: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 60, (count, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "settings",
    [{}, {"projection_dim": 20}, {"num_clip_layers": 0, "num_text_layers": 0, "score_sequences": False}],
    ids=str,
)
def test_output__has_the_shapes_that_it_promises(settings):
    model = build(**settings)

    output = model(**texts(), **tiny_inputs(3, 4))

    width = settings.get("projection_dim", 32)
    assert output.text_embeds.shape == (5, width) and output.audio_embeds.shape == (3, 4, width)
    assert output.logits_per_text.shape == (5, 3) and output.moment_logits_video.shape == (5, 3, 4)
    assert output.logits_per_audio.shape == output.logits_per_video.shape == (3, 5)
    assert (output.clip_embeds is None) == (settings.get("num_clip_layers") == 0)
    for embeds in (output.text_embeds, output.audio_embeds, output.video_embeds):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(embeds.shape[:-1]))


def test_audio_visual_space__is_that_of_the_model_inside():
    model, inputs = build(), tiny_inputs()

    alone, joined = model.av_model(**inputs), model(**texts(2), **inputs)

    assert torch.equal(alone.audio_embeds, joined.audio_embeds)
    assert torch.equal(alone.video_embeds, model.get_video_features(inputs["pixel_values_videos"]).video_embeds)
    assert model.base_model is model.av_model


def test_parts__may_be_left_out():
    model, inputs = build(), tiny_inputs()

    words = model(**texts())
    heard = model(**texts(), input_values=inputs["input_values"])
    both = model(**texts(), **inputs)

    assert words.logits_per_text is None and words.text_embeds is not None
    assert heard.logits_per_video is None
    torch.testing.assert_close(heard.logits_per_text, both.logits_per_audio.T)
    torch.testing.assert_close(heard.logits_per_audio, both.logits_per_audio)


def test_known_embeddings__stand_for_inputs():
    model, inputs, words = build(projection_dim=20), tiny_inputs(), texts()
    own = model.av_model(**inputs)
    states = model.text_model(**words).last_hidden_state

    whole = model(**words, **inputs)
    known = model(
        text_hidden_states=states,
        attention_mask=words["attention_mask"],
        audio_embeds=own.audio_embeds,
        video_embeds=own.video_embeds,
    )

    torch.testing.assert_close(known.logits_per_text, whole.logits_per_text)
    torch.testing.assert_close(known.moment_logits_audio, whole.moment_logits_audio)


def test_padding__changes_nothing():
    model, inputs, words = build(), tiny_inputs(2, 4), texts()
    shorter = {name: values[:1, :3] for name, values in inputs.items()}
    mask = torch.tensor([[True, True, True, False], [True] * 4])

    padded = model(**words, **inputs, padding_mask=mask, padding_mask_videos=mask)
    alone = model(**words, **shorter)
    longer = {name: torch.nn.functional.pad(values, (0, 3)) for name, values in words.items()}

    torch.testing.assert_close(padded.logits_per_text[:, :1], alone.logits_per_text)
    assert (padded.moment_logits_audio[:, 0, 3] < -1e30).all()
    torch.testing.assert_close(model(**longer, **inputs).logits_per_text, model(**words, **inputs).logits_per_text)


def test_absent_modality__leaves_the_score_to_the_other():
    model, inputs, words = build(score_sequences=False), tiny_inputs(2, 3), texts()
    silent = torch.tensor([[False] * 3, [True] * 3])

    output = model(**words, **inputs, padding_mask=silent)
    seen = model(**words, pixel_values_videos=inputs["pixel_values_videos"])

    moments = (
        model.logit_scale.exp()
        * pool_moments(
            torch.einsum("tp,fp->tf", output.text_embeds, output.video_embeds[0]),
            None,
            "lse",
            model.log_pooling_temperature.exp(),
        )
        + model.logit_bias
    )
    clip = model.clip_logit_scale.exp() * output.text_clip_embeds @ seen.clip_embeds[0]
    torch.testing.assert_close(seen.logits_per_text[:, 0], moments + clip)
    assert torch.isfinite(output.logits_per_text).all()
    assert output.logits_per_audio[0].isfinite().all()


def test_order_of_moments__counts_with_clip_layers_alone():
    inputs, words = tiny_inputs(2, 4), texts()
    turned = {name: values.flip(1) for name, values in inputs.items()}
    for layers, same in ((0, True), (1, False)):
        model = build(num_clip_layers=layers, score_sequences=False)
        change = (model(**words, **inputs).logits_per_text - model(**words, **turned).logits_per_text).abs().max()
        assert (change < 1e-4) == same, layers


def test_sequence_features__follow_from_probabilities():
    # The first thing at moments 1 and 3, the second at moment 2, both for certain.
    first, second = torch.tensor([0.0, 1, 0, 1]), torch.tensor([0.0, 0, 1, 0])

    known = sequence_features(first, second)
    turned = sequence_features(second, first)

    torch.testing.assert_close(known[:4], torch.tensor([1.0, 1, 1, 0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(turned[:4], torch.tensor([1.0, 1, 0, 1]), atol=1e-3, rtol=0)
    assert known[4:].argmax() == 1 and turned[4:].argmax() == 0  # twice, and once
    half = sequence_features(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.5]))
    # Begins at 0 in 1 of 2 cases, at 1 in 1 of 4; the second has not begun by 1 in 1 of 2.
    torch.testing.assert_close(half[:3], torch.tensor([0.75, 0.5, 0.5 + 0.25 * 0.5]))


def test_order__is_told_from_texts_that_name_the_same():
    """Two clips with the same two sounds in another order, and two texts with the same words in another order."""
    model = build(num_clip_layers=0).train()
    one, other, rest = torch.nn.functional.normalize(torch.randn(3, 32), dim=-1)
    clips = torch.stack([torch.stack([one, rest, other, rest]), torch.stack([other, rest, one, rest])])
    words = {"input_ids": torch.tensor([[7, 9, 0], [9, 7, 0], [7, 0, 0], [9, 0, 0]])}
    words["attention_mask"] = (words["input_ids"] > 0).long()
    spans = torch.tensor([[-1] * 4, [-1] * 4, [1, 0, 0, 0], [1, 0, 0, 0]])
    asked = {"caption_clip_ids": torch.tensor([0, 1, 0, 1]), "clip_keys": torch.tensor([[2, 3], [2, 3]])}
    asked |= {"caption_keys": torch.arange(4), "caption_moments": spans}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = model(**words, audio_embeds=clips, **asked, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    logits = model.eval()(**words, audio_embeds=clips).logits_per_text

    assert logits[0, 0] > logits[0, 1] and logits[1, 1] > logits[1, 0]


@pytest.mark.parametrize("pooling", ["mean", "cls", "eos", "pooler"])
def test_text_pooling(pooling):
    states = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])  # padded on the right, and on the left
    expected = {
        "mean": torch.stack([states[0, :3].mean(0), states[1, 1:].mean(0)]),
        "cls": torch.stack([states[0, 0], states[1, 1]]),
        "eos": torch.stack([states[0, 2], states[1, 3]]),
        "pooler": states[:, 0] * 2,
    }
    assert torch.equal(pool_text(states, mask, pooling, states[:, 0] * 2), expected[pooling])


def test_text_pooling__that_the_text_encoder_lacks():
    words = "no `pooler_output`; set `text_pooling` to 'mean'"
    with pytest.raises(ValueError, match=words):
        pool_text(torch.zeros(1, 2, 3), torch.ones(1, 2), "pooler")
    sizes = {"vocab_size": 60, "dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    encoder = DistilBertModel(DistilBertConfig(**sizes))
    with pytest.raises(ValueError, match=words):
        CavMaeSyncTextDualEncoderModel.from_av_text_pretrained(
            CavMaeSyncModel(tiny_config()), encoder, text_pooling="pooler"
        )
    model = CavMaeSyncTextDualEncoderModel.from_av_text_pretrained(
        CavMaeSyncModel(tiny_config()), BertModel(tiny_text_config()), text_pooling="pooler"
    )
    assert model(**texts(2), **tiny_inputs()).logits_per_text.shape == (2, 2)


def test_clip_pooling__goes_from_mean_to_maximum():
    scores = torch.tensor([[0.1, 0.9, 0.2, 5.0], [0.3, 0.3, 0.3, 0.3]])
    present = torch.tensor([True, True, True, False])
    for pooling, temperature, expected in (
        ("mean", 1.0, [0.4, 0.3]),
        ("max", 1.0, [0.9, 0.3]),
        ("lse", 1e3, [0.4, 0.3]),
        ("lse", 1e-3, [0.9, 0.3]),
    ):
        found = pool_moments(scores, present, pooling, torch.tensor(temperature))
        torch.testing.assert_close(found, torch.tensor(expected), atol=2e-3, rtol=0)
    assert pool_moments(scores, torch.zeros(4, dtype=torch.bool), "lse", torch.tensor(0.1)).tolist() == [0, 0]


def test_sigmoid_loss__is_that_of_every_pair():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0], [-2.0, -4.0]])
    positives = torch.tensor([[True, False], [True, True], [False, False]])
    by_hand = sum(
        math.log(1 + math.exp(-value if wanted else value))
        for row, flags in zip(logits.tolist(), positives.tolist(), strict=True)
        for value, wanted in zip(row, flags, strict=True)
    )
    assert text_loss(logits, positives).item() == pytest.approx(by_hand / 3, rel=1e-6)


def test_softmax_loss__takes_several_positives_together():
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    positives = torch.tensor([[True, True, False], [False, False, False]])  # the second is a made negative
    row = math.log(math.exp(2) + math.exp(1) + math.exp(-1)) - math.log(math.exp(2) + math.exp(1))
    columns = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))]
    expected = (row + sum(columns) / 2) / 2
    assert text_loss(logits, positives, "softmax").item() == pytest.approx(expected, rel=1e-6)


def test_moment_loss__weighs_inside_and_outside_alike():
    logits = torch.tensor([[4.0, -4.0, -4.0, -4.0]])
    targets = torch.tensor([[True, False, False, False]])
    valid = torch.tensor([[True, True, True, False]])
    assert moment_loss(logits, targets, valid).item() == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-5)


def test_equal_captions__are_positives_of_each_other():
    model, inputs, words = build().train(), tiny_inputs(3, 3), texts(3)
    words["input_ids"][2], words["attention_mask"][2] = words["input_ids"][0], words["attention_mask"][0]

    output = model(**words, **inputs, return_loss=True)

    positives = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    torch.testing.assert_close(output.text_audio_video_loss, text_loss(output.logits_per_text, positives))
    torch.testing.assert_close(output.text_audio_loss, text_loss(output.logits_per_audio.T, positives))


def test_statements_of_clips__are_positives_and_made_negatives_are_none():
    model, inputs, words = build(), tiny_inputs(2, 3), texts(3)
    output = model(
        **words,
        **inputs,
        caption_clip_ids=torch.tensor([0, 1, -1]),
        caption_keys=torch.tensor([7, 8, 9]),
        clip_keys=torch.tensor([[7, -1], [7, 8]]),  # what is said of the first is true of the second as well
        return_loss=True,
    )

    positives = torch.tensor([[True, True], [False, True], [False, False]])
    torch.testing.assert_close(output.text_audio_video_loss, text_loss(output.logits_per_text, positives))


def test_hard_pairs__count_more():
    model, inputs, words = build(hard_pair_weight=5), tiny_inputs(2, 3), texts(3)
    output = model(
        **words,
        **inputs,
        caption_clip_ids=torch.tensor([0, 1, -1]),
        caption_keys=torch.tensor([7, 8, 9]),
        hard_clip_ids=torch.tensor([-1, 1, 1]),  # the third is the second with two words exchanged
        return_loss=True,
    )

    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    counted = torch.tensor([[1.0, 1.0], [1.0, 5.0], [1.0, 5.0]])
    expected = -(torch.nn.functional.logsigmoid(signs * output.logits_per_text) * counted).sum() / 3
    torch.testing.assert_close(output.text_audio_video_loss, expected)


def test_spans__train_the_moments():
    model, inputs, words = build(score_sequences=False), tiny_inputs(2, 4), texts(2)
    spans = torch.tensor([[1, 0, 0, -1], [-1, -1, -1, -1]])

    output = model(**words, **inputs, caption_moments=spans, return_loss=True)

    valid = spans >= 0
    expected = [
        moment_loss(torch.stack([logits[0, 0], logits[1, 1]]), spans > 0, valid)
        for logits in (output.moment_logits_audio, output.moment_logits_video)
    ]
    torch.testing.assert_close(output.moment_loss, torch.stack(expected).mean())


def test_joint_training__keeps_the_audio_visual_loss():
    model, inputs = build(audio_video_loss_weight=0.5), tiny_inputs(2, 3)

    output = model(**texts(2), **inputs, return_loss=True)

    torch.testing.assert_close(output.audio_video_loss, model.av_model(**inputs, return_loss=True).loss)
    parts = output.text_audio_loss + output.text_video_loss + output.text_audio_video_loss
    torch.testing.assert_close(output.loss, parts + 0.5 * output.audio_video_loss)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_training__brings_texts_to_their_clips(kind):
    model, inputs, words = build(text_loss=kind).train(), tiny_inputs(4, 3), texts(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(**words, **inputs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    found = model.eval()(**words, **inputs).logits_per_text.argmax(dim=1)
    assert found.tolist() == [0, 1, 2, 3] and losses[-1] < losses[0] / 2
    gradients = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert not [name for name in gradients if not any(part in name for part in ("fused", "pooler", "moment_logit"))]


def test_saved__loads_by_the_auto_class(tmp_path):
    model, inputs, words = build(projection_dim=20), tiny_inputs(), texts()
    model.save_pretrained(tmp_path)

    again = AutoModel.from_pretrained(tmp_path)

    assert isinstance(again, CavMaeSyncTextDualEncoderModel)
    assert torch.equal(again(**words, **inputs).logits_per_text, model(**words, **inputs).logits_per_text)
    assert (tmp_path / "modeling_text_cavmae_sync.py").is_file()


def text_encoders():
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 16, "patch_size": 8}
    clip_text = CLIPTextConfig(**BERT, eos_token_id=2)
    return {
        "bert": BertModel(tiny_text_config()),
        "clip's text tower": CLIPTextModel(clip_text),
        "clip": CLIPModel(CLIPConfig(text_config=clip_text.to_dict(), vision_config=vision)),
        "siglip": SiglipModel(SiglipConfig(text_config=BERT, vision_config=vision)),
    }


@pytest.mark.parametrize("kind", ["bert", "clip's text tower", "clip", "siglip"])
def test_parts__join_with_their_weights(tmp_path, kind):
    av, text = CavMaeSyncModel(tiny_config()).eval(), text_encoders()[kind].eval()
    av.save_pretrained(tmp_path / "av")
    text.save_pretrained(tmp_path / "text")

    model = CavMaeSyncTextDualEncoderModel.from_av_text_pretrained(tmp_path / "av", tmp_path / "text").eval()

    inputs, words = tiny_inputs(), texts()
    assert torch.equal(model.av_model(**inputs).audio_embeds, av(**inputs).audio_embeds)
    states = model.get_text_features(**words).last_hidden_state
    tower = getattr(text, "text_model", text) if hasattr(text, "vision_model") else text
    torch.testing.assert_close(states, tower(**words).last_hidden_state)
    model.save_pretrained(tmp_path / "both")
    again = AutoModel.from_pretrained(tmp_path / "both")
    assert torch.equal(again(**words, **inputs).logits_per_text, model(**words, **inputs).logits_per_text)
    assert model(**words, **inputs).logits_per_text.shape == (5, 2)


def test_bad_input__is_told():
    model, inputs = build(), tiny_inputs(2, 3)
    with pytest.raises(ValueError, match="Got no `input_ids`; pass texts to the processor"):
        model.get_text_features()
    with pytest.raises(ValueError, match="5 texts for 2 clips; say which clip each describes"):
        model(**texts(), **inputs, return_loss=True)
    with pytest.raises(ValueError, match="needs texts and clips"):
        model(**inputs, return_loss=True)
    with pytest.raises(TypeError, match="Unknown argument `pixel_value_videos`; is `pixel_values_videos` meant"):
        model(**texts(), **inputs, pixel_value_videos=1)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("text_pooling", "average", "one of"),
        ("projection_dim", 0, "from 1 to"),
        ("clip_pooling_temperature", 0, "above 0"),
        ("num_clip_layers", -1, "from 0 to"),
    ],
)
def test_configuration__refuses_values_that_cannot_work(setting, value, words):
    with pytest.raises(Exception, match=setting) as caught:
        CavMaeSyncTextDualEncoderConfig(**{setting: value})
    assert words in str(caught.value) or words in str(caught.value.__cause__)
