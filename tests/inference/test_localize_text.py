# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Words in place of the audio: where in the frame they are seen, and when and at which pitch they are heard."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, InferenceError, load_model, localize
from cavmae_sync_hf.inference.plots import draw_spectrogram, spectrogram_figure, strip_figure
from helpers.clips import noise, write_clip
from helpers.rule_models import ColourModel
from helpers.tiny import tiny_config
from helpers.words import save, teach, text_model

RATE = 16000
PLAIN = (124, 116, 104)  # 0 for the model
# What `ColourModel` makes of red and of blue; audio in the lower half of the bins is like red.
RED, BLUE = torch.eye(32)[0], torch.eye(32)[2]


@pytest.fixture(scope="module")
def pair():
    """Words for colours: "the bell" is red, "the dog" blue."""
    rule = ColourModel().eval()
    model, processor = text_model(rule)
    model.av_model = rule
    teach(model, processor, {"the bell": RED, "the dog": BLUE})
    with torch.no_grad():  # redness of the whole frame, of which one patch is red, is small
        model.moment_logit_scale.fill_(math.log(100.0))
        model.moment_logit_bias.fill_(-2.0)
    return model, processor


def colours(number: int, time: float) -> np.ndarray:
    """A red square at 38 to 50 pixels from the left and 28 to 40 from the top, in the second second alone."""
    frame = np.full((48, 64, 3), PLAIN, dtype=np.uint8)
    if time >= 1:
        frame[28:40, 38:50] = (235, *PLAIN[1:])
    return frame


@pytest.fixture(scope="module")
def mute(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("videos") / "mute.mp4", frame=colours, audio=False)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """The same, with silence and then noise that is no higher than 1 kHz."""
    spectrum = np.fft.rfft(noise(1.0, RATE, 1)[0])
    spectrum[1000:] = 0
    low = np.fft.irfft(spectrum, RATE).astype(np.float32)[None] * 3
    samples = np.concatenate([np.zeros((1, RATE), np.float32), low], axis=1)
    return write_clip(tmp_path_factory.mktemp("videos") / "red.mp4", frame=colours, audio=samples, rate=RATE)


def test_text__is_found_where_and_when_it_is_seen(pair, mute):
    found = localize(*pair, mute, text="the bell", fps=4, block=(1, 1))

    assert found.text == "the bell" and found.present.all() and found.silent.all()
    assert found.has_source.tolist() == [False] * 4 + [True] * 4
    x, y = found.peaks()[5]
    assert 38 <= x * 64 <= 50 and 28 <= y * 48 <= 40
    assert np.isfinite(found.peaks()).all()  # there is no audio, and none is needed
    # Log-odds of the frame, and its cosine where there is no audio.
    np.testing.assert_allclose(found.strength, 100 * found.similarity - 2, rtol=1e-4, atol=1e-4)
    assert not found.audio_maps.any() and found.heat()[5].max() == 1 and found.heat()[1].max() < 0.4
    assert '"the bell" fits best at 0:01' in found.remarks[0]
    assert "At 4 of 8 moments the model does not see it in the frame (strength below 0 nats)" in found.remarks[1]


def test_other_text__is_not_seen(pair, mute):
    found = localize(*pair, mute, text="the dog", fps=2)

    assert not found.has_source.any() and found.absence == "not seen"


def test_text__is_found_where_it_is_heard(pair, video):
    found = localize(*pair, video, text="the bell", fps=4)

    lower, upper = found.audio_maps[6, :4].max(), found.audio_maps[6, 4:].max()
    assert lower > 10 * abs(upper) and lower > 0
    # Half of the score is what is heard.
    model, processor = pair
    inputs = processor(videos=video, frame_times=[[1.875]], return_tensors="pt")
    output = model.av_model(input_values=inputs["input_values"], pixel_values_videos=inputs["pixel_values_videos"])
    expected = (output.audio_embeds[0, 0] @ RED + output.video_embeds[0, 0] @ RED) / 2
    assert found.similarity[-1] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("method", ["occlusion", "cosine"])
