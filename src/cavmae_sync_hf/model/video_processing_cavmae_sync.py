# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Video processor: turns frames into the pixels that the video tower reads.

Shortest side to 224 (bicubic with antialias), centre crop, scale, ImageNet normalisation. The published pipeline does
this with PIL, and so the default here gives PIL's pixels exactly (`resize_cavmae_sync.py`); torchvision's own kernel
is at hand as the faster way that is a grey level off in places.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import TensorType
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .alignment_cavmae_sync import (
    center_crop_window,
    center_times,
    check_alignment,
    moment_shifts,
    reference_indices,
    resized_size,
)
from .auto_map_cavmae_sync import SavedWithCode, complete_auto_map
from .batching_cavmae_sync import stack_padded, to_batch
from .media_cavmae_sync import decode_media
from .media_source_cavmae_sync import decoder_kind
from .resize_cavmae_sync import resize_crop_exact
from .values_cavmae_sync import Allowed, check_values, choice, flag, number, odd, optional, per_channel, sizes, whole

# Of every setting that is saved or may be.
VIDEO_VALUES: dict[str, Allowed] = {
    "size": optional(sizes(("shortest_edge",), ("height", "width"), most=1 << 13)),
    "crop_size": optional(sizes(("height", "width"), most=1 << 13)),
    "default_to_square": optional(flag()),
    "resample": optional(choice(*range(6), *(item.name.lower() for item in PILImageResampling))),
    "rescale_factor": number(0, 1e6, above=True),
    "image_mean": optional(per_channel(number(-1e6, 1e6))),
    "image_std": optional(per_channel(number(0, 1e6, above=True))),
    "num_frames": whole(1, 1 << 16),
    "frames_per_moment": optional(odd(1, 99)),
    "frame_step": optional(number(0, 10, above=True)),
    "alignment": choice("time", "reference"),
    **dict.fromkeys(
        ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_sample_frames", "do_pad",
         "exact_resize", "return_metadata"),
        optional(flag()),
    ),
}  # fmt: skip
# Grey, RGB, RGB with alpha.
_CHANNELS = (1, 3, 4)


class _Frames(NamedTuple):
    """Frames of one clip inside the video processor.

    Attributes:
        name: What messages call the clip.
        parts: `(T, channels, H, W)`, one tensor per run of frames of one size.
    """

    name: str
    parts: list[Tensor]


class CavMaeSyncVideoProcessorKwargs(VideosKwargs, total=False):
    """Arguments of the video processor beside those of every transformers video processor.

    Attributes:
        alignment: `"time"` or `"reference"`: which frames are taken where the processor samples them itself.
        exact_resize: Whether bicubic resizing gives PIL's pixels (True), or torchvision's (False, about three times
            as fast for large frames, a grey level off in about 0.4 % of the pixels).
    """

    alignment: str | None
    exact_resize: bool | None


