"""What `datasets` hands out for `Video()` and `Audio()` columns, decoder objects and mappings, is taken as it is."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from av.stream import Disposition

from cavmae_sync_hf import MediaError, MissingTrackError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncModel
from cavmae_sync_hf.model.pipeline_inputs_cavmae_sync import prepare_clip
from cavmae_sync_hf.model.pipelines_cavmae_sync import CavMaeSyncFeatureExtractionPipeline
from helpers.clips import loudest_frequency, noise, numbers, tone, write_audio_tracks, write_clip
from helpers.columns import datasets_with_columns
from helpers.tiny import tiny_config
from helpers.tiny_shards import tiny_processor

SECONDS = 2.0


class VideoObject:
    """A decoder of video with the methods of torchcodec's; asked for frames, it decodes with PyAV."""

    def __init__(self, path, encoded: dict | None = None, dimension_order: str = "NCHW") -> None:
        media = decode_media(path, want_audio=False, frame_times=[k / 25 for k in range(50)])
        self.images, self.order, self.asked = media.frames, dimension_order, []
        self.stream_index = 0
        self.metadata = SimpleNamespace(
            begin_stream_seconds=1.0, end_stream_seconds=1.0 + SECONDS, average_fps=25.0, num_frames=50, width=64,
            height=48, duration_seconds=SECONDS,
        )  # fmt: skip
        if encoded is not None:
            self._hf_encoded = encoded

    def _batch(self, places: list[int]) -> Any:
        self.asked += places
        data = self.images[places]
        times = torch.tensor(places) / 25 + 1.0
        data = data if self.order == "NCHW" else data.permute(0, 2, 3, 1)
        return SimpleNamespace(data=data, pts_seconds=times, duration_seconds=torch.full_like(times, 0.04))

    def get_frames_played_at(self, seconds: list[float]) -> Any:
        if not all(1.0 <= time < 1.0 + SECONDS for time in seconds):
            raise IndexError(f"Invalid pts in seconds: {seconds}.")
        return self._batch([int((time - 1.0) * 25 + 1e-6) for time in seconds])

    def get_frames_at(self, indices: list[int]) -> Any:
        return self._batch(list(indices))