def test_text_in_a_space_of_its_own__is_compared_there(video, method):
    rule = ColourModel().eval()
    model, processor = text_model(rule, projection_dim=4)
    model.av_model = rule
    with torch.no_grad():
        for name, colour in (("audio", RED), ("video", BLUE - RED)):  # what is seen counts the other way round
            model.projections[name].weight.copy_(torch.stack([RED, BLUE, colour, -colour]))
    teach(model, processor, {"the bell": torch.tensor([1.0, 0.0, 0.0, 1.0])})

    found = localize(model, processor, video, text="the bell", fps=4, block=(1, 1), method=method)

    inputs = processor(videos=video, text=["the bell"], frame_times=[[1.875]], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
        expected = output.text_embeds[0] @ (output.audio_embeds[0, 0] + output.video_embeds[0, 0]) / 2
        scaled = output.moment_logits_video[0, 0, 0]
    assert found.similarity[-1] == pytest.approx(float(expected), rel=1e-4)
    assert found.strength[-1] == pytest.approx(float(scaled), rel=1e-4)
    x, y = found.peaks()[-1]
    assert 32 <= x * 64 <= 56 and 22 <= y * 48 <= 46


def test_cosine_of_patches__takes_the_text_too(pair, video):
    found = localize(*pair, video, text="the bell", fps=2, method="cosine")

    red = found.video_maps[-1] > 0.9  # of all patches that the square reaches into
    assert red.any() and not red[:2].any() and not red[:, :1].any()


def test_least_strength__is_asked_for(pair, mute):
    assert localize(*pair, mute, text="the dog", fps=2, least_strength=-100).has_source.all()


def test_plots__speak_of_the_words(pair, mute):
    found = localize(*pair, mute, text="the bell", fps=2)

    strip, heard = strip_figure(found, mute, count=4), spectrogram_figure(found)

    said = [
        " ".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))
        for figure in (strip, heard)
    ]
    assert 'Where "the bell" is: 4 of 4 moments' in said[0] and "not seen" in said[0]
    assert 'When and at which pitch "the bell" is heard' in said[1]
    assert all("no source" not in words and "sound comes" not in words for words in said)
    assert draw_spectrogram(found).size == (1200, 520)


@pytest.mark.parametrize(
    ("text", "model", "says"),
    [
        ("", None, "The text is ''; say in words"),
        ("a dog " * 20, None, "takes 32 at most; shorten it"),
        ("the bell", CavMaeSyncModel, "A CavMaeSyncModel has no text encoder; load a model with text"),
    ],
)
def test_bad_texts__are_refused(pair, mute, text, model, says):
    kind = pair[0] if model is None else model(tiny_config())

    with pytest.raises(InferenceError, match=says):
        localize(kind, pair[1], mute, text=text)


def test_audio_alone__has_nowhere_to_look(pair, tmp_path):
    sound = write_clip(tmp_path / "s.wav", video=False, audio=noise(1.0, RATE, 1), rate=RATE, audio_codec="pcm_s16le")

    with pytest.raises(InferenceError, match="no moment has a frame; name another span or video"):
        localize(*pair, sound, text="the bell")


def test_command__prints_and_writes(run, mute, video, tmp_path):
    folder = save(*text_model(), tmp_path / "words")
    words = ("localize", mute, "--model", folder, "--text", "the bell", "--fps", 2)

    code, out, _ = run(*words, "--least-strength", 1000)
    values = json.loads(run(*words, "--json")[1])["videos"][0]
    table = run(*words[:2], video, *words[2:], "--out", tmp_path / "all.csv")
    drawn = run(*words, "--out", tmp_path / "places")

    assert code == 0 and "seen at x, y" in out and out.count("not seen") == 4 and '"the bell" fits best at' in out
    assert values["text"] == "the bell" and all(moment["peak"] for moment in values["moments"])
    assert table[0] == 0 and len(list(csv.DictReader((tmp_path / "all.csv").open()))) == 8
    assert drawn[0] == 0 and {path.suffix for path in (tmp_path / "places").iterdir()} == {
        ".png",
        ".json",
        ".npz",
        ".mp4",
    }
    assert load_model(folder, use="text")[1].has_tokenizer


def test_command__says_once_what_is_wrong_with_the_words(run, mute, video, tmp_path):
    folder = save(*text_model(), tmp_path / "words")

    empty = run("localize", mute, video, "--model", folder, "--text", " ")
    plain = run("localize", mute, video, "--model", "example", "--text", "the bell")

    assert empty[0] == plain[0] == 1
    assert empty[2].count("The text is ' '; say in words") == 1
    assert plain[2].count("has no text encoder; name a model with text") == 1