class CavMaeSyncVideoProcessor(SavedWithCode, BaseVideoProcessor):
    """Turns frames into `pixel_values_videos` of shape `(batch, num_frames, 3, height, width)`.

    A clip is an array or tensor `(T, H, W, C)` or `(T, C, H, W)` with 1, 3 or 4 channels (grey is repeated, alpha is
    dropped), a grey `(T, H, W)`, one frame, a list of frames (arrays or PIL images, of any sizes), or a path, URL,
    bytes or file object, which is decoded with `num_frames` frames by `alignment`. A list of clips, or a 5-D array, is
    a batch. Samples are uint8, other integers in [0, 255], or floats in [0, 255]; floats that all lie in [0, 1] are
    taken as fractions of white. Floats are rounded to grey levels, as PIL would.

    A 3-D array whose first or last length is 1, 3 or 4 is one frame with that many channels, never a grey clip of so
    many frames: give grey clips their channel, `(T, H, W, 1)`, and nothing is left to guess. Of a 4-D array whose
    second and last lengths could both be channels the second is taken, unless `input_data_format` says
    `"channels_last"`.

    Decoded frames are all used; `do_sample_frames=True` picks `num_frames` of them by `alignment`.

    Attributes `frames_per_moment` and `frame_step` (seconds) say that a model sees several frames of each moment.
    [`CavMaeSyncProcessor`] heeds them, which finds these frames and stacks what this class makes of each.

    Clips with fewer frames than the longest of a batch are filled up with zeros and `padding_mask_videos`
    `(batch, num_frames)`, True where a frame is present, is returned as well; otherwise there is no mask.
    """

    valid_kwargs = CavMaeSyncVideoProcessorKwargs  # type: ignore[assignment]
    model_input_names = ["pixel_values_videos"]

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    num_frames = 16
    frames_per_moment = 1
    frame_step = 0.04
    alignment = "time"
    exact_resize = True

    def __init__(self, **kwargs: Unpack[CavMaeSyncVideoProcessorKwargs]) -> None:
        super().__init__(**kwargs)  # type: ignore[misc]
        # Written into the saved settings, and completed where those of an earlier version are loaded.
        self.auto_map = complete_auto_map(getattr(self, "auto_map", None))
        check_values(self.to_dict(), VIDEO_VALUES)

    @property
    def moment_options(self) -> dict[str, Any]:
        """Which frames of a file are those of a moment, as arguments of `decode_media`."""
        return {"frames_per_moment": self.frames_per_moment, "frame_step": self.frame_step}

    @property
    def shifts(self) -> list[float]:
        """From the time of a moment to those of its frames, seconds, ascending."""
        return moment_shifts(self.frames_per_moment, self.frame_step)

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Decode a file, or a list of files, with the processor's `num_frames` and `alignment`.

        Args:
            video_url_or_urls: Path, URL, bytes or file object, or a list of them.
            sample_indices_fn: Accepted for transformers' sake; frames are chosen by their time while decoding.

        Returns:
            Frames `(num_frames, 3, H, W)` uint8 and their `VideoMetadata`; for a list two lists.
        """
        if isinstance(video_url_or_urls, (list, tuple)):
            decoded = [self.fetch_videos(item) for item in video_url_or_urls]
            return [frames for frames, _ in decoded], [metadata for _, metadata in decoded]
        return self._decode(video_url_or_urls, self.num_frames, self.alignment)

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        alignment: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Indices of the frames to take from a clip of evenly spaced frames.

        Args:
            metadata: `total_num_frames` is needed; `fps` as well for `alignment="reference"`.
            num_frames: How many; default: the processor's.
            fps: Not supported, since the model is fed a fixed number of frames per clip.
            alignment: `"time"`: the frame on screen at the centre of each of `num_frames` equal parts of the clip.
                `"reference"`: frame `int(i * min(N, 10 * fps) / num_frames)`, as published.
            kwargs: Ignored.

        Raises:
            ValueError: The frames cannot be chosen; the message says what is missing.
        """
        _refuse_rate(fps)
        alignment = self.alignment if alignment is None else alignment
        check_alignment(alignment)
        count = self.num_frames if num_frames is None else num_frames
        total = int(metadata.total_num_frames)
        if total < 1:
            raise ValueError("The clip has no frames to sample from.")
        if alignment == "time":
            return np.array([int(place) for place in center_times(total, count)])
        if metadata.fps is None:
            raise ValueError(
                '`alignment="reference"` needs the frame rate: pass `video_metadata={"fps": ..., '
                '"total_num_frames": ...}`.'
            )
        return np.array(reference_indices(total, metadata.fps, count))

    def preprocess(
        self, videos: Any, names: Sequence[str] | None = None, **kwargs: Unpack[CavMaeSyncVideoProcessorKwargs]
    ) -> BatchFeature:
        """Process one clip or a batch, see the class's text for what a clip may be.

        Args:
            videos: The clips.
            names: What messages call each clip; default: `"Clip 0"` and so on.
            kwargs: Other settings than the processor's own.

        Raises:
            ValueError: A clip cannot be used; the message names it and the remedy.
        """
        options: dict[str, Any] = dict(kwargs)
        alignment = options.get("alignment") or self.alignment
        check_alignment(alignment)
        num_frames = options.get("num_frames") or self.num_frames
        layout = options.get("input_data_format") or getattr(self, "input_data_format", None)
        clips = split_clips(videos)
        metadata = _per_clip_metadata(options.pop("video_metadata", None), len(clips))
        do_sample = options.pop("do_sample_frames", None)
        do_sample = self.do_sample_frames if do_sample is None else do_sample
        prepared = []
        for position, clip in enumerate(clips):
            name = f"Clip {position}" if names is None else names[position]
            if do_sample or is_media_source(clip):
                _refuse_rate(options.get("fps"))
            if is_media_source(clip):
                frames, metadata[position] = self._decode(clip, num_frames, alignment)
                prepared.append(_Frames(name, [frames]))
                continue
            parts = _as_parts(clip, name, layout)
            known = metadata[position]
            known.total_num_frames = sum(len(part) for part in parts)
            if do_sample:
                indices = self.sample_frames(known, num_frames=num_frames, alignment=alignment)
                known.frames_indices = indices.tolist()
                single = [frame for part in parts for frame in part.split(1)]
                parts = [torch.cat([single[i] for i in indices])] if len(parts) == 1 else [single[i] for i in indices]
            prepared.append(_Frames(name, parts))
        return super().preprocess(prepared, do_sample_frames=False, video_metadata=metadata, **options)

    def _decode(self, source: Any, num_frames: int, alignment: str) -> tuple[Tensor, VideoMetadata]:
        """Frames of a file and what is known about them."""
        media = decode_media(source, num_frames=num_frames, alignment=alignment, want_audio=False)
        frames, times = media.frames, media.frame_times
        if frames is None or times is None:
            raise ValueError(f"{media.source} has no video track; pass a file with one.")
        # The decoder knows the frames' times, not a constant rate; these two give the times back as index / fps.
        fps = media.frame_rate or None
        indices = [round(float(time) * fps) for time in times] if fps else None
        metadata = VideoMetadata(
            total_num_frames=round(media.duration * fps) if fps else len(frames),
            fps=fps,
            width=frames.shape[-1],
            height=frames.shape[-2],
            duration=media.duration,
            video_backend="pyav",
            frames_indices=indices,
        )
        return frames, metadata

    def _decode_and_sample_videos(  # type: ignore[override]
        self, videos: Any, video_metadata: Any, do_sample_frames: Any = None, sample_indices_fn: Any = None
    ) -> tuple[Any, Any]:
        """Nothing left to do: `preprocess` has decoded and sampled."""
        return videos, video_metadata

    def _prepare_input_videos(  # type: ignore[override]
        self,
        videos: list[_Frames],
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
    ) -> list[_Frames]:
        """Bring every clip to three channels on the device asked for."""
        prepared = []
        for clip in videos:
            for part in clip.parts:
                if part.shape[1] != 3 and not do_convert_rgb:
                    raise ValueError(
                        f"{clip.name} has {part.shape[1]} channels; the model takes 3: use `do_convert_rgb=True`."
                    )
            parts = [_to_rgb(part) if device is None else _to_rgb(part).to(device) for part in clip.parts]
            prepared.append(_Frames(clip.name, parts))
        return prepared

    def _preprocess(  # type: ignore[override]
        self,
        videos: list[_Frames],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        return_tensors: str | TensorType | None = None,
        exact_resize: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Resize, crop, scale and normalise the frames, then batch the clips."""
        bicubic = resample in (PILImageResampling.BICUBIC, int(PILImageResampling.BICUBIC), "bicubic")
        pixels = []
        for name, parts in videos:
            outputs = []
            for part in parts:
                part = _to_grey_levels(part, name, do_rescale)
                shape = part.shape[-2], part.shape[-1]
                resized = shape
                if do_resize and size.height and size.width:
                    resized = size.height, size.width
                elif do_resize:
                    if not size.shortest_edge or size.longest_edge:
                        raise ValueError(f'`size` is {size}; it must have "shortest_edge", or "height" and "width".')
                    resized = resized_size(*shape, size.shortest_edge)
                top, left, height, width = 0, 0, *resized
                if do_center_crop:
                    if not crop_size.height or not crop_size.width:
                        raise ValueError(f'`crop_size` is {crop_size}; it must have "height" and "width".')
                    top, left, height, width = center_crop_window(*resized, (crop_size.height, crop_size.width))
                # The part of the window that lies inside the frames; the rest becomes black.
                low, start = max(top, 0), max(left, 0)
                high, stop = min(top + height, resized[0]), min(left + width, resized[1])
                if do_resize and bicubic and exact_resize is not False and part.dtype == torch.uint8:
                    part = resize_crop_exact(part, resized, (low, start, high - low, stop - start))
                else:
                    part = self.resize(part, size=size, resample=resample) if do_resize else part
                    part = part[..., low:high, start:stop]
                margins = [start - left, low - top, left + width - stop, top + height - high]
                part = tvF.pad(part, margins, fill=0) if any(margins) else part
                part = _scale(part, rescale_factor if do_rescale else None)
                if do_normalize:
                    part.sub_(torch.as_tensor(image_mean, dtype=torch.float32, device=part.device).view(-1, 1, 1))
                    part.div_(torch.as_tensor(image_std, dtype=torch.float32, device=part.device).view(-1, 1, 1))
                outputs.append(part)
            shapes = {tuple(part.shape[-2:]) for part in outputs}
            if len(shapes) > 1:
                raise ValueError(
                    f"{name} has frames of different sizes after processing ({sorted(shapes)}); use "
                    "`do_center_crop=True`."
                )
            pixels.append(outputs[0] if len(outputs) == 1 else torch.cat(outputs))
        if return_tensors is None:
            return BatchFeature({"pixel_values_videos": [clip.cpu().numpy() for clip in pixels]})
        return BatchFeature(dict(to_batch(pad_clips(pixels), return_tensors)))


def _scale(frames: Tensor, factor: float | None) -> Tensor:
    """Grey levels times `factor` as contiguous float32, a copy."""
    pixels = frames.contiguous().to(torch.float32)
    if pixels.data_ptr() == frames.data_ptr():
        pixels = pixels.clone()
    if factor is not None:
        # The published pipeline divides by 255; multiplying by 1 / 255 differs in the last bit.
        pixels.div_(round(1.0 / factor)) if math.isclose(1.0 / factor, round(1.0 / factor)) else pixels.mul_(factor)
    return pixels


def pad_clips(pixels: Sequence[Tensor], longest: int = 0) -> dict[str, Tensor]:
    """Stack clips, filled up with zeros to the longest one.

    Args:
        pixels: One `(num_frames_i, channels, height, width)` per clip; a clip may have no frames.
        longest: Fill up to at least this many frames.

    Returns:
        `pixel_values_videos` `(batch, num_frames, channels, height, width)`, and `padding_mask_videos`
        `(batch, num_frames)` bool where a frame is absent anywhere.

    Raises:
        ValueError: The clips' frames differ in size.
    """
    shapes = {tuple(clip.shape[1:]) for clip in pixels}
    if len(shapes) > 1:
        raise ValueError(f"The clips have different sizes after processing ({sorted(shapes)}); crop to one size.")
    longest = max(longest, *(len(clip) for clip in pixels))
    stacked = {"pixel_values_videos": stack_padded(pixels, longest)}
    if any(len(clip) < longest for clip in pixels):
        lengths = torch.tensor([len(clip) for clip in pixels], device=pixels[0].device)
        stacked["padding_mask_videos"] = torch.arange(longest, device=pixels[0].device) < lengths[:, None]
    return stacked


def is_media_source(clip: Any) -> bool:
    """Whether a clip is something to decode: path, URL, bytes, file object, a mapping with `bytes` or `path`, or a
    decoder object of torchcodec.

    A mapping with an `array` is decoded already, as `datasets` hands out audio.
    """
    if decoder_kind(clip):
        return True
    if isinstance(clip, Mapping):
        return clip.get("array") is None
    return isinstance(clip, (str, bytes, bytearray, os.PathLike)) or (
        hasattr(clip, "read") and not isinstance(clip, Image.Image)
    )


def _is_frame(value: Any) -> bool:
    """Whether a value is one frame."""
    return isinstance(value, Image.Image) or (isinstance(value, (np.ndarray, Tensor)) and value.ndim in (2, 3))


def is_single_frame(array: Any) -> bool:
    """Whether a 2-D or 3-D array is one frame, and not a grey clip `(T, H, W)`; see the video processor's text."""
    return array.ndim == 2 or (array.ndim == 3 and (array.shape[0] in _CHANNELS or array.shape[-1] in _CHANNELS))


def split_clips(videos: Any) -> list[Any]:
    """Tell one clip from several; returns a list of clips."""
    if is_media_source(videos) or isinstance(videos, Image.Image):
        return [videos]
    if isinstance(videos, (np.ndarray, Tensor)):
        if videos.ndim == 5:
            return list(videos)
        if videos.ndim in (2, 3, 4):
            return [videos]
        raise ValueError(f"The video has shape {tuple(videos.shape)}; expected (T, H, W, C) or (T, C, H, W).")
    if not isinstance(videos, (list, tuple)):
        raise ValueError(f"A video must be a path, an array or a list of frames, not {type(videos).__name__}.")
    if not videos:
        raise ValueError("The list of videos is empty; pass at least one.")
    return [list(videos)] if all(_is_frame(value) for value in videos) else list(videos)


def split_frames(clip: Any) -> Any:
    """The decoded frames of one clip as something with a length and an order; a single frame becomes one of one."""
    if isinstance(clip, (np.ndarray, Tensor)):
        return clip[None] if is_single_frame(clip) else clip
    return list(clip) if isinstance(clip, (list, tuple)) else [clip]


def _refuse_rate(fps: float | None) -> None:
    """Say that frames are not sampled by a rate, rather than ignore it."""
    if fps is not None:
        raise ValueError(f"`fps` is {fps}; this processor takes a fixed number of frames: pass `num_frames`.")


def _per_clip_metadata(given: Any, count: int) -> list[VideoMetadata]:
    """One `VideoMetadata` per clip out of None, one description (dict or `VideoMetadata`) or a list of them."""
    items = list(given) if isinstance(given, (list, tuple)) else [given] * count
    if len(items) != count:
        raise ValueError(f"`video_metadata` has {len(items)} entries for {count} clips; give one per clip.")
    known = []
    for item in items:
        if isinstance(item, (list, tuple)) and len(item) == 1:  # transformers also nests one list per sample
            item = item[0]
        metadata = VideoMetadata(total_num_frames=0)
        metadata.update({} if item is None else {key: item[key] for key in item})
        known.append(metadata)
    return known


def _as_parts(clip: Any, name: str, layout: Any) -> list[Tensor]:
    """Frames of a decoded clip as tensors `(T, C, H, W)`, one tensor per run of frames of equal size."""
    if not isinstance(clip, (list, tuple)):
        return [_as_frames(clip, name, layout)]
    if not clip or not all(_is_frame(frame) for frame in clip):
        raise ValueError(
            f"{name} must be a non-empty list of frames (arrays or PIL images), an array, or a path; "
            f"got {[type(frame).__name__ for frame in clip][:3]}."
        )
    frames = [_as_frames(frame, name, layout) for frame in clip]
    runs: list[list[Tensor]] = []
    for frame in frames:
        frame = _to_rgb(frame) if frame.shape[1] != 3 else frame
        if runs and runs[-1][0].shape == frame.shape and runs[-1][0].dtype == frame.dtype:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return [run[0] if len(run) == 1 else torch.cat(run) for run in runs]


def _as_frames(clip: Any, name: str, layout: Any) -> Tensor:
    """An array, tensor or PIL image as `(T, C, H, W)`; a view where possible."""
    if isinstance(clip, Image.Image):
        clip = np.array(clip.convert("RGB"))
        layout = ChannelDimension.LAST
    if isinstance(clip, np.ndarray):
        if clip.dtype.kind not in "uif":
            raise ValueError(f"{name} holds {clip.dtype} values, not pixels; pass uint8 or float frames.")
        clip = torch.from_numpy(clip if clip.flags.writeable and min(clip.strides, default=0) >= 0 else clip.copy())
    if not isinstance(clip, Tensor):
        raise ValueError(f"{name} is a {type(clip).__name__}; pass frames or a path.")
    if clip.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(clip.shape)}: no pixels. Pass at least one frame.")
    if clip.ndim == 2:
        return clip[None, None]
    if clip.ndim == 3 and layout is None and not is_single_frame(clip):
        return clip.unsqueeze(1)  # grey frames
    if clip.ndim == 3:
        clip = clip.unsqueeze(0)
    if clip.ndim != 4:
        raise ValueError(f"{name} has shape {tuple(clip.shape)}; expected (T, H, W, C) or (T, C, H, W).")
    if layout is None:
        layout = ChannelDimension.FIRST if clip.shape[1] in _CHANNELS else ChannelDimension.LAST
    if ChannelDimension(layout) == ChannelDimension.LAST:
        clip = clip.permute(0, 3, 1, 2)
    if clip.shape[1] not in _CHANNELS:
        raise ValueError(f"{name} has {clip.shape[1]} channels; expected 1, 3 or 4 as (T, H, W, C) or (T, C, H, W).")
    return clip


