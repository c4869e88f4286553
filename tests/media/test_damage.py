"""Damaged files of every container: refused with a reason, or read as far as they can be."""

import io

import numpy as np
import pytest

from cavmae_sync_hf import MediaError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from helpers.clips import joined, noise, numbers, write_clip

SECONDS = 6
FAST_START = {"container_options": {"movflags": "+faststart"}}
CONTAINERS = {
    "mp4": FAST_START,
    "mov": FAST_START,
    "mkv": {},
    "webm": {"video_codec": "libvpx", "audio_codec": "libopus"},
    "avi": {"video_codec": "mpeg4", "audio_codec": "libmp3lame"},
    "ts": {},
    "mpg": {"video_codec": "mpeg2video", "audio_codec": "mp2"},
    "flv": {"rate": 44100},
    "h264": {"audio": False},
    "m4a": {"video": False, **FAST_START},
    "ogg": {"video": False, "audio_codec": "libopus"},
    "mp3": {"video": False, "audio_codec": "libmp3lame"},
    "wav": {"video": False, "audio_codec": "pcm_s16le"},
    "flac": {"video": False, "audio_codec": "flac"},
    "aac": {"video": False, "audio_codec": "aac"},
}
# Containers in which nothing says how long they are, or numbers what comes.
ENDLESS = {"ts", "mpg", "h264", "ogg", "aac"}
UNNUMBERED = {"h264", "aac"}


