"""`iter_media`: the frames and the audio of `decode_media`, piece by piece, in constant memory."""

import av
import pytest
import torch

from cavmae_sync_hf import MediaError, MissingTrackError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from cavmae_sync_hf.model.media_tracks_cavmae_sync import INTERLEAVE_SECONDS, MediaReader
from helpers.clips import joined, noise, numbers, on_screen, write_clip


@pytest.mark.parametrize(
    ("argument", "value"), [("num_frames", "8"), ("hop", "x"), ("hop", 0), ("start", "abc"), ("end", "abc")]
)
def test_iter_media__impossible_arguments(clip, argument, value):
    with pytest.raises(ValueError, match=argument):
        next(iter_media(clip, **{argument: value}))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_iter_media__agrees_with_decode_media(folder, suffix):
    path = write_clip(folder / f"stream.{suffix}", seconds=8, audio=noise(8), audio_codec="flac")
    whole = decode_media(path, num_frames=16)
    chunks = list(iter_media(path, hop=0.5, num_frames=5, context=0.7))
    frames, times = joined(chunks)
    assert frames == numbers(whole) and [len(chunk.frame_times) for chunk in chunks] == [5, 5, 5, 1]
    assert torch.equal(times, whole.frame_times)
    for chunk in chunks:
        first = chunk.waveform_start * 16000
        assert torch.equal(chunk.waveform, whole.waveform[first : first + len(chunk.waveform)])
        assert chunk.waveform_start <= max(0.0, float(chunk.frame_times[0]) - 0.7)
        assert first + len(chunk.waveform) >= min(128000, (float(chunk.frame_times[-1]) + 0.7) * 16000)


def test_iter_media__span_of_the_file(folder):
    path = write_clip(folder / "span.mp4", seconds=8, audio=noise(8))
    part = decode_media(path, start=4.3, end=6.3, num_frames=4)
    chunks = list(iter_media(path, hop=0.5, num_frames=3, start=4.3, end=6.3))
    frames, times = joined(chunks)
    assert frames == numbers(part) and torch.allclose(times, part.frame_times)
    assert torch.equal(chunks[0].waveform, part.waveform)
    with pytest.raises(MediaError, match="span.mp4"):
        list(iter_media(path, start=20.0))


def test_iter_media__one_track_only_or_shorter(folder):
    mute = write_clip(folder / "stream_mute.mp4", seconds=2, audio=False)
    frames, _ = joined(list(iter_media(mute, hop=0.5, num_frames=3, missing="mask")))
    assert frames == [6, 18, 31, 43]
    blind = write_clip(folder / "stream_blind.m4a", video=False, audio=noise(3))
    chunks = list(iter_media(blind, hop=0.5, num_frames=4, missing="mask"))
    asked = torch.cat([chunk.asked_times for chunk in chunks]).tolist()
    assert asked == pytest.approx([k / 2 + 0.25 for k in range(6)])
    short = write_clip(folder / "stream_short.mp4", seconds=1, audio=noise(3))
    frames, _ = joined(list(iter_media(short, hop=0.5, num_frames=4)))
    assert frames == [6, 18, 24, 24, 24, 24]


def test_iter_media__holds_only_what_the_next_chunk_needs(folder, monkeypatch):
    # A still image with 40 s of audio: nothing may wait for a second frame that never comes.
    path = write_clip(folder / "podcast.mp4", num_frames=1, audio=noise(40, 16000), rate=16000)
    position = [0.0]
    packets = MediaReader.packets

    def watched(*arguments):
        for packet in packets(*arguments):
            position[0] = packet.time or position[0]
            yield packet

    monkeypatch.setattr(MediaReader, "packets", watched)
    read_ahead = []
    for chunk in iter_media(path, hop=1.0, num_frames=4, context=1.0):
        read_ahead.append(position[0] - float(chunk.asked_times[-1]))
        assert chunk.frames.shape[0] == 4 and len(chunk.waveform) <= 7 * 16000
    # The audio runs ahead by the distance at which a silent video track counts as ended, plus resampling blocks.
    assert len(read_ahead) == 10 and max(read_ahead) < INTERLEAVE_SECONDS + 3


def test_iter_media__video_that_pauses_for_long_goes_on(folder):
    # Slides: after a pause longer than tracks may lie apart, frames are still built from those before it.
    times = [0.0, 1.0, 2.0, 14.0, 15.0, 30.0, 30.5]
    path = write_clip(folder / "slides.mp4", frame_times=times, audio=noise(32, 16000), rate=16000, gop=100)
    chunks = list(iter_media(path, hop=1.0, num_frames=4, context=1.0))
    frames, _ = joined(chunks)
    assert frames == on_screen(times, [k + 0.5 for k in range(len(frames))]) and len(frames) == 32


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_iter_media__track_that_gives_nothing(folder, kind):
    whole, path = write_clip(folder / "whole.mkv", audio=noise(2)), folder / f"no-{kind}.mkv"
    with av.open(str(whole)) as given, av.open(str(path), "w") as made:
        streams = {stream.index: made.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                bad = av.Packet(bytes(packet.size)) if packet.stream.type == kind else packet
                bad.pts, bad.dts, bad.time_base = packet.pts, packet.dts, packet.time_base
                bad.stream = streams[packet.stream.index]
                made.mux(bad)
    options = {"damaged": "keep", "want_audio": True, "want_video": True}
    for read in (decode_media, lambda *a, **k: list(iter_media(*a, hop=0.25, **k))):
        with pytest.raises(MissingTrackError, match=f"no-{kind}.mkv: nothing could be decoded from its {kind} track"):
            read(path, **options)
    media = decode_media(path, num_frames=8, missing="mask", **options)
    chunks = list(iter_media(path, hop=0.25, num_frames=3, missing="mask", **options))
    assert (media.frames is None, media.waveform is None) == (kind == "video", kind == "audio")
    assert sum(len(chunk.frame_times) for chunk in chunks) == 8
    for chunk in chunks:
        assert (chunk.frames is None, chunk.waveform is None) == (kind == "video", kind == "audio")
