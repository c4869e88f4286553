# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The language model's processor: what stands for a clip in a text, batches, contexts and saved folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast

from cavmae_sync_hf import CavMaeSyncLMProcessor, CavMaeSyncProcessor, MediaError
from cavmae_sync_hf.model.auto_map_cavmae_sync import LM_AUTO_MAP, code_files
from helpers.clips import noise, numbered_frame, write_clip
from helpers.lm import A, V, chat, letters, make, write_media, written
from helpers.tiny import tiny_config, tiny_tokenizer


@pytest.fixture(scope="module")
def processor() -> CavMaeSyncLMProcessor:
    return make()


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, Path]:
    return write_media(tmp_path_factory.mktemp("media"))


# What stands for a clip


def test_clip_text__is_times_and_placeholders(processor):
    text = processor.clip_text([0.3125, 0.94, 1.5625], [True, True, False], torch.tensor([True, True, True]))
    assert text == "0.3s<|video|><|audio|>0.9s<|video|><|audio|>1.6s<|audio|>"


def test_clip_text__has_pooled_tokens_and_texts():
    processor = make(tokens_per_frame=4, tokens_per_window=2)

    text = processor.clip_text(
        [0.5, 1.5, float("nan")], [True, False, False], [False, True, False], ["hello", None, ""]
    )

    assert text == f"0.5s{V * 5} hello\n1.5s{A * 3}"
    merged = make(tokens_per_frame=4, tokens_per_window=2, merge_tokens=True)
    assert merged.clip_text([0.5, 1.5], [True, False], [False, True]) == f"0.5s{V}1.5s{A}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5], [True, True], [True]), "1 times, 2 frames, 1 windows and 1 texts"),
        (([0.5], [True], [True], ["a", "b"]), "and 2 texts; give one of each"),
        (([float("nan")], [True], [False]), "Moment 0 is present and its time is nan"),
        (([0.5], [True], [True], [f"a {V}"]), "The text of moment 0 holds a placeholder"),
    ],
)
def test_clip_text__refuses(processor, arguments, words):
    with pytest.raises(ValueError, match=words):
        processor.clip_text(*arguments)


def test_expand__replaces_in_order(processor):
    assert processor.expand(f"a{V}b{A}c{V}", [f"1s{V}", f"2s{A}", "3s"]) == f"a1s{V}b2s{A}c3s"
    assert processor.expand("no media", []) == "no media"


@pytest.mark.parametrize("clip_texts", [[], ["1s", "2s"]])
def test_expand__wants_one_clip_per_placeholder(processor, clip_texts):
    with pytest.raises(ValueError, match=f"has 1 placeholders .* there are {len(clip_texts)} clips"):
        processor.expand(f"a {V}", clip_texts)


# The constructor


def test_tokenizer_without_placeholders__is_told_what_to_do():
    plain, tokenizer = CavMaeSyncProcessor.from_config(tiny_config()), letters()
    with pytest.raises(
        ValueError, match=r"lacks <\|video\|> and <\|audio\|>; call CavMaeSyncLMProcessor.add_media_to"
    ):
        CavMaeSyncLMProcessor(plain.feature_extractor, plain.video_processor, tokenizer)
    size = len(tokenizer)

    assert CavMaeSyncLMProcessor.add_media_tokens(tokenizer) == 2
    assert CavMaeSyncLMProcessor.add_media_tokens(tokenizer) == 0

    processor = CavMaeSyncLMProcessor(plain.feature_extractor, plain.video_processor, tokenizer)
    assert {processor.video_token_id, processor.audio_token_id} == {size, size + 1}
    assert tokenizer.decode([size, size + 1], skip_special_tokens=True) == ""


