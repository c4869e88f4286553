"""The processor: from files, or frames and audio, to aligned windows and pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import MediaError, MissingTrackError
from cavmae_sync_hf.model import processing_cavmae_sync
from cavmae_sync_hf.model.configuration_cavmae_sync import CavMaeSyncConfig
from cavmae_sync_hf.model.errors_cavmae_sync import on_command_line
from cavmae_sync_hf.model.feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncModel
from cavmae_sync_hf.model.processing_cavmae_sync import CavMaeSyncProcessor
from cavmae_sync_hf.model.video_processing_cavmae_sync import CavMaeSyncVideoProcessor
from helpers.clips import SIZE, noise, numbered_frame, read_number, tone, truncate, write_clip
from helpers.tiny import tiny_config

SIDE = 48
FRAMES = np.zeros((4, 48, 64, 3), np.uint8)


def make_processor(alignment="time", num_frames=4, audio_length=64, **kwargs):
    extractor = CavMaeSyncFeatureExtractor(
        num_frames=num_frames, audio_length=audio_length, num_mel_bins=16, alignment=alignment, **kwargs
    )
    pixels = CavMaeSyncVideoProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, num_frames=num_frames
    )
    return CavMaeSyncProcessor(extractor, pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder):
    return write_clip(folder / "clip.mp4", seconds=4, audio=noise(4))


@pytest.fixture(scope="module")
def mute(folder):
    return write_clip(folder / "mute.mp4", seconds=2, audio=False)


@pytest.fixture(scope="module")
def blind(folder):
    return write_clip(folder / "blind.m4a", video=False, audio=noise(2))


@pytest.mark.parametrize("alignment", ["time", "reference"])
def test_call__one_file_gives_what_its_parts_give(clip, alignment):
    processor = make_processor(alignment)
    media = decode_media(clip, num_frames=4, alignment=alignment)
    output = processor(videos=str(clip), return_tensors="pt")
    audio = processor.feature_extractor(
        media.waveform, sampling_rate=16000, frame_times=media.frame_times, return_tensors="pt"
    )
    pixels = processor.video_processor(media.frames, return_tensors="pt")
    assert set(output) == {"input_values", "padding_mask", "pixel_values_videos"}
    assert output["input_values"].shape == (1, 4, 64, 16) and output["pixel_values_videos"].shape == (
        1,
        4,
        3,
        SIDE,
        SIDE,
    )
    assert torch.equal(output["input_values"], audio["input_values"])
    assert torch.equal(output["pixel_values_videos"], pixels["pixel_values_videos"])


def test_call__windows_are_centred_on_their_frames(clip):
    output = make_processor()(clip, return_tensors="pt", return_times=True)
    assert output["frame_times"].shape == (1, 4) and output["window_times"].shape == (1, 4, 2)
    # Windows start on the spectrogram's 10 ms grid.
    assert (output["window_times"].mean(dim=-1) - output["frame_times"]).abs().max() <= 0.005 + 1e-9
    assert output["window_coverage"].tolist() == [[1.0] * 4]


def test_call__batch_equals_clips_one_by_one(folder, clip):
    other = write_clip(folder / "other.mp4", seconds=2, audio=tone(2))
    processor = make_processor()
    together = processor(videos=[str(clip), other.read_bytes()], return_tensors="pt", return_times=True)
    for row, source in enumerate((clip, other)):
        alone = processor(videos=source, return_tensors="pt", return_times=True)
        for name in alone:
            assert torch.equal(together[name][row], alone[name][0]), name


def test_call__separate_audio_replaces_the_files_own(clip):
    processor = make_processor()
    wave = tone(4, 16000)[0]
    output = processor(videos=clip, audio=wave, sampling_rate=16000, return_tensors="pt")
    media = decode_media(clip, num_frames=4)
    expected = processor.feature_extractor(
        wave, sampling_rate=16000, frame_times=media.frame_times, return_tensors="pt"
    )
    assert torch.equal(output["input_values"], expected["input_values"])
    with pytest.raises(ValueError, match="sampling_rate"):
        processor(videos=clip, audio=wave, return_tensors="pt")


def test_call__separate_audio_file(folder, clip, mute):
    audio = write_clip(folder / "audio.wav", video=False, audio=tone(2, 16000), rate=16000, audio_codec="pcm_s16le")
    output = make_processor()(videos=mute, audio=str(audio), return_tensors="pt")
    assert output["padding_mask"].all() and output["input_values"].shape == (1, 4, 64, 16)


@pytest.mark.parametrize("kind", ["array", "tensor", "images"])
def test_call__decoded_frames_with_their_rate(kind):
    frames = np.stack([numbered_frame(k) for k in range(6)])
    videos = {
        "array": frames,
        "tensor": torch.from_numpy(frames).permute(0, 3, 1, 2),
        "images": [Image.fromarray(frame) for frame in frames],
    }[kind]
    output = make_processor()(
        videos=videos, audio=noise(3, 16000)[0], sampling_rate=16000, fps=2, return_tensors="pt", return_times=True
    )
    assert output["frame_times"].tolist() == [[0.0, 0.5, 1.0, 1.5, 2.0, 2.5]]
    assert output["pixel_values_videos"].shape[:2] == output["input_values"].shape[:2] == (1, 6)


def test_call__decoded_frames_without_times_lie_at_the_centres(clip):
    frames = np.stack([numbered_frame(k) for k in range(4)])
    output = make_processor()(
        videos=frames, audio=noise(2, 8000)[0], sampling_rate=8000, return_tensors="pt", return_times=True
    )
    assert output["frame_times"].tolist() == [[0.25, 0.75, 1.25, 1.75]]


def test_call__metadata_of_a_loader_places_the_frames():
    frames = np.stack([numbered_frame(k) for k in range(3)])
    output = make_processor()(
        videos=frames,
        audio=noise(3, 16000)[0],
        sampling_rate=16000,
        video_metadata={"fps": 10.0, "frames_indices": [0, 9, 21]},
        return_tensors="pt",
        return_times=True,
    )
    assert output["frame_times"][0].tolist() == pytest.approx([0.0, 0.9, 2.1])


def test_call__samples_decoded_frames_on_request():
    frames = np.stack([numbered_frame(k) for k in range(20)])
    output = make_processor()(
        videos=frames, audio=noise(2, 16000)[0], sampling_rate=16000, fps=10, do_sample_frames=True,
        return_tensors="pt", return_times=True,
    )  # fmt: skip
    assert output["frame_times"][0].tolist() == pytest.approx([0.2, 0.7, 1.2, 1.7])


def test_call__one_modality_alone(mute):
    processor = make_processor()
    frames = np.stack([numbered_frame(k) for k in range(4)])
    assert set(processor(videos=frames, return_tensors="pt")) == {"pixel_values_videos"}
    output = processor(audio=noise(2, 16000)[0], sampling_rate=16000, return_tensors="pt")
    assert set(output) == {"input_values", "padding_mask"} and output["input_values"].shape == (1, 4, 64, 16)
    batch = processor(audio=[noise(2, 16000)[0], noise(1, 16000)[0]], sampling_rate=16000, return_tensors="pt")
    assert batch["input_values"].shape == (2, 4, 64, 16)


def test_call__missing_track_is_an_error_or_a_mask(clip, mute, blind):
    processor = make_processor()
    for source, track in ((mute, "audio"), (blind, "video")):
        with pytest.raises(MissingTrackError, match=f"{source.name}.*{track}"):
            processor(videos=source)
    output = processor(videos=[clip, mute, blind], missing="mask", return_tensors="pt", return_times=True)
    assert output["padding_mask"].tolist() == [[True] * 4, [False] * 4, [True] * 4]
    assert output["padding_mask_videos"].tolist() == [[True] * 4, [True] * 4, [False] * 4]
    assert not output["pixel_values_videos"][2].any()
    alone = processor(videos=clip, return_tensors="pt")
    assert torch.equal(output["input_values"][0], alone["input_values"][0])
    assert output["frame_times"][2].tolist() == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=0.02)
    only = processor(videos=blind, missing="mask", return_tensors="pt")
    assert only["pixel_values_videos"].shape == (1, 4, 3, SIDE, SIDE) and not only["padding_mask_videos"].any()


def test_call__audio_of_a_file_has_its_own_rate(clip):
    processor = make_processor()
    frames = np.stack([numbered_frame(k) for k in range(4)])
    for arguments in ({"videos": clip}, {"videos": frames, "audio": str(clip)}, {"videos": clip, "audio": str(clip)}):
        for rate in ({"sampling_rate": 44100}, {"audio_kwargs": {"sampling_rate": 44100}}):
            with pytest.raises(ValueError, match="sampling_rate is 44100.*Leave sampling_rate out"):
                processor(**arguments, **rate)
        plain, named = (processor(**arguments, **rate, return_tensors="pt") for rate in ({}, {"sampling_rate": 16000}))
        assert torch.equal(plain["input_values"], named["input_values"])


def test_call__rate_of_waveforms_does_not_touch_files_beside_them(clip):
    processor = make_processor()
    wave = noise(4, 44100)[0]
    both = processor(audio=[str(clip), wave], sampling_rate=44100, return_tensors="pt")["input_values"]
    assert torch.equal(both[:1], processor(audio=str(clip), return_tensors="pt")["input_values"])
    assert torch.equal(both[1:], processor(audio=wave, sampling_rate=44100, return_tensors="pt")["input_values"])


def test_call__takes_audio_as_datasets_decodes_it(clip):
    processor = make_processor()
    wave = tone(4, 8000)[0]
    expected = processor(videos=clip, audio=wave, sampling_rate=8000, return_tensors="pt")
    output = processor(videos=clip, audio={"array": wave, "sampling_rate": 8000}, return_tensors="pt")
    assert torch.equal(output["input_values"], expected["input_values"])


@pytest.mark.parametrize("kind", ["audio without a video", "file without a video"])
def test_call__clips_of_different_lengths_fill_up_frames_and_windows_alike(blind, kind):
    processor = make_processor(num_frames=6)
    frames = np.stack([numbered_frame(k) for k in range(4)])
    if kind == "audio without a video":
        wave = noise(1, 16000)[0]
        inputs = {"videos": [frames, None], "audio": [wave, wave], "sampling_rate": 16000}
    else:
        inputs = {"videos": [frames, blind], "fps": 4}
    output = processor(**inputs, missing="mask", return_tensors="pt", return_times=True)
    shown, heard = output["pixel_values_videos"], output["input_values"]
    assert shown.shape[:2] == heard.shape[:2] == output["frame_times"].shape == (2, 6)
    assert output["padding_mask_videos"].tolist() == [[True] * 4 + [False] * 2, [False] * 6]
    assert not output["padding_mask"][0, 4:].any() and not shown[0, 4:].any()
    assert output["frame_times"].isnan().tolist() == [[False] * 4 + [True] * 2, [False] * 6]
    config = tiny_config(image_size=SIDE, audio_length=64, num_mel_bins=16, num_frames=6)
    with torch.no_grad():
        names = ("pixel_values_videos", "input_values", "padding_mask_videos", "padding_mask")
        similarity = CavMaeSyncModel(config).eval()(**{name: output[name] for name in names}).similarity
    assert similarity.shape == (2, 6, 6)


def test_call__frames_without_audio_beside_files_with_audio(clip):
    processor = make_processor()
    frames = np.stack([numbered_frame(k) for k in range(4)])
    with pytest.raises(MissingTrackError, match="Clip 1 is frames without audio.*missing='mask'"):
        processor(videos=[clip, frames], fps=4)
    output = processor(videos=[clip, frames], fps=4, missing="mask", return_tensors="pt")
    assert output["padding_mask"].tolist() == [[True] * 4, [False] * 4]


def test_call__full_size_frames_of_few_clips_are_held_at_a_time(clip, monkeypatch):
    held, most = 0, 0

    class Counted:
        def __init__(self):
            nonlocal held, most
            held += 1
            most = max(most, held)

        def __del__(self):
            nonlocal held
            held -= 1

    decode = processing_cavmae_sync.decode_media

    def watched(*args, **kwargs):
        media = decode(*args, **kwargs)
        media.frames.counted = Counted()
        return media

    monkeypatch.setattr(processing_cavmae_sync, "decode_media", watched)
    monkeypatch.setattr(processing_cavmae_sync.os, "cpu_count", lambda: 2)
    output = make_processor()(videos=[clip] * 12, return_tensors="pt")
    assert len(output["pixel_values_videos"]) == 12 and held == 0
    assert most <= 2  # one per thread


def test_call__names_the_clip_whose_frames_cannot_be_used(clip):
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="Clip 1 has .* pixels"):
        make_processor()(videos=[frames, frames - 1.0])


def test_call__clips_that_are_none_are_missing_tracks_with_a_remedy():
    wave = noise(1, 16000)[0]
    for track, inputs in (("video", {"videos": [FRAMES, None]}), ("audio", {"audio": [wave, None]})):
        with pytest.raises(MissingTrackError, match=f"Clip 1 has no {track}.*missing='mask'") as caught:
            make_processor()(**inputs, sampling_rate=16000)
        assert caught.value.track == track
        assert "Add --missing mask to mark" in caught.value.spelled(on_command_line)


def test_call__times_of_frames_without_audio(clip):
    processor = make_processor()
    frames = np.stack([numbered_frame(k) for k in range(4)])
    with pytest.raises(ValueError, match="Clip 0: the times of its frames are unknown; pass `fps`"):
        processor(videos=frames, return_times=True)
    output = processor(videos=[frames, frames[:2]], fps=2, return_times=True, return_tensors="np")
    assert np.array_equal(output["frame_times"], [[0, 0.5, 1, 1.5], [0, 0.5, np.nan, np.nan]], equal_nan=True)


def test_call__metadata_and_rates_per_clip(clip):
    processor = make_processor()
    frames = np.stack([numbered_frame(k) for k in range(4)])
    output = processor(videos=[clip, frames], fps=[None, 2], missing="mask", return_times=True, return_tensors="pt")
    assert output["frame_times"][1].tolist() == [0, 0.5, 1, 1.5]


def test_call__segments_start_at_zero(folder):
    path = write_clip(folder / "long.mp4", seconds=6, audio=noise(6))
    processor = make_processor()
    output = processor(videos=[path, path], start=[1.0, 3.0], end=[3.0, 5.0], return_tensors="pt", return_times=True)
    media = decode_media(path, start=3.0, end=5.0, num_frames=4)
    assert output["frame_times"][1].tolist() == media.frame_times.tolist()
    alone = processor(videos=path, start=3.0, end=5.0, return_tensors="pt")
    assert torch.equal(output["input_values"][1], alone["input_values"][0])


def test_call__frame_times_choose_the_frames(clip):
    processor = make_processor()
    media = decode_media(clip, frame_times=[0.4, 2.0])
    output = processor(videos=clip, frame_times=[0.4, 2.0], return_tensors="pt", return_times=True)
    assert output["frame_times"].tolist() == [media.frame_times.tolist()]
    assert [read_number(frame.numpy()) for frame in media.frames] == [10, 50]
    assert output["pixel_values_videos"].shape[1] == output["input_values"].shape[1] == 2


@pytest.mark.parametrize("kind", [None, "np"])
def test_call__lists_and_arrays(clip, kind):
    output = make_processor()(videos=[clip, clip], return_tensors=kind)
    assert isinstance(output["input_values"], np.ndarray if kind else list)
    assert np.shape(output["input_values"]) == (2, 4, 64, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass `videos`"),
        ({"text": "a dog", "videos": np.zeros((4, 48, 64, 3), np.uint8)}, "no text"),
        ({"videos": "no_such_clip.mp4"}, "no_such_clip.mp4: no such file"),
        (
            {"videos": np.zeros((4, 48, 64, 3), np.uint8), "audio": [np.ones(16000)] * 2, "sampling_rate": 16000},
            "1 videos",
        ),
        ({"videos": np.zeros((4, 48, 64, 3), np.uint8), "num_frames": 5}, "num_frames is 5 but the clip has 4"),
        ({"videos": np.zeros((4, 48, 64, 3), np.uint8), "frame_times": [0.1, 0.2]}, "2 frame times for 4 frames"),
        ({"videos": np.zeros((4, 48, 64, 3), np.uint8), "fps": -1.0}, "positive"),
        ({"videos": np.zeros((4, 48, 64, 3), np.uint8), "start": [0, 1]}, "start has 2 values for 1 clips"),
        ({"videos": "FILE", "fps": 4}, "fps means nothing.*`num_frames`"),
        ({"videos": "FILE", "video_metadata": {"fps": 4}}, "video_metadata means nothing"),
        ({"videos": ["FILE", "FILE"], "fps": [None, 4]}, "fps means nothing for clip 1"),
        ({"videos": FRAMES, "start": 1.0}, "only files are cut"),
        ({"videos": FRAMES, "end": [1.0]}, "end means nothing for clip 0"),
        ({"videos": "FILE", "frame_times": [0.1, 0.2, 0.3], "num_frames": 7}, "3 frame times, but num_frames is 7"),
        ({"videos": FRAMES, "frame_times": [0, 1, 2, 3], "fps": 2}, "leave one of them out"),
        ({"videos": "FILE", "alignment": "reference"}, "processor.feature_extractor.alignment"),
        ({"videos": "FILE", "videos_kwargs": {"alignment": "reference"}}, "processor.feature_extractor.alignment"),
        ({"videos": "FILE", "videos_kwargs": {"num_frames": 4}}, "`num_frames` in `videos_kwargs`"),
        ({"videos": "FILE", "audio_kwargs": {"num_frames": 4}}, "`num_frames` in `audio_kwargs`"),
        ({"videos": FRAMES, "missing": "masked"}, '`missing` is \'masked\'; it must be "error" or "mask"'),
        ({"videos": FRAMES, "damaged": "use"}, '`damaged` is \'use\'; it must be "error" or "keep"'),
        ({"videos": "FILE", "num_frames": "8"}, "num_frames is '8'"),
        ({"videos": "FILE", "num_frames": 3.5}, "num_frames is 3.5"),
        ({"videos": "FILE", "frame_times": "abc"}, "frame_times is 'abc'"),
        ({"videos": "FILE", "frame_times": ["abc"]}, "'abc'.*seconds"),
        ({"videos": "FILE", "start": "abc"}, "start is 'abc'"),
        ({"videos": FRAMES, "fps": "abc"}, "frame rate must be a positive number, got 'abc'"),
        ({"videos": FRAMES, "audio": np.ones(16000)}, "`sampling_rate` is missing"),
        ({"audio": np.zeros((16000, 2)), "sampling_rate": 16000}, "channels first"),
        ({"audio": {"array": np.ones(9), "sampling_rate": 8000}, "sampling_rate": 16000}, "8000 and the call"),
        ({"audio": np.array([0.1, np.nan] * 8000), "sampling_rate": 16000}, "NaN"),
        ({"audio": np.float32(1.0), "sampling_rate": 16000}, "audio"),
    ],
)
def test_call__input_that_cannot_work(clip, arguments, message):
    arguments = dict(arguments)
    if "FILE" in str(arguments.get("videos")):
        arguments["videos"] = clip if isinstance(arguments["videos"], str) else [clip] * len(arguments["videos"])
    with pytest.raises(ValueError, match=message):
        make_processor()(**arguments)


def test_call__unknown_argument_is_named(clip):
    with pytest.raises(TypeError, match="frame_time'"):
        make_processor()(videos=clip, frame_time=[1.0])


def test_call__arguments_of_the_parts_reach_them(clip):
    processor = make_processor()
    plain = processor(videos=clip, return_tensors="pt")["pixel_values_videos"]
    for arguments in ({"do_normalize": False}, {"videos_kwargs": {"do_normalize": False}}):
        pixels = processor(videos=clip, return_tensors="pt", **arguments)["pixel_values_videos"]
        assert pixels.min() >= 0 and not torch.equal(pixels, plain)


@pytest.mark.parametrize(("hop", "suffix"), [(0.5, "mp4"), (0.25, "mkv"), (1.0, "ts")])
def test_stream__equals_the_call_on_the_whole(folder, hop, suffix):
    path = write_clip(folder / f"video.{suffix}", seconds=6, audio=noise(6, 16000), rate=16000)
    processor = make_processor(audio_length=96)
    chunks = list(processor.stream(path, hop=hop, num_frames=5))
    times = torch.cat([chunk["frame_times"] for chunk in chunks], dim=1)
    count = times.shape[1]
    assert count in (6 / hop, 6 / hop + 1)  # the audio's last packet may reach beyond the sixth second
    whole = processor(
        videos=path, frame_times=[(k + 0.5) * hop for k in range(count)], return_tensors="pt", return_times=True
    )
    for name in whole:
        streamed = torch.cat([chunk[name] for chunk in chunks], dim=1)
        # Only the mean that is taken off the waveform differs (it cancels in every spectrogram frame but for
        # rounding).
        assert torch.allclose(streamed.double(), whole[name].double(), atol=2e-3), name


def test_stream__span_has_times_of_the_file(folder):
    path = write_clip(folder / "video2.mp4", seconds=6, audio=noise(6))
    processor = make_processor()
    chunks = list(processor.stream(path, hop=0.5, num_frames=3, start=2.2, end=4.2))
    whole = processor(videos=path, num_frames=4, start=2.2, end=4.2, return_tensors="pt", return_times=True)
    assert torch.allclose(torch.cat([c["frame_times"] for c in chunks], 1), whole["frame_times"] + 2.2)
    assert torch.allclose(torch.cat([c["input_values"] for c in chunks], 1), whole["input_values"], atol=2e-3)
    assert torch.equal(torch.cat([c["padding_mask"] for c in chunks], 1), whole["padding_mask"])


def test_stream__missing_tracks(mute, blind):
    processor = make_processor()
    with pytest.raises(MissingTrackError):
        next(processor.stream(mute))
    (chunk,) = processor.stream(mute, hop=0.5, missing="mask")
    assert not chunk["padding_mask"].any() and "padding_mask_videos" not in chunk
    chunk = next(processor.stream(blind, hop=0.5, missing="mask"))
    assert chunk["padding_mask"].all() and not chunk["padding_mask_videos"].any()


def test_stream__damaged_file_ends_in_an_error_after_what_could_be_read(folder):
    path = write_clip(folder / "long.mkv", seconds=4, audio=noise(4))
    cut, chunks = truncate(path, folder / "cut.mkv"), []
    kept = list(make_processor().stream(cut, hop=0.25, num_frames=2, damaged="keep"))
    with pytest.raises(MediaError, match="cut.mkv.*truncated"):
        for chunk in make_processor().stream(cut, hop=0.25, num_frames=2):
            chunks.append(chunk)
    assert len(chunks) == len(kept) > 2


def test_stream__refuses_arguments_as_the_call_does_and_at_once(clip):
    processor = make_processor()
    for call in (processor, processor.stream):
        with pytest.raises(TypeError, match="Unknown argument 'foo'"):
            call(clip, foo=1)
        with pytest.raises(ValueError, match="feature_extractor.alignment"):
            call(clip, alignment="time")
        with pytest.raises(ValueError, match="num_frames is '8'"):
            call(clip, num_frames="8")
        with pytest.raises(ValueError, match="`missing` is 'x'"):
            call(clip, missing="x")
    with pytest.raises(TypeError, match="'fps'"):
        processor.stream(clip, fps=2)


def test_stream__refuses_what_is_no_media_file():
    with pytest.raises(MediaError, match="text"):
        next(make_processor().stream(b"these are words" * 10))


def test_from_config__fits_the_model():
    config = CavMaeSyncConfig(image_size=32, audio_length=64, num_mel_bins=32, num_frames=3)
    processor = CavMaeSyncProcessor.from_config(config, alignment="reference")
    frames = np.zeros((3, SIZE[1], SIZE[0], 3), np.uint8)
    output = processor(videos=frames, audio=noise(2, 16000)[0], sampling_rate=16000, return_tensors="pt")
    assert output["pixel_values_videos"].shape == (1, 3, 3, 32, 32) and output["input_values"].shape == (1, 3, 64, 32)
    assert processor.feature_extractor.alignment == "reference"


def test_save_pretrained__reload_gives_the_same_inputs(tmp_path, clip):
    processor = make_processor("reference", channel="mean", mean=-4.0)
    processor.save_pretrained(tmp_path)
    again = CavMaeSyncProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    first, second = (each(videos=clip, return_tensors="pt") for each in (processor, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_model_input_names__cover_the_output(clip):
    processor = make_processor()
    assert set(processor(videos=clip, return_tensors="pt")) <= set(processor.model_input_names)