def flip(data, seed, count=25):
    """Bytes here and there, changed."""
    data = bytearray(data)
    for place in np.random.default_rng(seed).integers(len(data) // 10, len(data), count):
        data[place] ^= 0xFF
    return bytes(data)


def between(data, first, last, inside):
    """A part of the bytes, replaced."""
    first, last = int(len(data) * first), int(len(data) * last)
    return data[:first] + inside(data[first:last]) + data[last:]


DAMAGES = {
    "hole": lambda data: between(data, 0.45, 0.6, lambda part: b""),
    "zeros": lambda data: between(data, 0.45, 0.6, lambda part: bytes(len(part))),
    "noise": lambda data: between(data, 0.45, 0.6, lambda part: np.random.default_rng(0).bytes(len(part))),
    "cut": lambda data: data[: int(len(data) * 0.6)],
    "zero_tail": lambda data: between(data, 0.6, 1.0, lambda part: bytes(len(part))),
    "lost_tail_of_index": lambda data: between(data, 0.985, 1.0, lambda part: bytes(len(part))),
    "header_only": lambda data: data[:200],
    "no_beginning": lambda data: data[len(data) // 3 :],
    "other_beginning": lambda data: np.random.default_rng(0).bytes(3000) + data,
    **{f"flips_{seed}": lambda data, seed=seed: flip(data, seed) for seed in range(3)},
}


@pytest.fixture(scope="module", params=CONTAINERS)
def whole(request, folder):
    options = {"audio": noise(SECONDS, CONTAINERS[request.param].get("rate", 48000)), **CONTAINERS[request.param]}
    return write_clip(folder / f"whole.{request.param}", seconds=SECONDS, **options)


def decoded(data, **options):
    """What `decode_media` gives, or the words of the `MediaError` that it raises."""
    try:
        return decode_media(data, num_frames=6, missing="mask", threads=1, name="clip", **options)
    except MediaError as error:
        assert str(error).startswith("clip: ") and len(str(error)) < 500
        return str(error)


@pytest.mark.parametrize("damage", DAMAGES)
def test_decode_media__damaged_files_are_refused_or_kept(whole, damage):
    container, data = whole.suffix[1:], DAMAGES[damage](whole.read_bytes())
    strict, kept = decoded(data), decoded(data, damaged="keep")
    for media in (strict, kept):
        if not isinstance(media, str):
            assert 0 < media.duration < SECONDS + 0.5
            assert media.waveform is None or len(media.waveform) < (SECONDS + 0.5) * 16000
    if damage in ("hole", "zeros") and container not in UNNUMBERED and (damage, container) != ("zeros", "wav"):
        assert isinstance(strict, str) and "damaged='keep'" in strict
    if damage == "cut" and container not in ENDLESS:
        assert isinstance(strict, str) and "truncated" in strict
    if damage in ("hole", "zeros", "noise", "cut", "zero_tail"):
        # What stands before the damage is as it was.
        assert not isinstance(kept, str)
        if kept.frames is not None:
            whole_frames = decode_media(whole, frame_times=[0.5, 1.5], missing="mask")
            assert numbers(decode_media(data, frame_times=[0.5, 1.5], missing="mask", damaged="keep")) == numbers(
                whole_frames
            )
    if not isinstance(kept, str) and kept.frames is not None and kept.duration > 0.5:
        frames, _ = joined(list(iter_media(data, hop=0.5, num_frames=4, missing="mask", damaged="keep")))
        assert len(frames) == pytest.approx(kept.duration * 2, abs=1.5)


def test_decode_media__a_span_before_the_damage_is_whole(whole):
    data = DAMAGES["cut"](whole.read_bytes())
    if whole.suffix in (".mp4", ".mov", ".mkv", ".webm", ".ts", ".flv"):
        span = decode_media(data, start=0.5, end=1.5, num_frames=4, threads=1)
        assert numbers(span) == numbers(decode_media(whole, start=0.5, end=1.5, num_frames=4))


def test_decode_media__an_index_of_nonsense(folder):
    for suffix in ("mp4", "mkv", "avi"):
        path = write_clip(folder / f"index.{suffix}", seconds=3, **CONTAINERS[suffix] | {"container_options": {}})
        data = path.read_bytes()
        mark = {"mp4": b"stco", "mkv": b"\x1c\x53\xbb\x6b", "avi": b"idx1"}[suffix]
        place = data.rindex(mark) + 12
        broken = data[:place] + b"\x13" * min(64, len(data) - place) + data[place + 64 :]
        kept = decoded(broken, damaged="keep")
        assert isinstance(decoded(broken), str) or numbers(decoded(broken)) == numbers(decoded(data))
        assert suffix != "mkv" or numbers(kept) == numbers(decoded(data))


@pytest.mark.parametrize("error", [IndexError, ValueError, OverflowError, MemoryError, RuntimeError, TimeoutError])
@pytest.mark.parametrize("after", [0, 1, 8])
def test_decode_media__errors_of_reading_are_errors_of_the_file(clip, error, after):
    # Whatever a file object raises, and PyAV, which raises types of its own and Python's, comes as the same. Only an
    # IndexError may be PyAV's way to end a file.
    class Failing(io.BytesIO):
        name = "clip"
        left = after

        def read(self, size=-1):
            self.left -= 1
            if self.left < 0:
                raise error("of its own")
            return super().read(min(size, 4096))

    with pytest.raises(MediaError, match="clip: .*(of its own|truncated)"):
        decode_media(Failing(clip.read_bytes()))


def test_decode_media__encrypted_files_are_named(folder):
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    path = write_clip(folder / "locked.mp4", container_options=keys)
    for read in (decode_media, lambda path: list(iter_media(path))):
        with pytest.raises(MediaError, match="locked.mp4: .*is encrypted; decrypt it first."):
            read(path)


def test_last_packet__lasts_no_longer_for_what_was_lost_before_it(folder):
    options = {"audio_codec": "vorbis", "audio_options": {"strict": "experimental"}}
    data = write_clip(folder / "vorbis.ogg", seconds=6, video=False, audio=noise(6), **options).read_bytes()
    cut = int(len(data) * 0.9)  # before the last page, which says when the track ends
    data = data[:cut] + np.random.default_rng(0).bytes(300) + data[cut:]

    kept = decode_media(data, damaged="keep", missing="mask")
    assert "is truncated, it ends after 5.01 s of the 6.00 s" in decoded(data)
    assert kept.duration == pytest.approx(len(kept.waveform) / kept.sampling_rate, abs=0.03)