def test_word_in_the_vocabulary__is_no_placeholder_until_it_is_added():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, V: 1, A: 2, "a": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")

    CavMaeSyncLMProcessor.add_media_tokens(tokenizer)

    assert tokenizer(f"a{V}{V}{A}")["input_ids"] == [3, 1, 1, 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens_per_frame": 8}, "`tokens_per_frame` is 8; it must be a square number"),
        ({"tokens_per_frame": -1}, "a square number"),
        ({"tokens_per_window": 1.5}, "`tokens_per_window` is 1.5; it must be a whole number"),
    ],
)
def test_constructor__refuses(settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)


@pytest.mark.parametrize(("said", "side"), [({}, "left"), ({"padding_side": "right"}, "right")])
def test_padding__is_on_the_left_unless_the_tokenizer_says_otherwise(said, side):
    processor = make(letters(**said))

    tokens = processor(text=["a", "long"], return_tensors="pt")

    assert processor.tokenizer.padding_side == side
    assert tokens["attention_mask"][0].tolist() == ([0, 0, 0, 1] if side == "left" else [1, 0, 0, 0])


# The call


def test_call__has_as_many_placeholders_as_present_moments(media):
    processor = make(tokens_per_frame=4, tokens_per_window=1)
    text = f"see {V} hear {A} end"

    batch = processor(text=text, videos=media["both"], audio=media["sound"], return_tensors="pt", return_times=True)

    ids = batch["input_ids"][0]
    assert batch["pixel_values_videos"].shape == (1, 4, 3, 32, 32) and batch["input_values"].shape == (2, 4, 48, 16)
    assert int((ids == processor.video_token_id).sum()) == 4 * 5
    assert int((ids == processor.audio_token_id).sum()) == int(batch["padding_mask"].sum()) * 2 == 8 * 2
    assert "padding_mask_videos" not in batch and "token_type_ids" not in batch
    both, alone = (f"{V * 5}{A * 2}", A * 2)
    shown = [
        f"{time:.1f}s{moment}" for row, moment in zip(batch["frame_times"], (both, alone), strict=True) for time in row
    ]
    assert written(processor, batch) == [f"see {''.join(shown[:4])} hear {''.join(shown[4:])} end"]


def test_call__gives_what_the_plain_processor_gives(processor, media):
    plain = CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor)
    expected = plain(videos=media["both"], num_frames=3, return_tensors="pt", return_times=True)

    batch = processor(text=V, videos=media["both"], num_frames=3, return_tensors="pt", return_times=True)

    for name in ("pixel_values_videos", "input_values", "padding_mask", "frame_times"):
        assert torch.equal(batch[name], expected[name])
    assert set(processor.model_input_names) >= set(batch) - {"frame_times"}


def test_batch__has_clips_in_the_order_of_the_text(processor, media):
    texts = [f"{A} and {V}", "no media", f"{V}{V}"]
    videos = [media["both"], media["silent"], media["sound"]]

    flat = processor(text=texts, videos=videos, audio=[media["sound"]], return_tensors="pt")
    nested = processor(
        text=texts, videos=[videos[:1], [], videos[1:]], audio=[[media["sound"]], [], []], return_tensors="pt"
    )

    assert all(torch.equal(flat[name], nested[name]) for name in flat)
    assert flat["pixel_values_videos"].shape[:2] == (2, 4)
    sound, both = (processor(text=V, videos=media[name], return_tensors="pt") for name in ("sound", "both"))
    assert torch.equal(flat["pixel_values_videos"][0], both["pixel_values_videos"][0])
    assert torch.equal(
        flat["input_values"], torch.cat([sound["input_values"], both["input_values"], sound["input_values"]])
    )
    first, second, third = written(processor, flat)
    assert first.count(V) == 4 and first.count(A) == 8 and first.index(A) < first.index(" and ") < first.index(V)
    assert second == "no media"
    assert third.count(V) == 4 and third.count(A) == 4 and third.index(V) < third.index(A)