def _to_rgb(frames: Tensor) -> Tensor:
    """Repeat grey, drop alpha (as PIL's conversion does)."""
    if frames.shape[1] == 1:
        return frames.expand(-1, 3, -1, -1)
    return frames[:, :3] if frames.shape[1] == 4 else frames


def _to_grey_levels(frames: Tensor, name: str, do_rescale: bool) -> Tensor:
    """Frames as uint8, or unchanged floats where the caller scales them himself (`do_rescale=False`)."""
    if frames.dtype == torch.uint8:
        return frames
    if not do_rescale:
        return frames.to(torch.float32)
    lowest, highest = (float(value) for value in frames.aminmax())
    # Written so that a NaN fails too.
    if not (lowest >= 0.0 and highest <= 255.0):
        raise ValueError(
            f"{name} has {frames.dtype} pixels from {lowest:g} to {highest:g}; expected [0, 255] or [0, 1]. "
            "If the frames are normalised already, pass them to the model directly."
        )
    levels = frames.to(torch.float32)
    if frames.is_floating_point() and highest <= 1.0:
        levels = levels * 255.0
    return levels.round().to(torch.uint8)


__all__ = [
    "CavMaeSyncVideoProcessor",
    "CavMaeSyncVideoProcessorKwargs",
    "is_media_source",
    "is_single_frame",
    "pad_clips",
    "split_clips",
    "split_frames",
]
