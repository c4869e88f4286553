"""Frames to pixels: PIL's numbers exactly, every form of frames, frame choice, and clear refusals."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers.video_utils import VideoMetadata

from cavmae_sync_hf.model.resize_cavmae_sync import resize_crop_exact
from cavmae_sync_hf.model.video_processing_cavmae_sync import CavMaeSyncVideoProcessor

FIXTURES = Path(__file__).parents[1] / "fixtures"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def random_frames(height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    """Random frames `(count, height, width, 3)` uint8: every grey level and the hardest edges for a resize."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def pil_resize(frame: Tensor, height: int, width: int) -> np.ndarray:
    """PIL's bicubic resize, rows first: newer versions of Pillow otherwise choose the order by the sizes."""
    image = Image.fromarray(frame.numpy()).resize((width, frame.shape[0]), Image.Resampling.BICUBIC)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def pixels(videos: object, **options: object) -> Tensor:
    return CavMaeSyncVideoProcessor()(videos, return_tensors="pt", **options)["pixel_values_videos"]


def grey_levels(values: Tensor) -> Tensor:
    """Undo scaling and normalisation."""
    return ((values * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("name", ["preprocess_10s", "preprocess_3s"])
def test_pixels__equal_the_published_transform(name: str) -> None:
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    for form in (tensors["image"], tensors["image"].permute(2, 0, 1).contiguous()):
        assert torch.equal(pixels(form)[0, 0], tensors["pixel_values"])


@pytest.mark.parametrize("shape", [(97, 130), (40, 33), (16, 16), (300, 224), (224, 500), (481, 270), (5, 700)])
def test_resize__equals_pil_bit_for_bit(shape: tuple[int, int]) -> None:
    frames = random_frames(*shape, count=2)
    for target in ((48, 65), (224, 231), (shape[0], 20)):
        expected = np.stack([pil_resize(frame, *target) for frame in frames])
        expected_frames = torch.from_numpy(expected).permute(0, 3, 1, 2)
        interleaved = frames.permute(0, 3, 1, 2)
        for form in (interleaved, interleaved.contiguous()):
            assert torch.equal(resize_crop_exact(form, target), expected_frames)
            window = resize_crop_exact(form, target, (3, 5, target[0] - 4, target[1] - 9))
            assert torch.equal(window, expected_frames[:, :, 3:-1, 5:-4])


def test_resize__long_clips_go_in_pieces() -> None:
    frames = random_frames(20, 30, count=37).permute(0, 3, 1, 2)
    whole = resize_crop_exact(frames, (10, 15))
    assert torch.equal(whole[33:], resize_crop_exact(frames[33:], (10, 15)))
    assert len(whole) == 37


def test_fast_resize__stays_within_two_grey_levels() -> None:
    frames = random_frames(300, 400)
    exact, fast = pixels(frames), pixels(frames, exact_resize=False)
    # Two passes, each rounded from weights of 16 bits: rarely one level off, more rarely two.
    difference = (grey_levels(exact).int() - grey_levels(fast).int()).abs()
    assert 0 < difference.float().mean() < 0.01 and difference.max() <= 2


@pytest.mark.parametrize("height", [299, 300, 301, 302])
def test_crop__rounds_as_torchvision_does(height: int) -> None:
    frame = random_frames(height, 224)[0]
    start = round((height - 224) / 2)
    assert torch.equal(grey_levels(pixels(frame)[0, 0]), frame[start : start + 224].permute(2, 0, 1))


def test_forms__of_one_clip_agree() -> None:
    clip = random_frames(30, 40, count=3)
    expected = pixels(clip)
    assert expected.shape == (1, 3, 3, 224, 224) and expected.dtype == torch.float32
    arrays = list(clip.numpy())
    forms = [
        clip.numpy(),
        clip.permute(0, 3, 1, 2),
        clip.permute(0, 3, 1, 2).contiguous(),
        arrays,
        list(clip),
        [Image.fromarray(frame) for frame in arrays],
        [clip],
        [arrays],
        clip.unsqueeze(0),
        clip.float(),
        clip.double() / 255,
        clip.to(torch.int64),
        clip.numpy()[:, ::-1][:, ::-1],
    ]
    for form in forms:
        assert torch.equal(pixels(form), expected)


def test_grey_and_alpha_frames__become_rgb() -> None:
    clip = random_frames(30, 40, count=2)
    grey = clip[..., :1]
    expected = pixels(grey.expand(-1, -1, -1, 3))
    images = [Image.fromarray(frame) for frame in grey[..., 0].numpy()]
    for form in (grey, grey.permute(0, 3, 1, 2), grey[..., 0], images, list(grey[..., 0].numpy())):
        assert torch.equal(pixels(form), expected)
    alpha = torch.cat((clip, random_frames(30, 40, count=2, seed=1)[..., :1]), dim=-1)
    assert torch.equal(pixels(alpha), pixels(clip))
    assert torch.equal(pixels([Image.fromarray(frame, "RGBA") for frame in alpha.numpy()]), pixels(clip))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_grey_clips__with_their_channel_leave_nothing_to_guess(count: int) -> None:
    grey = random_frames(30, 40, count=count)[..., :1]
    assert pixels(grey).shape[1] == pixels(grey.permute(0, 3, 1, 2)).shape[1] == count
    assert pixels(grey[..., 0]).shape[1] == 1  # one frame of that many channels


def test_input_data_format__settles_which_length_is_the_channels() -> None:
    frames = random_frames(4, 5, count=2).permute(0, 2, 1, 3)[:, :4].permute(0, 2, 1, 3)  # (2, 4, 4, 3)
    last = pixels(frames, input_data_format="channels_last")
    assert torch.equal(last, pixels(frames.permute(0, 3, 1, 2).contiguous()))
    assert not torch.equal(last, pixels(frames))


def test_frames_of_different_sizes__in_one_clip_and_in_one_batch() -> None:
    small, large = random_frames(30, 40)[0], random_frames(60, 50)[0]
    mixed = pixels([Image.fromarray(small.numpy()), Image.fromarray(large.numpy())])
    assert torch.equal(mixed[0], torch.cat((pixels(small)[0], pixels(large)[0])))
    batch = pixels([small.unsqueeze(0), large.unsqueeze(0)])
    assert torch.equal(batch, torch.cat((pixels(small), pixels(large))))


def test_single_frame__keeps_its_dimensions() -> None:
    frame = random_frames(30, 40)[0]
    for form in (frame, frame.unsqueeze(0), Image.fromarray(frame.numpy())):
        assert pixels(form).shape == (1, 1, 3, 224, 224)


def test_clips_of_different_lengths__are_filled_up_and_masked() -> None:
    clips = [random_frames(30, 40, count=1), random_frames(30, 40, count=3)]
    output = CavMaeSyncVideoProcessor()(clips, return_tensors="pt")
    assert output["padding_mask_videos"].tolist() == [[True, False, False], [True, True, True]]
    assert (output["pixel_values_videos"][0, 1:] == 0).all()
    assert torch.equal(output["pixel_values_videos"][:1, :1], pixels(clips[0]))
    assert "padding_mask_videos" not in CavMaeSyncVideoProcessor()(clips[1], return_tensors="pt")
    plain = CavMaeSyncVideoProcessor()(clips)["pixel_values_videos"]
    assert [len(clip) for clip in plain] == [1, 3] and all(isinstance(clip, np.ndarray) for clip in plain)
    assert isinstance(CavMaeSyncVideoProcessor()(clips, return_tensors="np")["padding_mask_videos"], np.ndarray)


def test_input__is_left_unchanged() -> None:
    frames = random_frames(224, 224).permute(0, 3, 1, 2).float().contiguous()
    before = frames.clone()
    pixels(frames, do_rescale=False)
    assert torch.equal(frames, before)


def test_options__switch_steps_off() -> None:
    frames = random_frames(230, 240)
    raw = pixels(frames, do_resize=False, do_rescale=False, do_normalize=False)
    assert torch.equal(raw[0], frames[:, 3:227, 8:232].permute(0, 3, 1, 2).float())
    assert pixels(frames, do_center_crop=False).shape == (1, 1, 3, 224, 233)
    assert pixels(frames, size={"height": 64, "width": 32}, crop_size={"height": 48, "width": 32}).shape[-2:] == (
        48,
        32,
    )
    bilinear = pixels(frames, resample=2)
    assert bilinear.shape == (1, 1, 3, 224, 224) and not torch.equal(bilinear, pixels(frames))


def test_crop_larger_than_the_frame__is_surrounded_with_black() -> None:
    frames = random_frames(20, 30)
    raw = pixels(frames, do_resize=False, crop_size={"height": 26, "width": 24}, do_normalize=False, do_rescale=False)
    assert torch.equal(raw[0, :, :, 3:23], frames[:, :, 3:27].permute(0, 3, 1, 2).float())
    assert (raw[..., :3, :] == 0).all() and (raw[..., 23:, :] == 0).all()
    for exact in (True, False):
        resized = pixels(frames, size={"shortest_edge": 40}, crop_size={"height": 50, "width": 50}, exact_resize=exact)
        assert resized.shape[-2:] == (50, 50)


def test_sampling__takes_the_frames_on_screen_at_the_centres_of_equal_parts() -> None:
    clip = random_frames(16, 16, count=10)
    sampled = pixels(clip, do_sample_frames=True, num_frames=4)
    assert torch.equal(sampled, pixels(clip[[1, 3, 6, 8]]))
    # Fewer frames than asked for: some are on screen twice.
    assert torch.equal(pixels(clip[:2], do_sample_frames=True, num_frames=4), pixels(clip[[0, 0, 1, 1]]))
    assert pixels(clip).shape[1] == 10


def test_sampling__reference_rule_uses_the_first_ten_seconds() -> None:
    processor = CavMaeSyncVideoProcessor(alignment="reference")
    for total, rate in ((300, 25.0), (75, 25.0), (299, 29.97)):
        indices = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=rate))
        assert indices.tolist() == [int(i * min(total, 10 * rate) / 16) for i in range(16)]
    clip = random_frames(16, 16, count=30)
    options = {"do_sample_frames": True, "num_frames": 4, "return_tensors": "pt"}
    output = processor(clip, video_metadata={"fps": 2.0}, return_metadata=True, **options)
    assert torch.equal(output["pixel_values_videos"], pixels(clip[[0, 5, 10, 15]]))
    assert output["video_metadata"][0].frames_indices == [0, 5, 10, 15]
    with pytest.raises(ValueError, match="needs the frame rate"):
        processor(clip, **options)