def test_clips_of_different_lengths__are_filled_up(processor, media):
    batch = processor(
        text=[V, V], videos=[media["both"], media["long"]], fps=2, return_tensors="pt", return_times=True
    )

    assert batch["padding_mask_videos"].sum(dim=1).tolist() == batch["padding_mask"].sum(dim=1).tolist() == [4, 8]
    assert batch["frame_times"][0, 4:].isnan().all()
    assert [text.count(V) for text in written(processor, batch)] == [4, 8]
    assert batch["frame_times"][1].tolist() == pytest.approx([0.25 + 0.5 * k for k in range(8)], abs=0.04)


def test_files_without_a_length_in_their_header__and_open_ones_are_measured(processor, media, tmp_path):
    raw = write_clip(tmp_path / "raw.h264", seconds=2, audio=False)
    with open(media["both"], "rb") as handle:
        batch = processor(text=[V, V], videos=[raw, handle], fps=3, max_length=1000, return_tensors="pt")
    assert [text.count(V) for text in written(processor, batch)] == [6, 6]


@pytest.mark.parametrize("missing", ["video", "audio"])
def test_missing_track__has_no_placeholder(processor, media, missing):
    batch = processor(text=V, videos=media["sound" if missing == "video" else "silent"], return_tensors="pt")

    (text,) = written(processor, batch)
    assert (V in text, A in text) == (missing == "audio", missing == "video")
    assert ("pixel_values_videos" in batch, "input_values" in batch) == (missing == "audio", missing == "video")


def test_audio_of_videos__can_be_left_out_or_replaced(processor, media):
    def call(**arguments: Any) -> Any:
        return processor(text=V, videos=media["both"], return_tensors="pt", **arguments)

    without = call(load_audio_from_video=False)
    dubbed = call(audio=[media["sound"]], audio_from_video_indices=[0])
    plain = CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor)

    assert (
        "input_values" not in without and "pixel_values_videos" in without and A not in written(processor, without)[0]
    )
    expected = plain(videos=media["both"], audio=media["sound"], return_tensors="pt")
    assert torch.equal(dubbed["input_values"], expected["input_values"])
    some = processor(
        text=f"{V}{V}{A}",
        videos=[media["both"], media["long"]],
        audio=media["sound"],
        audio_from_video_indices=[1, None],
        return_tensors="pt",
    )
    assert len(some["input_values"]) == 2 and len(some["pixel_values_videos"]) == 2
    assert torch.equal(some["input_values"][:1], plain(videos=media["long"], return_tensors="pt")["input_values"])


@pytest.mark.parametrize("indices", [[3], [None, None], [0, 0]])
def test_audio_slots__must_fit(processor, media, indices):
    with pytest.raises(ValueError, match="audio_from_video_indices is"):
        processor(text=f"{V}{A}", videos=media["both"], audio=[media["sound"]] * 1, audio_from_video_indices=indices)


def test_decoded_frames_and_waveforms__are_taken(processor):
    frames = np.stack([numbered_frame(number) for number in range(8)])
    wave = noise(2, rate=8000, channels=1)[0]

    batch = processor(
        text=f"{V}{A}",
        videos=[frames],
        audio=[wave],
        sampling_rate=8000,
        num_frames=4,
        video_metadata={"fps": 4.0},
        return_tensors="pt",
        return_times=True,
    )
    timed = processor(text=V, videos=[frames], frame_times=np.arange(8) / 4, return_tensors="pt", return_times=True)

    assert batch["pixel_values_videos"].shape[:2] == batch["input_values"].shape[:2] == (1, 4)
    assert batch["frame_times"].tolist() == [[0.25, 0.75, 1.25, 1.75], [0.25, 0.75, 1.25, 1.75]]
    assert timed["frame_times"].tolist() == [[number / 4 for number in range(8)]]
    assert torch.equal(batch["pixel_values_videos"], timed["pixel_values_videos"][:, 1::2])
    with pytest.raises(ValueError, match="Video 0 is decoded frames whose times are unknown; pass `video_metadata`"):
        processor(text=V, videos=[frames])
    with pytest.raises(ValueError, match="sampling_rate"):
        processor(text=A, audio=[wave])


