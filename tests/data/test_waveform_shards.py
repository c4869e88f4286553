"""Shards that hold the audio itself: what is in them, who reads them, and what does not fit."""

import numpy as np
import pytest
import torch
from datasets import Audio, load_dataset

from cavmae_sync_hf import CavMaeSyncProcessor, DataError
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.prepare import prepare
from cavmae_sync_hf.data.shards import CARD_NAME, read_index, read_shard
from cavmae_sync_hf.data.streaming import CavMaeSyncStreamingDataset
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from helpers.clips import noise, write_clip
from helpers.encoders import encoder_config
from helpers.tiny import tiny_config

# Of samples rounded to 16 bits, half a step; of log-mels kept in half precision, see test_prepare.py.
SAMPLE_TOLERANCE = 2**-16 + 1e-7
WINDOW_TOLERANCE = 2**-8 / 4.4849 + 2e-3


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, seconds in enumerate((2.0, 1.0)):
        write_clip(folder / f"{number}.mp4", seconds=seconds, audio=noise(seconds, seed=number))
    write_clip(folder / "mute.mp4", audio=False)
    return folder


def processor_of(kind: str | None = None, **settings) -> CavMaeSyncProcessor:
    return CavMaeSyncProcessor.from_config(encoder_config(kind) if kind else tiny_config(), **settings)


@pytest.fixture(scope="module")
def shards(videos, tmp_path_factory):
    settings = {"missing": "keep", "num_frames": 4, "audio": "waveform", "workers": 1, "short_side": None}
    return prepare(videos, tmp_path_factory.mktemp("set") / "out", jpeg_quality=100, **settings).folder


def test_shards__hold_the_audio_in_16_bits(videos, shards):
    index = read_index(shards)
    assert index.audio == "waveform" and index.with_audio == 2 and index.mean is not None
    clips = {clip.info["id"]: clip for path in index.paths for clip in read_shard(path)}
    for name in ("0", "1"):
        audio = decode_media(videos / f"{name}.mp4", want_video=False).waveform
        assert clips[name].flac is not None and len(clips[name].flac) < 2 * len(audio)
        torch.testing.assert_close(clips[name].waveform(), audio, atol=SAMPLE_TOLERANCE, rtol=0)
    assert clips["mute"].flac is None and clips["mute"].waveform() is None
    assert "FLAC, 16 bits at 16000 Hz" in (shards / CARD_NAME).read_text()
    rows = load_dataset(str(shards), split="train", streaming=True)
    assert isinstance(rows.features["waveform.flac"], Audio) and rows.features["waveform.flac"].sampling_rate == 16000


def test_shards__are_the_same_again(videos, shards, tmp_path):
    settings = {"missing": "keep", "num_frames": 4, "audio": "waveform", "workers": 1, "short_side": None}
    again = prepare(videos, tmp_path / "out", jpeg_quality=100, **settings).index
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in read_index(shards).shards]
    with pytest.raises(DataError, match="audio was 'waveform' and is None"):
        prepare(videos, tmp_path / "out", jpeg_quality=100, **(settings | {"audio": "log_mel"}))


@pytest.mark.parametrize("kind", ["hubert", "whisper", None])
def test_shards__give_the_windows_of_the_files(videos, shards, kind):
    processor = processor_of(kind)
    files = CavMaeSyncDataset(str(videos), processor, frames="all")
    kept = CavMaeSyncDataset(shards, processor, frames="all")
    streamed = {sample["clip_id"]: sample for sample in CavMaeSyncStreamingDataset(shards, processor, frames="all")}
    for number, clip in enumerate(kept.clip_ids()):
        expected, found = files[files.clip_ids().index(clip)], kept[number]
        tolerance = WINDOW_TOLERANCE if kind is None else SAMPLE_TOLERANCE
        assert torch.equal(found["padding_mask"], expected["padding_mask"])
        torch.testing.assert_close(found["input_values"], expected["input_values"], atol=tolerance, rtol=0)
        assert torch.equal(streamed[clip]["input_values"], found["input_values"])
    assert not kept[kept.clip_ids().index("mute")]["padding_mask"].any()


def test_shards_that_do_not_fit__are_refused_with_what_would(videos, shards, tmp_path):
    with pytest.raises(DataError, match="prepared with sampling_rate=16000, the processor has 48000"):
        CavMaeSyncDataset(shards, processor_of("pe_audio_encoder"))
    with pytest.raises(ValueError, match="audio must be one of 'log_mel', 'waveform', got 'mp3'"):
        prepare(videos, tmp_path / "other", audio="mp3")
    plain = prepare(videos, tmp_path / "plain", missing="keep", num_frames=4, num_mel_bins=16, workers=1).folder
    with pytest.raises(DataError, match="hold log-mels, .* audio='waveform' and sampling_rate=48000"):
        CavMaeSyncDataset(plain, processor_of("pe_audio_encoder"))


def test_louder_than_full_scale__is_cut(tmp_path):
    from cavmae_sync_hf.data.shards import encode_flac

    samples = torch.tensor(np.linspace(-1.5, 1.5, 9600), dtype=torch.float32)
    (tmp_path / "a.flac").write_bytes(encode_flac(samples, 48_000))
    found = decode_media(tmp_path / "a.flac", sampling_rate=48_000, want_video=False).waveform
    torch.testing.assert_close(found, samples.clamp(-1, 32767 / 32768), atol=SAMPLE_TOLERANCE, rtol=0)