@pytest.fixture
def grey_ramp(tmp_path: Path) -> Path:
    """Two seconds at 10 frames per second, frame k of level 12 k."""
    path = tmp_path / "ramp.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 12 * index, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("alignment", "expected"), [("time", [2, 7, 12, 17]), ("reference", [0, 5, 10, 15])])
def test_files__are_decoded_with_the_alignment(grey_ramp: Path, alignment: str, expected: list[int]) -> None:
    processor = CavMaeSyncVideoProcessor(num_frames=4, alignment=alignment)
    for source in (grey_ramp, str(grey_ramp), grey_ramp.read_bytes(), [grey_ramp]):
        output = processor(source, return_tensors="pt", return_metadata=True)
        levels = grey_levels(output["pixel_values_videos"][0]).float().mean(dim=(1, 2, 3))
        # The encoder keeps flat grey frames to within two levels.
        assert (levels - 12 * torch.tensor(expected)).abs().max() < 3
        assert output["video_metadata"][0].frames_indices == expected
    frames, metadata = processor.fetch_videos(grey_ramp)
    assert frames.shape == (4, 3, 48, 64) and metadata.fps == pytest.approx(10)
    assert len(processor.fetch_videos([grey_ramp, grey_ramp])[0]) == 2


def test_files__and_frames_mix_in_one_batch(grey_ramp: Path) -> None:
    batch = pixels([str(grey_ramp), random_frames(16, 16, count=4)], num_frames=4)
    assert batch.shape == (2, 4, 3, 224, 224)