def test_lists_of_images__are_one_video_each(processor):
    from PIL import Image

    images = [Image.fromarray(numbered_frame(number)) for number in range(4)]
    for videos in (images, [images], [[images]]):
        batch = processor(text=V, videos=videos, video_metadata={"fps": 2}, return_tensors="pt")
        assert written(processor, batch) == [f"0.0s{V}0.5s{V}1.0s{V}1.5s{V}"]


def test_segments__count_times_from_their_start(processor, media):
    batch = processor(
        text=f"{V}{V}",
        videos=[media["long"], media["both"]],
        start=[2.0, None],
        end=[4.0, None],
        num_frames=2,
        return_tensors="pt",
    )

    plain = CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor)
    expected = plain(videos=media["long"], start=2.0, end=4.0, num_frames=2, return_tensors="pt")
    assert written(processor, batch) == [f"0.5s{V}{A}1.5s{V}{A}" * 2]
    assert torch.equal(batch["input_values"][:1], expected["input_values"])


def test_asked_times__are_the_moments(processor, media):
    batch = processor(text=V, videos=media["both"], frame_times=[0.2, 1.0, 1.6], return_tensors="pt")
    assert written(processor, batch) == [f"0.2s{V}{A}1.0s{V}{A}1.6s{V}{A}"]


def test_texts_of_moments__follow_their_tokens(processor, media):
    batch = processor(
        text=f"{V}{A}",
        videos=media["both"],
        audio=media["sound"],
        moment_texts=[["hello", "", None, "bye"], None],
        return_tensors="pt",
        return_times=True,
    )
    first, second = (row.tolist() for row in batch["frame_times"])
    said = ["hello", "", "", "bye"]
    rows = zip(first, said, strict=True)
    shown = "".join(f"{time:.1f}s{V}{A}" + (f" {text}\n" if text else "") for time, text in rows)
    assert written(processor, batch) == [shown + "".join(f"{time:.1f}s{A}" for time in second)]


def test_forms__are_tensors_arrays_and_lists(processor, media):
    def call(form: str | None) -> Any:
        return processor(text=[V, "a"], videos=media["both"], return_tensors=form, return_mm_token_type_ids=True)

    tensors, arrays, lists = (call(form) for form in ("pt", "np", None))

    assert isinstance(arrays["input_ids"], np.ndarray) and isinstance(arrays["input_values"], np.ndarray)
    assert np.array_equal(arrays["input_ids"], tensors["input_ids"].numpy())
    assert isinstance(lists["input_ids"], list) and lists["input_ids"][1] == [processor.tokenizer("a")["input_ids"][0]]
    assert np.array_equal(lists["input_values"][0], arrays["input_values"][0])
    kinds = tensors["mm_token_type_ids"]
    assert torch.equal(kinds == 2, tensors["input_ids"] == processor.video_token_id)
    assert torch.equal(kinds == 3, tensors["input_ids"] == processor.audio_token_id)