class AudioObject:
    """A decoder of audio with the methods of torchcodec's."""

    def __init__(self, samples: np.ndarray, rate: int, encoded: dict | None = None, stream_index: int = 0) -> None:
        self.samples, self.rate, self.stream_index = torch.from_numpy(samples), rate, stream_index
        self.metadata = SimpleNamespace(
            sample_rate=rate, num_channels=len(samples), duration_seconds=samples.shape[1] / rate
        )
        self.asked = 0
        if encoded is not None:
            self._hf_encoded = encoded

    def get_all_samples(self) -> Any:
        self.asked += 1
        return SimpleNamespace(data=self.samples, sample_rate=self.rate, pts_seconds=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def path(folder):
    return write_clip(folder / "clip.mp4", seconds=SECONDS, audio=noise(SECONDS))


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def encodings(path):
    """The ways in which an object of a column notes what it reads."""
    data = path.read_bytes()
    return [
        {"path": str(path), "bytes": None},
        {"path": None, "bytes": data},
        {"path": "of_another_machine/clip.mp4", "bytes": data},
    ]


@pytest.mark.parametrize("way", [0, 1, 2])
def test_objects_of_columns__give_what_their_files_give(path, processor, way):
    encoded = encodings(path)[way]
    video = VideoObject(path, encoded)
    audio = AudioObject(np.zeros((1, 800), np.float32), 8000, encoded, stream_index=1)
    expected = processor(videos=str(path), return_tensors="pt")
    assert_same(processor(videos=video, return_tensors="pt"), expected)
    assert_same(processor(videos=[video], audio=[audio], return_tensors="pt"), expected)
    assert_same(processor(videos=encoded, return_tensors="pt"), expected)
    assert not video.asked and not audio.asked  # the file is read at exact times, with its own audio
    both = processor(videos=[video, str(path)], audio=[audio, None], missing="mask", return_tensors="pt")
    assert torch.equal(both["input_values"][:1], expected["input_values"]) and not both["padding_mask"][1].any()
    streamed = list(processor.stream(video, hop=0.5, audio=audio))
    assert_same(streamed[0], next(processor.stream(str(path), hop=0.5, audio=str(path))))
    chunks = list(iter_media(video, hop=0.5))
    assert numbers(chunks[0]) == numbers(next(iter_media(path, hop=0.5)))
    info = probe_media(video)
    assert info.has_audio and info.has_video and info.source in (encoded["path"], f"<{path.stat().st_size} bytes>")


def test_extractor_and_video_processor__take_objects_too(path, processor):
    video, audio = (
        VideoObject(path, {"path": str(path), "bytes": None}),
        AudioObject(np.zeros((1, 8), np.float32), 8000, {"path": str(path), "bytes": None}, stream_index=1),
    )
    expected = processor(videos=str(path), return_tensors="pt")
    pixels = processor.video_processor(video, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(pixels, expected["pixel_values_videos"])
    waveform = decode_media(path, want_video=False).waveform
    windows = processor.feature_extractor(waveform, sampling_rate=16000, return_tensors="pt")
    assert_same(processor.feature_extractor(audio, return_tensors="pt"), windows)
    expected = processor.feature_extractor([waveform, waveform], sampling_rate=16000, return_tensors="pt")
    assert_same(processor.feature_extractor([audio, audio], return_tensors="pt"), expected)


def test_pipeline__takes_objects(path, processor):
    model = CavMaeSyncModel(tiny_config()).eval()
    extract = CavMaeSyncFeatureExtractionPipeline(model, processor=processor, task="audio-visual-feature-extraction")
    expected = extract(str(path))
    video = VideoObject(path, {"path": str(path), "bytes": None})
    audio = AudioObject(np.zeros((1, 8), np.float32), 8000, {"path": str(path), "bytes": None}, stream_index=1)
    for clip in (video, {"video": video}, {"video": video, "audio": audio}):
        found = extract(clip)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_decode_media__an_object_that_does_not_say_what_it_reads_is_asked(path, order):
    video = VideoObject(path, dimension_order=order)
    whole = decode_media(path, num_frames=5, want_audio=False)
    media = decode_media(video, num_frames=5, want_audio=False)
    assert torch.equal(media.frames, whole.frames) and media.duration == pytest.approx(SECONDS)
    assert torch.allclose(media.frame_times, whole.frame_times, atol=1e-6)
    assert video.asked == numbers(whole)
    for options in (
        {"frame_times": [1.9, 0.3, 0.0, 2.0]},
        {"alignment": "reference", "num_frames": 4},
        {"start": 0.5, "end": 1.5, "num_frames": 3},
    ):
        expected = decode_media(path, want_audio=False, **options)
        found = decode_media(video, want_audio=False, **options)
        assert numbers(found) == numbers(expected), options
        assert torch.allclose(found.frame_times, expected.frame_times, atol=1e-6), options
    chunks = list(iter_media(video, hop=0.5, num_frames=3, want_audio=False))
    expected = list(iter_media(path, hop=0.5, num_frames=3, want_audio=False))
    assert [numbers(chunk) for chunk in chunks] == [numbers(chunk) for chunk in expected]
    assert [chunk.frame_times.tolist() for chunk in chunks] == [
        pytest.approx(chunk.frame_times.tolist(), abs=1e-6) for chunk in expected
    ]
    assert decode_media(video, num_frames=2, want_audio=False, short_side=24).frames.shape == (2, 3, 24, 32)
    info = probe_media(video)
    assert (info.width, info.height, info.frame_rate, info.has_audio) == (64, 48, 25.0, False)


@pytest.mark.parametrize("channel", ["first", "mean"])
def test_decode_media__an_object_of_audio_is_asked(channel):
    samples = np.stack([tone(1.0, 16000, 500, 1)[0], tone(1.0, 16000, 900, 1)[0] / 2])
    audio = AudioObject(samples, 16000)
    media = decode_media(audio, want_video=False, channel=channel)
    expected = samples[0] if channel == "first" else samples.mean(axis=0)
    np.testing.assert_allclose(media.waveform.numpy(), expected, atol=1e-6)
    assert (media.native_channels, media.duration) == (2, 1.0)
    cut = decode_media(audio, want_video=False, channel=channel, start=0.25, end=0.5)
    np.testing.assert_allclose(cut.waveform.numpy(), expected[4000:8000], atol=1e-6)
    faster = decode_media(AudioObject(tone(1.0, 44100, 500, 1), 44100), want_video=False)
    assert len(faster.waveform) == pytest.approx(16000, abs=2)
    assert loudest_frequency(faster.waveform) == pytest.approx(500, abs=2)
    chunks = list(iter_media(audio, hop=0.25, num_frames=2, context=0.1, want_video=False, channel=channel))
    assert [len(chunk.frame_times) for chunk in chunks] == [2, 2]


def test_call__frames_of_one_object_with_the_samples_of_another(path, processor):
    samples = noise(SECONDS, 16000, channels=1)
    output = processor(
        videos=[VideoObject(path)] * 2, audio=[AudioObject(samples, 16000)] * 2, return_tensors="pt", return_times=True
    )
    windows = processor.feature_extractor(
        samples[0], sampling_rate=16000, frame_times=output["frame_times"][0], return_tensors="pt"
    )
    assert torch.allclose(output["input_values"][1:], windows["input_values"], atol=1e-6)
    alone = processor(videos=VideoObject(path), missing="mask", return_tensors="pt")
    assert torch.equal(alone["pixel_values_videos"], output["pixel_values_videos"][:1])
    assert not alone["padding_mask"].any()


def test_decode_media__an_object_lacks_the_other_track(path, processor):
    with pytest.raises(MissingTrackError, match="decoder of video that does not say.*give the audio") as caught:
        decode_media(VideoObject(path))
    assert caught.value.track == "audio" and "missing='mask'" in str(caught.value)
    with pytest.raises(MissingTrackError, match="decoder of video"):
        processor(videos=[VideoObject(path), str(path)])
    with pytest.raises(MissingTrackError, match="decoder of audio"):
        processor(videos=AudioObject(np.zeros((1, 800), np.float32), 8000))
    with pytest.raises(MediaError, match="does not lie in its 2 s"):
        decode_media(VideoObject(path), want_audio=False, start=3.0)
    with pytest.raises(MediaError, match="asked for at 9.000 s"):
        decode_media(VideoObject(path), want_audio=False, frame_times=[9.0])


def test_call__an_object_without_audio_is_a_video_as_frames_are(folder, path, processor):
    mute = write_clip(folder / "mute.mp4", seconds=SECONDS, audio=False)
    own = VideoObject(mute, {"path": str(mute), "bytes": None})
    for video in (own, VideoObject(path)):
        output = processor(videos=video, return_tensors="pt")
        assert set(output) == {"pixel_values_videos"}
        expected = processor(videos=str(path), return_tensors="pt")["pixel_values_videos"]
        assert (output["pixel_values_videos"] - expected).abs().mean() < 0.05
        masked = processor(videos=video, missing="mask", return_tensors="pt")
        assert not masked["padding_mask"].any()
        with pytest.raises(MissingTrackError, match="has no audio"):
            prepare_clip(processor, video, "both")
        assert not prepare_clip(processor, video, "both", missing="mask")["padding_mask"].any()
        assert prepare_clip(processor, video, "video").keys() >= {"pixel_values_videos", "padding_mask_videos"}


def test_decode_media__an_object_that_fails_is_a_media_error(path):
    @dataclass
    class Broken(AudioObject):
        metadata: Any = None

        def get_all_samples(self) -> Any:
            raise RuntimeError("Could not push packet to decoder")

    with pytest.raises(MediaError, match="<Broken>: the decoder gives nothing .Could not push packet"):
        decode_media(Broken(), want_video=False)


def test_objects_of_columns__a_file_that_cannot_be_used_is_named_like_any(tmp_path, path, processor):
    with pytest.raises(MediaError, match="gone.mp4: no such file"):
        processor(videos=VideoObject(path, {"path": str(tmp_path / "gone.mp4"), "bytes": None}))
    with pytest.raises(MediaError, match="words.mp4: is text"):
        processor(videos=VideoObject(path, {"path": "words.mp4", "bytes": b"words instead of a video"}))


def test_objects_of_columns__mean_the_stream_that_they_were_made_for(folder):
    tracks = [{"disposition": Disposition.default}, {"disposition": Disposition(0), "language": "deu"}]
    path = write_audio_tracks(folder / "two.mkv", tracks)
    encoded = {"path": str(path), "bytes": None}
    for stream_index, frequency in ((1, 300), (2, 600), (0, 300)):  # stream 0 is the video
        audio = AudioObject(np.zeros((1, 8), np.float32), 8000, encoded, stream_index)
        waveform = decode_media(audio, want_video=False).waveform
        assert loudest_frequency(waveform) == pytest.approx(frequency, abs=3)
    assert loudest_frequency(decode_media(audio, want_video=False, audio_track="de").waveform) > 590


@pytest.fixture(scope="module")
def datasets():
    return datasets_with_columns(decoders=True)


@pytest.fixture(scope="module")
def rows(datasets, path):
    rows = datasets.Dataset.from_dict({"video": [str(path)] * 2, "audio": [str(path)] * 2, "label": [0, 1]})
    return rows.cast_column("video", datasets.Video()).cast_column("audio", datasets.Audio())


def test_datasets__rows_are_taken_as_they_are(datasets, rows, path, processor):
    expected = processor(videos=str(path), return_tensors="pt")
    row = rows[0]
    assert type(row["video"]).__name__ == "VideoDecoder" and type(row["audio"]).__name__ == "AudioDecoder"
    assert_same(processor(videos=row["video"], return_tensors="pt"), expected)
    assert_same(processor(videos=row["video"], audio=row["audio"], return_tensors="pt"), expected)
    batch = processor(videos=rows[:2]["video"], audio=rows[:2]["audio"], return_tensors="pt")
    assert torch.equal(batch["input_values"][1:], expected["input_values"])
    for column, kind in (("video", datasets.Video), ("audio", datasets.Audio)):
        mapping = rows.cast_column(column, kind(decode=False))[0][column]
        assert set(mapping) == {"path", "bytes"}
    waveform = row["audio"]["array"], row["audio"]["sampling_rate"]
    decoded = {"array": waveform[0], "sampling_rate": waveform[1], "path": str(path)}
    assert processor(videos=row["video"], audio=decoded, return_tensors="pt")["padding_mask"].all()


def test_datasets__map_and_set_transform_and_streams(datasets, rows, path, processor):
    expected = processor(videos=str(path), return_tensors="np")

    def prepare(batch):
        return dict(processor(videos=batch["video"], audio=batch["audio"], return_tensors="np"))

    mapped = rows.map(prepare, batched=True, batch_size=2, remove_columns=["video", "audio"])
    np.testing.assert_allclose(np.array(mapped[1]["input_values"]), expected["input_values"][0], atol=1e-6)
    seen = rows.with_transform(lambda batch: {"values": prepare(batch)["input_values"]})
    np.testing.assert_array_equal(seen[0]["values"], expected["input_values"][0])
    streamed = rows.to_iterable_dataset().map(prepare, batched=True, remove_columns=["video", "audio"])
    np.testing.assert_allclose(np.array(next(iter(streamed))["input_values"]), expected["input_values"][0], atol=1e-6)


def test_torchcodec__a_decoder_of_ones_own_gives_the_same_frames(datasets, path):
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    for options in ({"num_frames": 5}, {"alignment": "reference", "num_frames": 4}, {"start": 0.5, "end": 1.5}):
        expected = decode_media(path, want_audio=False, **options)
        found = decode_media(VideoDecoder(str(path)), want_audio=False, **options)
        assert numbers(found) == numbers(expected)
        assert torch.allclose(found.frame_times, expected.frame_times, atol=1e-4)
    waveform = decode_media(AudioDecoder(str(path)), want_video=False).waveform
    expected = decode_media(path, want_video=False).waveform
    length = min(len(waveform), len(expected))
    assert float((waveform[:length] - expected[:length]).abs().mean()) < 0.01