def test_save_and_load__keeps_settings(tmp_path: Path) -> None:
    processor = CavMaeSyncVideoProcessor(
        num_frames=7, alignment="reference", exact_resize=False, size={"shortest_edge": 32}
    )
    processor.save_pretrained(tmp_path)
    loaded = CavMaeSyncVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.num_frames, loaded.alignment, loaded.exact_resize) == (7, "reference", False)


@pytest.mark.parametrize(
    ("videos", "options", "message"),
    [
        ([], {}, "empty"),
        ([[]], {}, "non-empty list"),
        (5, {}, "int"),
        ([["frame.jpg"]], {}, "list of frames"),
        (np.zeros((2, 8, 8, 2), dtype=np.uint8), {}, "2 channels"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), {}, "no pixels"),
        (np.array(["text"]), {}, r"shape \(1,\)"),
        (torch.full((1, 8, 8, 3), float("nan")), {}, "nan"),
        (torch.full((1, 8, 8, 3), -1.0), {}, "normalised already"),
        (torch.full((1, 8, 8, 3), 300, dtype=torch.int32), {}, "300"),
        (np.zeros((1, 8, 8, 1), dtype=np.uint8), {"do_convert_rgb": False}, "do_convert_rgb=True"),
        (np.zeros((1, 8, 8, 3), dtype=np.uint8), {"alignment": "frames"}, "alignment"),
        (np.zeros((1, 8, 8, 3), dtype=np.uint8), {"video_metadata": [{}, {}]}, "2 entries for 1 clips"),
        (np.zeros((2, 3, 8, 8, 3), dtype=object), {}, "object"),
        (
            [random_frames(8, 8), random_frames(8, 16)],
            {"do_center_crop": False, "return_tensors": "pt"},
            "different sizes",
        ),
    ],
)
def test_bad_input__is_refused_with_the_remedy(videos: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CavMaeSyncVideoProcessor()(videos, **options)


def test_bad_input__is_called_by_the_name_that_was_given() -> None:
    for clip in (torch.full((1, 8, 8, 3), -1.0), np.zeros((1, 8, 8, 2), dtype=np.uint8)):
        with pytest.raises(ValueError, match=r"^kitchen\.mp4 has"):
            CavMaeSyncVideoProcessor()([random_frames(8, 8), clip], names=["hall.mp4", "kitchen.mp4"])


def test_missing_file__is_named() -> None:
    with pytest.raises(ValueError, match="no_such_clip"):
        CavMaeSyncVideoProcessor()("no_such_clip.mp4")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pixels__cuda_equals_cpu() -> None:
    frames = random_frames(300, 400, count=2)
    on_device = pixels(frames, device="cuda")
    assert on_device.device.type == "cuda"
    torch.testing.assert_close(on_device.cpu(), pixels(frames), atol=1e-6, rtol=0)
