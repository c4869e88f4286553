"""Hits cut into files: copies hold what was stored from the key frame before, encoded clips are exact to the frame."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cavmae_sync_hf.model.errors_cavmae_sync import AlreadyExistsError, CavMaeSyncError, QueryError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.search import Hit, cut_hits
from helpers.clips import clicks, onset, read_number, write_clip

CLICK = 2.0
START, END = 1.3, 2.5
GOP = 12  # frames, 25 a second


def hit(path: Path, start: float = START, end: float = END) -> Hit:
    return Hit(path=str(path), start=start, end=end, score=0.5, windows=2, clip_start=0.0, clip_end=4.0)


def clip(path: Path, **options) -> Path:
    return write_clip(path, **{"seconds": 4.0, "audio": clicks([CLICK], 4.0), "gop": GOP} | options)


def frames(path: Path) -> list[int]:
    """Numbers of all frames that come out of a file."""
    with av.open(str(path)) as container:
        return [
            read_number(frame.to_ndarray(format="rgb24").transpose(2, 0, 1)) for frame in container.decode(video=0)
        ]


def click(path: Path) -> float:
    media = decode_media(path, num_frames=1, missing="mask")
    return onset(media.waveform.numpy(), media.sampling_rate)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"video_options": {"bf": "3"}}),
        ("a.mkv", {"video_options": {"bf": "3"}}),  # whose first packets do not say when they are decoded
        ("a.ts", {}),  # in which seeking does not lead to key frames
        ("a.webm", {"video_codec": "libvpx-vp9", "audio_codec": "libopus"}),
        ("a.mov", {"fps": Fraction(30000, 1001)}),
    ],
)
def test_copies__hold_all_from_the_key_frame_before(tmp_path, name, options):
    source = clip(tmp_path / name, **options)

    (cut,) = cut_hits([hit(source)], tmp_path / "clips")

    rate = probe_media(source).frame_rate
    found = frames(cut.path)
    assert cut.is_copy and cut.path == tmp_path / "clips" / f"a_00-00-01.30{source.suffix}"
    assert found[0] % GOP == 0 and found[0] <= START * rate
    assert found[0] / rate == pytest.approx(cut.start, abs=0.03)  # audio of some containers begins before the video
    last = int((END - 0.03) * rate)  # what others are built of may be shown after it
    assert [number for number in found if number <= last] == list(range(found[0], last + 1))
    assert click(cut.path) == pytest.approx(click(source) - cut.start, abs=0.005)
    assert probe_media(cut.path).duration == pytest.approx(END - cut.start, abs=0.15)


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv"])
def test_encoded_clips__hold_the_frames_asked_for_and_their_audio(tmp_path, name):
    source = clip(tmp_path / name)

    (cut,) = cut_hits([hit(source)], tmp_path, reencode=True)

    asked = decode_media(source, frame_times=[START + (k + 0.5) / 25 for k in range(30)])
    assert (cut.is_copy, cut.start, cut.end) == (False, START, END) and cut.path.suffix == ".mp4"
    assert frames(cut.path) == [read_number(frame.numpy()) for frame in asked.frames]
    assert click(cut.path) == pytest.approx(click(source) - START, abs=0.002)
    info = probe_media(cut.path)
    assert (info.channels, info.sampling_rate, info.frame_rate) == (2, 48000, 25)
    found = decode_media(cut.path, frame_times=[0.5]).frames[0].float()
    assert (found - asked.frames[12].float()).abs().mean() < 3  # of 255


def test_encoded_clips__of_turned_video_are_upright(tmp_path):
    source = clip(tmp_path / "turned.mp4", rotation=90, audio=False)

    copied, encoded = (cut_hits([hit(source)], tmp_path / str(way), reencode=way)[0] for way in (False, True))

    shown = decode_media(source, frame_times=[2.0], want_audio=False).frames
    for cut in (copied, encoded):
        again = decode_media(cut.path, frame_times=[2.0 - cut.start], want_audio=False).frames
        assert again.shape == shown.shape and (again.float() - shown.float()).abs().mean() < 3
        assert not probe_media(cut.path).has_audio


def test_audio_alone__is_exact_to_the_sample_when_encoded(tmp_path):
    samples = np.linspace(-0.5, 0.5, 4 * 16000, dtype=np.float32)[None]
    source = write_clip(tmp_path / "c.wav", video=False, audio=samples, rate=16000, audio_codec="pcm_s16le")

    copied, encoded = (cut_hits([hit(source)], tmp_path / str(way), reencode=way)[0] for way in (False, True))

    whole = decode_media(source, want_video=False).waveform
    for cut in (copied, encoded):
        waveform = decode_media(cut.path, want_video=False).waveform
        first = round(cut.start * 16000)
        assert cut.path.suffix == ".wav" and abs(waveform - whole[first : first + len(waveform)]).max() < 1e-4
    assert len(waveform) == round((END - START) * 16000)


def test_what_cannot_be_copied__is_encoded(tmp_path):
    source = clip(tmp_path / "d.mpg", video_codec="mpeg2video", audio_codec="mp2")  # whose packets lack times

    (cut,) = cut_hits([hit(source)], tmp_path)

    assert not cut.is_copy and cut.path.suffix == ".mp4" and len(frames(cut.path)) == 30


def test_padding__ends_with_the_file(tmp_path):
    source = clip(tmp_path / "e.mp4")

    begin, end = cut_hits([hit(source, 0.2, 1.0), hit(source, 3.0, 4.0)], tmp_path, reencode=True, padding=0.5)

    assert (begin.start, begin.end, end.start) == (0.0, 1.5, 2.5) and end.end == pytest.approx(4.0, abs=0.03)
    assert frames(begin.path)[:2] == [0, 1] and frames(end.path)[-1] == 99
    with pytest.raises(QueryError, match="padding is -1"):
        cut_hits([hit(source)], tmp_path, padding=-1)


def test_bad_files__are_named_and_the_others_cut(tmp_path):
    source = clip(tmp_path / "Straße 日本.mp4")
    (tmp_path / "text.mp4").write_text("text")
    hits = [hit(tmp_path / "none.mp4"), hit(source), hit(tmp_path / "text.mp4"), hit(source, 90, 91), hit(source)]
    told: list[tuple[str, str]] = []

    cuts = cut_hits(hits, tmp_path / "new", on_error=lambda name, error: told.append((Path(name).name, str(error))))

    assert [cut is not None for cut in cuts] == [False, True, False, False, True]
    assert [name for name, _ in told] == ["none.mp4", "text.mp4", source.name]
    assert "no such file" in told[0][1] and "is text" in told[1][1] and "lasts 4.00 s" in told[2][1]
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["Straße_日本_00-00-01.30-2.mp4", "Straße_日本_00-00-01.30.mp4"]
    with pytest.raises(CavMaeSyncError, match="no such file"):
        cut_hits(hits, tmp_path / "other")


def test_clips__replace_nothing_unasked(tmp_path):
    source = clip(tmp_path / "f.mp4")
    (tmp_path / "f_00-00-01.30.mp4").write_text("mine")

    with pytest.raises(AlreadyExistsError, match="f_00-00-01.30.mp4 is there already"):
        cut_hits([hit(source, 0.0, 1.0), hit(source)], tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.mp4", "f_00-00-01.30.mp4"]
    assert cut_hits([hit(source)], tmp_path, overwrite=True)[0].path.stat().st_size > 1000