def test_models_of_longer_hearing_and_several_frames__get_their_inputs(media):
    processor = make(config={"frames_per_moment": 3})
    processor.feature_extractor.clip_length = 96
    frames = np.stack([numbered_frame(number) for number in range(50)])

    batch = processor(text=V, videos=media["both"], return_tensors="pt")
    decoded = processor(text=V, videos=[frames], video_metadata={"fps": 25}, num_frames=4, return_tensors="pt")

    assert batch["pixel_values_videos"].shape == decoded["pixel_values_videos"].shape == (1, 4, 9, 32, 32)
    assert batch["window_offsets"].shape == (1, 4) and batch["input_values"].shape == (1, 4, 96, 16)
    assert "window_offsets" in processor.model_input_names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": None}, "pass a text or a list of texts"),
        ({"text": []}, "pass a text or a list of texts"),
        ({"text": "a", "images": 1}, "no image side"),
        (
            {"text": "a", "videos": "film.mp4"},
            "The text has 0 placeholders <.video.> for 1 clips; write <.video.> into",
        ),
        ({"text": f"a {V}"}, "The text has 1 placeholders <.video.> for 0 clips; give one for each, or take"),
        ({"text": [f"a {A}", "b"], "audio": ["a", "b"]}, "The texts have 1 placeholders <.audio.> for 2 clips"),
        ({"text": [V, V], "videos": [["a", "b"], []]}, "Text 0 has 1 placeholders <.video.> for 2 clips"),
        ({"text": [V, V], "videos": [["a", "b"]]}, "There are 2 texts and 1 lists of clips"),
        ({"text": V, "videos": [None]}, "Video 0 is None"),
        ({"text": V, "videos": "a.mp4", "fps": 0}, "`fps` is 0"),
        ({"text": V, "videos": "a.mp4", "fps": 1, "num_frames": 2}, "give one of them"),
        ({"text": V, "videos": "a.mp4", "num_frames": 0}, "`num_frames` is 0"),
        ({"text": V, "videos": "a.mp4", "max_length": 0}, "`max_length` is 0"),
        ({"text": V, "videos": "a.mp4", "frame_times": [[1], [2]]}, "frame_times is 2 rows for 1 clips"),
        ({"text": V, "videos": "a.mp4", "frame_times": [[]]}, "Row 0 of frame_times"),
        ({"text": V, "videos": "a.mp4", "moment_texts": ["hello"]}, "Row 0 of moment_texts is 'hello'"),
        ({"text": V, "videos": "a.mp4", "moment_texts": [["a"]], "num_frames": 2}, "2 moments and 1 moment_texts"),
        ({"text": V, "videos": "a.mp4", "start": [1, 2]}, "start has 2 values for 1 clips"),
    ],
    ids=lambda value: None,
)
def test_call__refuses(processor, arguments, words):
    with pytest.raises(ValueError, match=words):
        processor(**arguments)


def test_file_that_is_not_there__is_named(processor):
    with pytest.raises(MediaError, match="nothing.mp4"):
        processor(text=V, videos="nothing.mp4")


def test_unknown_argument__is_refused(processor, media):
    with pytest.raises(TypeError, match="num_frmes"):
        processor(text=V, videos=media["both"], num_frmes=3)


# The context


