# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions about films: what reaches the language model, what comes out of it, and films of any length."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from cavmae_sync_hf import InferenceError, MediaError, ModelError, QueryError, ask, load_model
from cavmae_sync_hf.inference import moments
from cavmae_sync_hf.inference.ask import answer, answer_scores, find_moments, watch
from cavmae_sync_hf.model import media_cavmae_sync
from helpers.clips import noise, write_clip
from helpers.lm import chat, letters, lm_model, written
from helpers.tiny import tiny_inputs
from helpers.words import save, teach, text_model

QUESTION = "When does it ring?"
# A film of a minute, and when its light is on.
SECONDS, LIGHT = 60.0, (40.0, 42.0)


@pytest.fixture(scope="module")
def model():
    return lm_model()


@pytest.fixture(scope="module")
def clip(videos):
    return videos / "1.mp4"  # four seconds


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Dark but for two seconds."""

    def frame(number, time, size=(64, 48)):
        lit = LIGHT[0] <= time < LIGHT[1]
        return np.full((size[1], size[0], 3), 250 if lit else 10, np.uint8)

    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_clip(path, seconds=SECONDS, fps=4, frame=frame, audio=noise(SECONDS))


@pytest.fixture(scope="module")
def finder():
    """A model with text to which "a bell" is a light frame and not a dark one."""
    found, processor = text_model()
    with torch.no_grad():
        frames = torch.stack([torch.full((3, 32, 32), value) for value in (2.1, -2.0)])[None]
        light, dark = found.base_model(pixel_values_videos=frames).video_embeds[0]
        found.video_gate.weight.zero_()
        found.video_gate.bias.fill_(20.0)  # words are seen alone
    teach(found, processor, {"a bell": light - dark})
    return found, processor


# --- one clip ----------------------------------------------------------------------------------------------------


def test_answer__is_what_generate_says_to_the_chat(model, clip):
    loaded, processor = model
    batch = processor.apply_chat_template(
        chat(clip, QUESTION), add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )  # fmt: skip
    expected = loaded.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]

    watched = watch(loaded, processor, clip)
    found = answer(loaded, processor, watched, QUESTION, max_new_tokens=6)

    assert watched.clip_text in written(processor, batch)[0]
    assert found.text == processor.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert found.to_dict()["source"].endswith("1.mp4") and found.seconds_watched == pytest.approx(4, abs=0.1)


def test_a_model_that_captions__is_asked_after_what_it_said_of_every_moment(clip):
    loaded, processor = lm_model(seed=1, tie_word_embeddings=False)
    torch.nn.init.normal_(loaded.get_output_embeddings().weight, std=0.5)
    processor.caption_prompt = "tell all"
    first = chat(clip, "tell all")

    def said(turns: list[dict[str, Any]], most: int) -> str:
        batch = processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True,
            processor_kwargs={"return_tensors": "pt"},
        )  # fmt: skip
        given = loaded.generate(**batch, max_new_tokens=most, do_sample=False)[0, batch["input_ids"].shape[1] :]
        return processor.tokenizer.decode(given, skip_special_tokens=True).strip()

    watched = watch(loaded, processor, clip)
    one, other = (answer(loaded, processor, watched, text, max_new_tokens=6) for text in (QUESTION, "why?"))

    assert watched.captions and watched.captions == said(first, 16 * 4)
    turns = [*first, {"role": "assistant", "content": watched.captions}]
    assert one.text == said([*turns, {"role": "user", "content": QUESTION}], 6)
    assert other.text == said([*turns, {"role": "user", "content": "why?"}], 6)


def test_scores__are_those_of_the_written_times_and_sum_to_1(model, clip):
    loaded, processor = model
    batch = processor.apply_chat_template(
        chat(clip, QUESTION), add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )  # fmt: skip

    found = ask(clip, QUESTION, loaded, processor, max_new_tokens=1)

    assert len(found.times) == len(found.scores) == 4 and found.scores.sum() == pytest.approx(1)
    times = [f"{time:.1f}s" for time in found.times]
    expected = answer_scores(loaded, processor, batch, times).softmax(0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("family", [{}, {"layer_types": ["conv", "full_attention"], "model_type": "lfm2"}])
def test_answer_scores__are_those_of_whole_texts(family, clip):
    # The beginning is read once for all answers, also by layers of short convolutions, which keep other things of it.
    loaded, processor = lm_model(**family)
    batch = processor.apply_chat_template(
        chat(clip, QUESTION), add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )  # fmt: skip
    answers = ["dog", "a cat", "3.4s"]

    found = answer_scores(loaded, processor, batch, answers)

    for answer_text, score in zip(answers, found.tolist(), strict=True):
        ids = processor.tokenizer(f"{answer_text}<eos>", add_special_tokens=False, return_tensors="pt")["input_ids"]
        whole = dict(batch) | {"input_ids": torch.cat([batch["input_ids"], ids], dim=1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        with torch.no_grad():
            likely = loaded(**whole).logits[0, -ids.shape[1] - 1 : -1].log_softmax(-1)
        assert score == pytest.approx(likely.gather(1, ids.T).sum().item(), abs=1e-3)


def test_scores__are_of_times_in_the_place_of_the_one_that_was_said(model, clip, monkeypatch):
    loaded, processor = model
    batch = processor.apply_chat_template(
        chat(clip, QUESTION), add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )  # fmt: skip
    words = processor.tokenizer("bell at 1.5s : 2.5s .", return_tensors="pt")["input_ids"]
    monkeypatch.setattr(loaded, "generate", lambda input_ids, **_: torch.cat([input_ids, words], dim=1))

    found = ask(clip, QUESTION, loaded, processor)

    assert found.text == "bell at 1.5s : 2.5s ."
    answers = [f"bell at 1.5s : {time:.1f}s ." for time in found.times]
    expected = answer_scores(loaded, processor, batch, answers).softmax(0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)


def test_moments__are_the_clearly_likely_ones_best_first(model, clip):
    found = ask(clip, QUESTION, *model, max_new_tokens=1)

    for scores, expected in (
        ([0.1, 0.55, 0.3, 0.05], [0.55]),
        ([0.25, 0.25, 0.25, 0.25], []),
        ([0.05, 0.9, 0.03, 0.02], [0.9]),
    ):
        changed = type(found)(**(vars(found) | {"scores": np.array(scores)}))
        assert [share for _, share in changed.moments] == expected
        assert all(time in found.times for time, _ in changed.moments)


def test_stream__gives_the_answer_in_pieces(clip):
    model, processor = lm_model(seed=3)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    pieces: list[str] = []

    found = ask(clip, QUESTION, model, processor, max_new_tokens=30, stream=pieces.append)

    assert "".join(pieces).strip() == found.text


def test_several_questions__encode_the_film_once(model, clip, monkeypatch):
    loaded, processor = model
    calls = []
    encode = loaded.model.av_model.encode
    monkeypatch.setattr(loaded.model.av_model, "encode", lambda *a: calls.append(a[0]) or encode(*a))
    questions = [QUESTION, "What is heard?", "What is seen?"]

    found = ask(clip, questions, loaded, processor, max_new_tokens=4)

    assert sorted(calls) == ["audio", "video"]
    monkeypatch.undo()
    alone = [ask(clip, question, loaded, processor, max_new_tokens=4) for question in questions]
    assert [one.question for one in found] == questions and [one.text for one in found] == [one.text for one in alone]
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "count"), [({}, 4), ({"num_frames": 3}, 3), ({"fps": 2.0}, 8), ({"start": 1.0, "end": 3.0}, 4)]
)
def test_options__say_which_moments_are_looked_at(model, clip, options, count):
    found = ask(clip, QUESTION, *model, max_new_tokens=1, **options)

    begin, end = options.get("start", 0.0), options.get("end", 4.0)
    assert len(found.times) == count and found.seconds_watched == pytest.approx(end - begin, abs=0.1)
    assert ((found.times >= begin) & (found.times < end)).all() and (np.diff(found.times) > 0).all()


def test_times_of_a_span__count_from_its_start_where_the_model_reads_them(model, clip):
    watched = watch(*model, clip, start=2.0, num_frames=2)

    assert watched.clip_text.startswith("0.5s") and watched.times.tolist() == pytest.approx([2.5, 3.5], abs=0.3)


@pytest.mark.parametrize("kind", ["audio alone", "frames alone"])
def test_files_of_one_track__are_asked_about_as_well(model, tmp_path, kind):
    path = tmp_path / ("a.wav" if kind == "audio alone" else "a.mp4")
    tracks = {"video": False, "audio_codec": "pcm_s16le"} if kind == "audio alone" else {}
    write_clip(path, seconds=2, audio=noise(2) if kind == "audio alone" else False, **tracks)

    watched = watch(*model, path)

    assert list(watched.encoded) == (["audio"] if kind == "audio alone" else ["video"])
    token = "<|audio|>" if kind == "audio alone" else "<|video|>"
    assert watched.clip_text.count("<|") == watched.clip_text.count(token) == 4


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_model_of_one_tower__takes_its_track_alone(clip, tmp_path, modality):
    loaded, processor = lm_model(av={"modality": modality})

    found = watch(loaded, processor, clip)

    assert list(found.encoded) == [modality]
    sound = {"video": False, "audio_codec": "pcm_s16le", "audio": noise(1)}
    other = {"audio": False} if modality == "audio" else sound
    path = write_clip(tmp_path / ("b.mp4" if modality == "audio" else "b.wav"), seconds=1, **other)
    with pytest.raises(InferenceError, match=f"holds nothing here that the model takes, which is {modality};"):
        watch(loaded, processor, path)


def test_context__has_room_for_fewer_moments(clip):
    model, processor = lm_model(max_position_embeddings=120)

    found = ask(clip, QUESTION, model, processor, max_new_tokens=20, num_frames=16)

    # Letters are tokens: 7 of a question's frame and prompt each, 6 of a moment.
    assert 1 <= len(found.times) < 16
    watched = watch(model, processor, clip, num_frames=len(found.times))
    text = processor.expand(f"[user] <|video|>{QUESTION}\n[assistant] ", [watched.clip_text])
    whole = len(processor.tokenizer(text)["input_ids"])
    assert whole + 20 <= 120 < whole + 20 + 8


# --- long films --------------------------------------------------------------------------------------------------


def test_moments_far_apart__are_read_one_by_one_and_are_the_same(model, film, monkeypatch):
    loaded, processor = model
    spans = []
    decode = media_cavmae_sync.decode_media

    def heed(source, **options):
        found = decode(source, **options)
        spans.append(found.duration)
        return found

    for place in ("media_cavmae_sync", "processing_cavmae_sync"):
        monkeypatch.setattr(f"cavmae_sync_hf.model.{place}.decode_media", heed)
    apart = watch(loaded, processor, film)
    assert len(spans) == 4 and max(spans) < 4
    spans.clear()

    whole = processor._media_processor(videos=[film], num_frames=4, return_times=True, return_tensors="pt")

    assert spans == [pytest.approx(SECONDS, abs=0.3)]
    np.testing.assert_allclose(apart.times, whole["frame_times"][0], atol=1e-3)
    given = {name: whole[name] for name in ("pixel_values_videos", "input_values")}
    times = whole["frame_times"].float()
    expected = loaded.model.encode_media(given | {"video_times": times, "audio_times": times})
    for modality, features in expected.items():
        found = apart.encoded[modality].pooler_output[0]
        torch.testing.assert_close(found, features.pooler_output[0], atol=2e-3, rtol=2e-3)


def test_search__shows_the_model_what_the_words_tell_of_and_nothing_else(model, film, finder):
    loaded, processor = model
    seen = []
    encode = loaded.model.av_model.encode

    def heed(modality, values, present):
        if modality == "video":
            seen.append(values)
        return encode(modality, values, present)

    loaded.model.av_model.encode = heed
    told: list[tuple[Any, ...]] = []
    try:
        found = ask(
            film, QUESTION, loaded, processor, max_new_tokens=2, search_model=finder, search_text="a bell",
            most_moments=6, progress=lambda *step: told.append(step),
        )  # fmt: skip
    finally:
        loaded.model.av_model.encode = encode

    assert len(found.times) == sum(values.shape[1] for values in seen) == 6  # of 120
    inside = [LIGHT[0] - 0.5 <= time <= LIGHT[1] + 0.5 for time in found.times]
    assert all(inside) and sum(values.mean() > 1 for values in torch.cat(seen, dim=1)[0]) >= 4
    assert found.seconds_watched == pytest.approx(SECONDS, abs=0.3)
    assert any("looking at" in (step[2] if len(step) > 2 else "") for step in told)


def test_search__holds_a_few_moments_of_the_film_at_a_time(film, finder, monkeypatch):
    sizes = []

    def heed(model, inputs, features):
        sizes.append(inputs["pixel_values_videos"].shape[1])
        return moments.ENCODE(model, inputs, features)

    monkeypatch.setattr(moments, "ENCODE", moments.encode_moments, raising=False)
    monkeypatch.setattr(moments, "encode_moments", heed)

    found = find_moments(*finder, film, "a bell", most=3, hop=1.0, batch_size=16)

    assert sum(sizes) == SECONDS and max(sizes) < 24 and len(found) == 3
    assert found[1] == pytest.approx(41, abs=1.1) and np.diff(found).tolist() == pytest.approx([1, 1])


def test_search__within_a_span_finds_nothing_outside_of_it(film, finder):
    found = find_moments(*finder, film, "a bell", most=4, start=10.0, end=20.0)

    assert found and all(10 <= time < 20 for time in found)


def test_index__is_asked_in_place_of_the_film(model, film, finder, tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    from cavmae_sync_hf import index_videos

    folder = tmp_path / "films [a]"
    folder.mkdir()
    path = folder / "film.mp4"
    path.write_bytes(film.read_bytes())
    write_clip(folder / "light.mp4", seconds=4, fps=4, frame=lambda *_: np.full((48, 64, 3), 250, np.uint8))
    index_videos(folder, tmp_path / "index", finder[0].base_model, finder[1], hop=1.0)
    options: dict[str, Any] = {"search_text": "a bell", "most_moments": 6, "max_new_tokens": 1}

    found = ask(path, QUESTION, *model, index=tmp_path / "index", search_model=finder, **options)

    assert len(found.times) <= 6 and any(LIGHT[0] <= time <= LIGHT[1] for time in found.times)
    with pytest.raises(QueryError, match=r"holds nothing of .*film\.mp4; add it"):
        ask(film, QUESTION, *model, index=tmp_path / "index", search_model=finder, **options)


# --- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "options", "words"),
    [
        ("  ", {}, "The question is '  '; ask something"),
        ([], {}, "There is no question"),
        ("is <|video|> red?", {}, "holds <|video|>, which stands for media"),
        (QUESTION, {"num_frames": 0}, "num_frames is 0; look at 1 moment at least"),
        (QUESTION, {"fps": 0}, "fps is 0; it must be"),
        (QUESTION, {"fps": 1, "num_frames": 2}, "num_frames and fps both say which moments"),
        (QUESTION, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("why " * 400, {}, "there is room for 0; ask in fewer words"),
        (QUESTION, {"most_moments": 3}, "most_moments goes with `search_model` or `index`. Leave out most_moments"),
        (QUESTION, {"fps": 2, "search_model": "x"}, "chooses moments evenly, and a search .*Leave out fps"),
        (QUESTION, {"search_model": 3}, "search_model is a int; pass the name"),
    ],
)
def test_arguments__that_cannot_work_are_told(model, clip, question, options, words):
    with pytest.raises(InferenceError, match=words):
        ask(clip, question, *model, **options)


def test_no_chat_template__says_what_to_do(clip):
    with pytest.raises(InferenceError, match=r"no chat template, .*set `processor.chat_template`"):
        ask(clip, QUESTION, *lm_model(letters(None)))


def test_file_without_media__is_named(model, tmp_path):
    (tmp_path / "notes.mp4").write_text("nothing to see")

    with pytest.raises(MediaError, match=r"notes\.mp4"):
        ask(tmp_path / "notes.mp4", QUESTION, *model)


def test_processor_of_the_towers__is_refused(model, clip):
    with pytest.raises(InferenceError, match=r"load_model\(name, use='answer'\)"):
        ask(clip, QUESTION, model[0], model[1]._media_processor)


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return save(*model, tmp_path_factory.mktemp("models") / "lm")


def test_folder__gives_the_language_model_and_the_audio_visual_one_inside(saved, model, clip, capfd):
    whole, processor = load_model(saved, use="answer")
    inside, plain = load_model(saved)

    assert type(whole) is type(model[0]) and type(processor) is type(model[1]) and not whole.training
    assert type(inside).__name__ == "CavMaeSyncModel" and type(plain).__name__ == "CavMaeSyncProcessor"
    inputs = tiny_inputs()
    assert torch.equal(inside(**inputs).audio_embeds, whole.model.av_model(**inputs).audio_embeds)
    assert inside.config._name_or_path == whole.model.av_model.config._name_or_path == str(saved)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    assert ask(clip, QUESTION, saved, max_new_tokens=3).text == ask(clip, QUESTION, *model, max_new_tokens=3).text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "example"}, r"has no language model; .*`cavmae-sync instruct`.*from_av_text_pretrained"),
        ({"backend": "onnx"}, r"without the language model. Pass backend='torch'"),
        ({"use": "text"}, "has no text encoder"),
        ({"use": "classification"}, "CavMaeSyncForConditionalGeneration, without the classification head"),
    ],
)
def test_folders__that_do_not_fit_the_use_say_so(saved, options, words):
    with pytest.raises(ModelError, match=words):
        load_model(**({"name": saved, "use": "answer"} | options))


def test_damaged_folders__are_told(saved, tmp_path):
    import shutil

    folder = shutil.copytree(saved, tmp_path / "lm")
    settings = json.loads((folder / "config.json").read_text())
    settings["tokens_per_frame"] = 3
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"config.json: `tokens_per_frame` is 3; it must be a square number"):
        load_model(folder, use="answer")
    settings["tokens_per_frame"] = 0
    settings["text_config"]["intermediate_size"] = 49
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="has shape .* config.json asks for"):
        load_model(folder, use="answer")
