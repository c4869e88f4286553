"""Queries: audio, images and moments of videos as vectors, refused in plain words where they cannot be."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cavmae_sync_hf import MediaError, SearchError
from cavmae_sync_hf.inference.loudness import span_loudness
from cavmae_sync_hf.search import embed_query, search_moments
from cavmae_sync_hf.search.querying import MAX_QUERY_WINDOWS
from helpers.clips import noise, tone, write_clip
from helpers.indexes import index_settings, make_store, random_vectors, vector_query


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("media") / "video.mp4", seconds=4.0, audio=noise(4.0))


def test_embed_query__is_what_the_index_holds_of_the_same_moment(loaded, video):
    model, processor = loaded
    whole = embed_query(video, model, processor, hop=0.25)
    moment = embed_query(video, model, processor, hop=0.25, start=1.5, end=2.5)

    assert len(whole) == 16 and len(moment) == 4 and (moment.start, moment.seconds) == (1.5, 1.0)
    # What is heard around the moment is heard in both.
    np.testing.assert_allclose(moment.audio, whole.audio[6:10], atol=1e-5)
    np.testing.assert_allclose(moment.video, whole.video[6:10], atol=1e-5)


def test_embed_query__auto_is_all_there_is(loaded, video, tmp_path):
    model, processor = loaded
    audio = write_clip(tmp_path / "audio.wav", video=False, audio=noise(1.0), audio_codec="pcm_s16le")
    mute = write_clip(tmp_path / "mute.mp4", audio=False)

    assert embed_query(video, model, processor, hop=0.5).by == "both"
    assert embed_query(audio, model, processor, hop=0.5).by == "audio"
    assert embed_query(mute, model, processor, hop=0.5).by == "video"
    assert embed_query(video, model, processor, hop=0.5, by="audio").by == "audio"


def test_embed_query__images(loaded, tmp_path):
    model, processor = loaded
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    image.convert("L").save(tmp_path / "grey.jpg")

    memory = embed_query(image, model, processor, hop=0.5)
    file = embed_query(tmp_path / "image.png", model, processor, hop=0.5)
    raw = embed_query((tmp_path / "image.png").read_bytes(), model, processor, hop=0.5)
    grey = embed_query(tmp_path / "grey.jpg", model, processor, hop=0.5)

    assert (memory.by, len(memory), file.by, len(grey)) == ("video", 1, "video", 1)
    np.testing.assert_array_equal(memory.video, file.video)
    np.testing.assert_array_equal(memory.video, raw.video)
    assert np.linalg.norm(grey.video) == pytest.approx(1, abs=1e-5)


def test_embed_query__samples_are_as_their_file(loaded, tmp_path):
    model, processor = loaded
    samples = noise(1.0, rate=16000, channels=1)
    file = write_clip(tmp_path / "s.wav", video=False, audio=samples, rate=16000, audio_codec="pcm_s16le")

    memory = embed_query({"array": samples[0], "sampling_rate": 16000}, model, processor, hop=0.25)
    whole = np.round(samples * 32767).astype(np.int16)
    integers = embed_query({"array": whole, "sampling_rate": 16000}, model, processor, hop=0.25)

    expected = embed_query(file, model, processor, hop=0.25)
    # The two round to 16 bits differently.
    np.testing.assert_allclose(memory.audio, expected.audio, atol=1e-3)
    np.testing.assert_allclose(integers.audio, memory.audio, atol=1e-5)


def test_embed_query__shorter_than_a_step_is_one_window(loaded, video):
    model, processor = loaded

    query = embed_query(video, model, processor, hop=1.0, start=1.0, end=1.2)

    assert len(query) == 1 and query.seconds == pytest.approx(0.2)


def test_embed_query__refuses(loaded, video, tmp_path):
    model, processor = loaded
    silent = write_clip(tmp_path / "silent.mp4", audio=np.zeros((1, 96000), np.float32))
    mute = write_clip(tmp_path / "mute.mp4", audio=False)
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.getvalue()[:40])
    cases = [
        (SearchError, "silent", silent, {"by": "audio"}),
        (SearchError, "no audio", mute, {"by": "both"}),
        (SearchError, "an image and has no audio", image.getvalue(), {"by": "audio"}),
        (SearchError, "no start", image.getvalue(), {"start": 1.0}),
        (SearchError, "cannot be read", broken, {}),
        (SearchError, "is empty", video, {"start": 2.0, "end": 2.0}),
        (SearchError, "at least 0", video, {"start": -1.0}),
        (SearchError, "choose an earlier", video, {"start": 60.0}),
        (SearchError, "start and end", video, {"hop": 4.0 / (MAX_QUERY_WINDOWS + 2)}),
        (SearchError, "sampling_rate", {"array": [0.0]}, {}),
        (SearchError, "channels come first", {"array": np.zeros((99, 2)), "sampling_rate": 16000}, {}),
        (SearchError, "NaN", {"array": [np.nan] * 9000, "sampling_rate": 16000}, {}),
        (MediaError, "no such file", tmp_path / "nothing.mp4", {}),
        (ValueError, "by is", video, {"by": "smell"}),
    ]
    for kind, words, query, more in cases:
        with pytest.raises(kind, match=words):
            embed_query(query, model, processor, **({"hop": 0.5} | more))


def test_loudness__is_the_root_mean_square_in_db(loaded, tmp_path):
    _, processor = loaded
    # A second of silence, then a sine of amplitude 0.3 on both channels, then the end.
    samples = np.concatenate([np.zeros((1, 16000)), tone(2.0, rate=16000, channels=1)], axis=1).astype(np.float32)
    file = write_clip(tmp_path / "s.wav", video=False, audio=samples, rate=16000, audio_codec="pcm_s16le")
    levels = []
    for batch in processor.stream(file, hop=0.25, missing="mask", return_media=True):
        levels += span_loudness(batch["media"], batch["window_times"][0].numpy()).tolist()

    assert levels[0] == -120.0
    expected = 20 * np.log10(0.3 / np.sqrt(2))
    # From the first window that hears nothing else, to the last, of which only half lies in the file.
    np.testing.assert_allclose(levels[6:], expected, atol=0.1)


def test_settings__say_which_value_differs():
    ours = index_settings(processing={"mean": 1.0, "size": {"shortest_edge": 32}})

    with pytest.raises(SearchError, match="another model"):
        ours.check(index_settings(weights="v" * 64), "index", adding=False)
    with pytest.raises(SearchError, match=r"mean was 1.0 and is 2.0"):
        ours.check(index_settings(processing={"mean": 2.0, "size": {"shortest_edge": 32}}), "index", adding=False)
    other = index_settings(hop=1.0, processing=ours.processing)
    ours.check(other, "index", adding=False)
    with pytest.raises(SearchError, match=r"hop of 0.5"):
        ours.check(other, "index", adding=True)


def test_by_and_find__old_spellings_are_accepted_with_a_warning(loaded, video, tmp_path):
    model, processor = loaded
    vectors = random_vectors(6, 1)
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": vectors, "video": vectors}})

    with pytest.warns(FutureWarning, match="by='sound' is now by='audio'"):
        query = embed_query(video, model, processor, hop=0.5, by="sound")
    with pytest.warns(FutureWarning, match="by='picture' is now by='video'"):
        old = vector_query(vectors[:2], vectors[:2], by="picture")
    with pytest.warns(FutureWarning, match="find='sound' is now find='audio'"):
        result = search_moments(store, old, find="sound")

    assert query.by == "audio" and old.by == "video" and result.pairs == ("video -> audio",)
    assert (result.by, result.find) == ("video", "audio")
