"""A pipeline that pairs audio with the wrong frames must not pass unnoticed."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from transformers import BatchFeature

from cavmae_sync_hf import CavMaeSyncForAudioVisualClassification, CavMaeSyncModel, CavMaeSyncProcessor, SelfCheckError
from cavmae_sync_hf.selfcheck import SelfCheckWarning, selfcheck
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config

MOMENTS, WIDTH = 6, 64


class FakeModel(torch.nn.Module):
    """Embeds windows and frames as they are, so that a test decides what lies near what."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, input_values, pixel_values_videos, **_):
        normalise = torch.nn.functional.normalize
        return SimpleNamespace(
            audio_embeds=normalise(input_values, dim=-1), video_embeds=normalise(pixel_values_videos, dim=-1)
        )


class FakeProcessor:
    """Clip `n` gets its own direction and one for each moment; `order` says which audio goes to which frame."""

    def __init__(self, order=range(MOMENTS), clip_shift=0, same_audio=False, absent=()):
        self.order, self.clip_shift, self.same_audio, self.absent = list(order), clip_shift, same_audio, absent

    def __call__(self, videos, return_tensors):
        number = int(videos)

        def embed(clip):
            generator = torch.Generator().manual_seed(clip)
            return torch.randn(1, WIDTH, generator=generator) + torch.randn(MOMENTS, WIDTH, generator=generator)

        audio = embed(number + self.clip_shift)[self.order]
        if self.same_audio:
            audio = audio.mean(dim=0, keepdim=True).expand(MOMENTS, -1)
        data = {"input_values": audio[None], "pixel_values_videos": embed(number)[None]}
        if self.absent:
            data["padding_mask"] = torch.tensor([[moment not in self.absent for moment in range(MOMENTS)]])
        return BatchFeature(data)


def test_selfcheck__passes_when_audio_and_frames_belong_together():
    result = selfcheck(FakeModel(), FakeProcessor(), ["1", "2", "3"])

    assert result.passed and result.reasons == []
    assert result.true_similarity == pytest.approx(1.0, abs=1e-5)
    # Moments share their clip's direction (half of the variance), other clips share nothing.
    assert 0.3 < result.shuffled_within < 0.7 and abs(result.shuffled_across) < 0.2
    assert result.within_margin == pytest.approx(result.true_similarity - result.shuffled_within, abs=1e-6)
    assert result.within_p_value < 0.01
    assert result.across_accuracy == 1.0
    assert [row["clip"] for row in result.per_clip] == result.clips == ["1", "2", "3"]


def test_selfcheck__fails_when_moments_are_shuffled():
    with pytest.raises(SelfCheckError, match="other moments of the clip") as caught:
        selfcheck(FakeModel(), FakeProcessor(order=[3, 4, 5, 0, 1, 2]), ["1", "2"])

    result = caught.value.result
    assert not result.passed and result.within_margin < 0 < result.across_margin
    assert result.within_p_value > 0.5
    assert "FAILED" in str(caught.value)


def test_selfcheck_error__survives_pickling():
    with pytest.raises(SelfCheckError) as caught:
        selfcheck(FakeModel(), FakeProcessor(clip_shift=1), ["1", "2"])

    again = pickle.loads(pickle.dumps(caught.value))

    assert type(again) is SelfCheckError and str(again) == str(caught.value)
    assert again.result == caught.value.result


def test_selfcheck__fails_when_clips_are_mixed_up():
    # Every clip gets the audio of its neighbour, in the right order.
    with pytest.raises(SelfCheckError, match="other clips"):
        selfcheck(FakeModel(), FakeProcessor(clip_shift=1), ["1", "2", "3", "4"])


def test_selfcheck__fails_when_all_embeddings_are_alike():
    class Flat(FakeModel):
        def forward(self, **inputs):
            return super().forward(**{name: torch.ones_like(value) for name, value in inputs.items()})

    with pytest.raises(SelfCheckError) as caught:
        selfcheck(Flat(), FakeProcessor(), ["1", "2"])

    assert len(caught.value.result.reasons) == 2
    assert caught.value.result.within_p_value == 1.0


def test_selfcheck__fails_on_nan():
    class Broken(FakeModel):
        def forward(self, **inputs):
            return super().forward(**{name: value * float("nan") for name, value in inputs.items()})

    result = selfcheck(Broken(), FakeProcessor(), ["1", "2"], on_failure="ignore")

    assert "the embeddings are not finite" in result.reasons
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["true_similarity"] is None


def test_selfcheck__warns_when_asked_to():
    with pytest.warns(SelfCheckWarning, match="self-check failed on 2"):
        result = selfcheck(FakeModel(), FakeProcessor(clip_shift=9), ["1", "2"], on_failure="warn", min_margin=0.2)

    assert not result.passed


def test_selfcheck__margin_can_be_raised():
    assert selfcheck(FakeModel(), FakeProcessor(), ["1", "2"], min_margin=0.3).passed
    assert not selfcheck(FakeModel(), FakeProcessor(), ["1", "2"], on_failure="ignore", min_margin=0.9).passed


def test_selfcheck__one_clip_is_compared_within_itself():
    result = selfcheck(FakeModel(), FakeProcessor(), "1")

    assert result.passed and result.across_margin is None and result.within_margin > 0


def test_selfcheck__windows_as_long_as_the_clip_are_compared_across_clips():
    result = selfcheck(FakeModel(), FakeProcessor(same_audio=True), ["1", "2"])

    assert result.passed and result.within_margin is None and result.across_margin > 0
    with pytest.raises(ValueError, match="pass two or more clips"):
        selfcheck(FakeModel(), FakeProcessor(same_audio=True), ["1"])


def test_selfcheck__leaves_absent_moments_out():
    # The absent moments are those that do not match.
    processor = FakeProcessor(order=[1, 0, 2, 3, 4, 5], absent=(0, 1))

    result = selfcheck(FakeModel(), processor, ["1"])

    assert result.per_clip[0]["moments"] == MOMENTS - 2
    assert result.true_similarity == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="no moment with both"):
        selfcheck(FakeModel(), FakeProcessor(absent=range(MOMENTS)), ["1", "2"])


@pytest.mark.parametrize(
    ("clips", "options", "words"), [([], {}, "no clips"), (["1"], {"on_failure": "shout"}, "on_failure")]
)
def test_selfcheck__refuses_bad_arguments(clips, options, words):
    with pytest.raises(ValueError, match=words):
        selfcheck(FakeModel(), FakeProcessor(), clips, **options)


def test_selfcheck__refuses_a_model_of_one_modality():
    model = CavMaeSyncModel(tiny_config(modality="audio"))

    with pytest.raises(ValueError, match="multimodal"):
        selfcheck(model, FakeProcessor(), ["1"])


@pytest.mark.parametrize("model_class", [CavMaeSyncModel, CavMaeSyncForAudioVisualClassification])
def test_selfcheck__runs_real_files_through_model_and_processor(model_class, tmp_path):
    model = model_class(tiny_config(position_embedding_type="learned")).train()
    clips = [write_clip(tmp_path / f"{seed}.mp4", audio=noise(2.0, seed=seed)) for seed in range(2)]

    result = selfcheck(model, CavMaeSyncProcessor.from_config(model.config), clips, on_failure="ignore")

    assert result.clips == ["0.mp4", "1.mp4"]
    assert all(row["moments"] == 4 for row in result.per_clip)
    assert -1 <= result.true_similarity <= 1 and result.across_margin is not None
    assert model.training  # as it was