def test_clips_longer_than_the_context__have_fewer_moments(media):
    processor = make(tokens_per_frame=4, tokens_per_window=2)
    text = f"ask {V} and {V}"
    moment = len("0.5s") + 5 + 3

    def moments(limit: int, **arguments: Any) -> list[int]:
        batch = processor(
            text=text, videos=[media["both"], media["long"]], max_length=limit, return_tensors="pt", **arguments
        )
        (shown,) = written(processor, batch)
        assert batch["input_ids"].shape[1] <= limit and shown.startswith("ask ")
        first, second = shown.removeprefix("ask ").split(" and ")
        return [first.count(V) // 5, second.count(V) // 5]

    own = len("ask  and ")
    assert moments(1000, fps=4) == [8, 16]
    assert moments(own + 24 * moment, fps=4) == [8, 16]
    assert moments(own + 24 * moment - 1, fps=4) == [7, 15]
    assert moments(own + 12 * moment, fps=4) == [4, 8]
    assert moments(own + 4 * moment, num_frames=8) == [2, 2]
    assert moments(own + 2 * moment, fps=4) == [1, 1]
    with pytest.raises(
        ValueError, match=f"Text 0 has {own} tokens of its own and 2 clips of at least {2 * moment} tok"
    ):
        moments(own + 2 * moment - 1, fps=4)


def test_tokenizers_own_length__is_the_default(media):
    processor = make(letters(model_max_length=4 + 3 * 6))

    batch = processor(text=[f"ask {V}", V], videos=[media["both"], media["silent"]], num_frames=6, return_tensors="pt")

    assert [text.count(V) for text in written(processor, batch)] == [3, 4]  # 6 and 5 tokens a moment
    with pytest.raises(ValueError, match="a smaller tokens_per_frame .now 0. or tokens_per_window .now 0."):
        processor(text=f"{'long ' * 4}{V}", videos=media["both"])


def test_late_moments__are_counted_with_their_digits(processor, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", seconds=30, fps=5, audio=False, size=(32, 32))
    for limit in range(40, 70, 3):
        ids = processor(text=V, videos=clip, num_frames=20, max_length=limit, return_tensors="pt")["input_ids"]
        assert limit - 6 < ids.shape[1] <= limit


def test_asked_times_and_texts__are_thinned_evenly(processor, media):
    batch = processor(
        text=V,
        videos=media["silent"],
        frame_times=[0.2, 0.6, 1.0, 1.4],
        moment_texts=[["a", "b", "", "d"]],
        max_length=2 * 5 + 9,
        return_tensors="pt",
    )
    assert written(processor, batch) == [f"0.6s{V} a b\n1.4s{V} d\n"]


def test_texts_alone__are_cut_only_on_request(media):
    processor = make(letters(model_max_length=12))
    cut = processor(text=["a " * 20, V], videos=media["silent"], num_frames=2, truncation=True, return_tensors="pt")

    assert cut["input_ids"].shape == (2, 12) and written(processor, cut)[1].count(V) == 2
    assert processor(text="a" * 20, return_tensors="pt")["input_ids"].shape == (1, 20)


# Saved folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "processor"
    make(tokens_per_frame=4, tokens_per_window=2).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("loader", [CavMaeSyncLMProcessor, AutoProcessor])
def test_saved__loads_again(folder, media, loader, tmp_path):
    again = loader.from_pretrained(folder)
    again.save_pretrained(tmp_path)
    twice = loader.from_pretrained(tmp_path)

    first, second, third = (
        one.apply_chat_template(chat(media["both"], "a"), tokenize=True, return_dict=True, return_tensors="pt")
        for one in (make(tokens_per_frame=4, tokens_per_window=2), again, twice)
    )
    assert type(again) is CavMaeSyncLMProcessor and (again.tokens_per_frame, again.tokens_per_window) == (4, 2)
    assert all(torch.equal(first[name], second[name]) and torch.equal(first[name], third[name]) for name in first)
    assert again.chat_template == twice.chat_template == make().chat_template
    assert again.tokenizer.padding_side == "left"
    assert loader.from_pretrained(folder, tokens_per_window=7).tokens_per_window == 7


def test_saved__is_whole(folder):
    settings = json.loads((folder / "processor_config.json").read_text())

    assert settings["auto_map"] == LM_AUTO_MAP and settings["processor_class"] == "CavMaeSyncLMProcessor"
    assert (settings["tokens_per_frame"], settings["tokens_per_window"]) == (4, 2)
    names = {file.name for file in folder.iterdir()}
    assert names >= {"chat_template.jinja", "tokenizer.json", *(file.name for file in code_files())}


def test_saved_tokenizer__makes_the_same_template(folder):
    again = CavMaeSyncLMProcessor.from_pretrained(folder)
    other = CavMaeSyncLMProcessor(again.feature_extractor, again.video_processor, again.tokenizer)
    assert other.chat_template == again.chat_template


def test_tokenizer_of_words__serves_as_well(media):
    processor = make(tiny_tokenizer(model_max_length=int(1e30)))
    batch = processor(text=[f"a dog {V}", "the bell"], videos=media["both"], return_tensors="pt")
    assert int((batch["input_ids"] == processor.video_token_id).sum()) == 4
    assert batch["attention_mask"][1].tolist()[-4:] == [1, 1, 1, 1]
