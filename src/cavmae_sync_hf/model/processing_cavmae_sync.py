# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Processor: makes the model's inputs of video files, or of frames and waveforms, each window on its frame's time.

`CavMaeSyncProcessor` decodes both tracks of a file in one pass and hands frames and audio to the video processor and
the feature extractor. Which frames are taken and where windows lie is one rule, `feature_extractor.alignment`.
"""

import copy
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, AutoVideoProcessor, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import TensorType, cached_file, logging
from transformers.video_utils import VideoMetadata

from .alignment_cavmae_sync import FRAMES_PER_SECOND, window_times
from .auto_map_cavmae_sync import AUTO_MAP, SavedWithCode
from .batching_cavmae_sync import MomentFrames, nearest_frames, stack_padded, to_batch
from .configuration_cavmae_sync import CavMaeSyncConfig
from .encoder_families_cavmae_sync import encoder_family
from .errors_cavmae_sync import Hint, MissingTrackError
from .feature_extraction_cavmae_sync import (
    IGNORED_ARGUMENTS,
    CavMaeSyncFeatureExtractor,
    check_channel,
    load_waveform,
    samples_and_rate,
    split_waveforms,
)
from .media_cavmae_sync import decode_media, probe_media
from .media_request_cavmae_sync import as_seconds
from .media_selection_cavmae_sync import check_audio_track
from .media_source_cavmae_sync import decoder_kind
from .media_stream_cavmae_sync import DUB_CONTEXT_SECONDS, MediaChunk, iter_media, iter_waveform, with_audio_of
from .video_processing_cavmae_sync import (
    CavMaeSyncVideoProcessor,
    is_media_source,
    pad_clips,
    split_clips,
    split_frames,
)

logger = logging.get_logger(__name__)

# Audio beyond half a window that a chunk of a stream needs: the spectrogram's own 25 ms and a margin for rounding.
_CONTEXT_MARGIN_SECONDS = 0.1
# Arguments of the call that concern frames and windows alike; one of the two alone would not know of them.
_SHARED_ARGUMENTS = frozenset(
    ("num_frames", "frame_times", "fps", "video_metadata", "do_sample_frames", "return_tensors", "return_times")
) | {"device"}
# What Trainer asks the tokenizer of a processor for; where there is none, there are none of these.
_PLACE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_NO_TOKENS = SimpleNamespace(eos_token_id=None, bos_token_id=None, pad_token_id=None)


@dataclass
class _Clip:
    """One clip on its way through the processor.

    Attributes:
        position: In the batch.
        name: For messages.
        video: What was given: a file, frames, or `None`.
        audio: What was given as audio of its own: a file, a waveform, or `None`.
        start: Where a file is cut, seconds.
        end: Likewise.
        fps: Frame rate of decoded frames.
        video_metadata: What a loader says about decoded frames.
        times: Times of the frames in seconds, `None` when nobody knows them.
        pixels: `(num_frames, channels, height, width)`, `None` without video.
        waveform: What the feature extractor takes, `None` without audio.
        duration: Seconds, `None` when unknown.
    """

    position: int
    name: str
    video: Any = None
    audio: Any = None
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    video_metadata: Any = None
    times: list[float] | None = None
    pixels: torch.Tensor | None = None
    waveform: Any = None
    duration: float | None = None

    @property
    def is_decoded(self) -> bool:
        """Whether its video is frames, not a file."""
        return self.video is not None and not is_media_source(self.video)

    @property
    def num_frames(self) -> int:
        """How many frames and windows it has, as far as known."""
        return len(self.pixels) if self.pixels is not None else len(self.times or ())


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What a call asks of all clips alike.

    Attributes:
        own_audio: Whether the audio is that of the video files.
        threads: Of a video decoder, 0 for as many as there are cores.
        video_options: More arguments for the video processor.
        The others are arguments of the processor's call.
    """

    num_frames: int | None
    sampling_rate: int | None
    do_sample_frames: bool
    missing: str
    damaged: str
    device: str | torch.device | None
    own_audio: bool
    threads: int
    video_options: dict[str, Any]


class CavMaeSyncProcessor(SavedWithCode, ProcessorMixin):
    """Turns videos with audio into `input_values` and `pixel_values_videos`, window i on the time of frame i.

    Absent windows and frames are marked by False in `padding_mask` and `padding_mask_videos`: those of a missing
    track, those that fill up clips with fewer frames than the longest of a batch, and, with `alignment="time"`,
    windows that lie wholly outside the clip. A window partly outside counts as present, unless no more than
    `feature_extractor.min_window_coverage` of it lies inside; `return_times=True` tells the share of each,
    `window_coverage`. The model takes all that this returns, `model(**inputs)`.

    Args:
        feature_extractor: A [`CavMaeSyncFeatureExtractor`]; its `alignment` rules frames and windows alike.
        video_processor: A [`CavMaeSyncVideoProcessor`].
        tokenizer: Any tokenizer of transformers, for a model with text; none where there is no text.

    Attributes:
        audio_track: Which audio track of files is read where a call does not say; set by `with_audio_choice`, and not
            saved, for it says something of files and nothing of a model.
    """

    feature_extractor: CavMaeSyncFeatureExtractor
    video_processor: CavMaeSyncVideoProcessor
    audio_track: int | str | None = None
    tokenizer: Any = _NO_TOKENS

    def __init__(
        self,
        feature_extractor: CavMaeSyncFeatureExtractor | None = None,
        video_processor: CavMaeSyncVideoProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(feature_extractor, video_processor)
        if tokenizer is not None:
            if not isinstance(tokenizer, PreTrainedTokenizerBase):
                raise TypeError(f"`tokenizer` is a {type(tokenizer).__name__}; pass a tokenizer of transformers.")
            self.tokenizer = tokenizer
        # Written into `processor_config.json`. Set here, so that saving changes nothing and loading gives the same.
        self.auto_map = dict(AUTO_MAP)

    @classmethod
    def from_config(cls, config: CavMaeSyncConfig, **kwargs: Any) -> "CavMaeSyncProcessor":
        """The processor that fits a model's configuration.

        Args:
            config: The configuration.
            kwargs: Settings of the feature extractor that the configuration does not hold, such as
                `alignment="reference"`, `channel`, `mean` and `std`.

        Raises:
            ValueError: A setting is one of the configuration, where it has another value.
        """
        held = {name: getattr(config, name) for name in ("num_frames", "audio_length", "num_mel_bins")}
        for name in held.keys() & kwargs.keys():
            if kwargs.pop(name) != held[name]:
                raise ValueError(f"`{name}` of a processor is that of the model's configuration; set it there.")
        heard = config.audio_encoder_config
        if heard is not None and encoder_family(heard).hears_waveforms:
            kwargs = {"features": "waveform", "sampling_rate": encoder_family(heard).sampling_rate} | kwargs
        if config.audio_context == "clip":
            kwargs = {"clip_length": config.heard_length} | kwargs
        feature_extractor = CavMaeSyncFeatureExtractor(**held, **kwargs)
        side = config.image_size
        video_processor = CavMaeSyncVideoProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            num_frames=config.num_frames,
            alignment=feature_extractor.alignment,
        )
        if config.frames_per_moment > 1:
            video_processor.frames_per_moment, video_processor.frame_step = config.frames_per_moment, config.frame_step
        return cls(feature_extractor, video_processor)

    def with_audio_choice(
        self, channel: str | None = None, audio_track: int | str | None = None
    ) -> "CavMaeSyncProcessor":
        """A processor that takes another channel or another audio track of files; this one stays as it is.

        Args:
            channel: `"first"` or `"mean"` of all channels; `None` leaves the feature extractor's.
            audio_track: Number of the audio track, counted from 0, or its language (`"de"`, `"deu"`); `None` leaves
                the choice as it is, which is at first the track that a player plays.

        Raises:
            ValueError: A value cannot work.
        """
        if channel is None and audio_track is None:
            return self
        other = copy.copy(self)
        if channel is not None:
            other.feature_extractor = copy.copy(self.feature_extractor)
            other.feature_extractor.channel = check_channel(channel)
        if audio_track is not None:
            other.audio_track = check_audio_track(audio_track)
        return other

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Settings as they are saved."""
        plain = self
        if self.has_tokenizer:  # lies in files of its own
            plain = copy.copy(self)
            del plain.tokenizer
        settings = super(CavMaeSyncProcessor, plain).to_dict(*args, **kwargs)
        settings.pop("audio_track", None)
        return settings

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that every processor has."""
        return ["feature_extractor", "video_processor"]

    @property
    def has_tokenizer(self) -> bool:
        """Whether it takes texts."""
        return self.tokenizer is not _NO_TOKENS

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write the settings of all parts, the tokenizer's files where there is one, and the code beside them."""
        if self.has_tokenizer:
            self.tokenizer.save_pretrained(save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        """The parts; of the first two, one that was not saved is made to fit the model and the other.

        Trainer saves what it is given, `processing_class=feature_extractor` alone or the video processor.
        """
        auto: dict[str, Any] = {"feature_extractor": AutoFeatureExtractor, "video_processor": AutoVideoProcessor}
        parts: dict[str, Any] = {}
        absent = None
        for name, auto_class in auto.items():
            try:
                parts[name] = auto_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
            except OSError as error:
                absent = error
        if absent is not None:
            if not parts:
                raise absent
            (saved, part), *_ = parts.items()
            config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
            config.num_frames = part.num_frames
            parts = vars(cls.from_config(config, alignment=part.alignment)) | parts
            logger.warning(
                f"{pretrained_model_name_or_path} holds a {saved} alone; the rest of the processor has the settings "
                "that go with the model. Pass `processing_class=processor` to Trainer to save all of it."
            )
        given = [parts[name] for name in auto]
        names = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        where = {name: kwargs[name] for name in _PLACE_ARGUMENTS if name in kwargs}
        if cached_file(pretrained_model_name_or_path, "tokenizer_config.json", **names, **where) is not None:
            given.append(AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs))
        return given

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that the model takes from this processor."""
        names = ["pixel_values_videos", "input_values", "padding_mask_videos", "padding_mask"]
        return names + (["window_offsets"] if self.feature_extractor.clip_length is not None else [])

    def __call__(
        self,
        videos: Any = None,
        audio: Any = None,
        text: Any = None,
        images: Any = None,
        *,
        sampling_rate: int | None = None,
        num_frames: int | None = None,
        frame_times: Any = None,
        fps: float | Sequence[float | None] | None = None,
        video_metadata: Any = None,
        do_sample_frames: bool = False,
        start: float | Sequence[float | None] | None = None,
        end: float | Sequence[float | None] | None = None,
        missing: str = "error",
        damaged: str = "error",
        channel: str | None = None,
        audio_track: int | str | None = None,
        return_tensors: str | TensorType | None = None,
        return_times: bool = False,
        device: str | torch.device | None = None,
        audio_kwargs: dict[str, Any] | None = None,
        videos_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one clip or a batch, and texts.

        Args:
            videos: A file (path, address, bytes, file object, or what a `Video()` column of `datasets` hands out)
                whose two tracks are decoded in one pass, or decoded frames (array, tensor or list of images), or a
                list of either. A decoder object whose file has no audio counts as frames.
            audio: Waveforms or files of their own, one per video; then the videos' own audio is not read. An array of
                two rows is two clips; `[array]` is one clip of two channels. `{"array": ..., "sampling_rate": ...}`
                and what an `Audio()` column of `datasets` hands out are taken as well.
            text: A text or a list of texts, with or without clips; needs a tokenizer.
            images: Not taken; pass images as `videos`.
            sampling_rate: Rate in Hz of waveforms in `audio`; required with them. Files say theirs themselves.
            num_frames: Frames and windows per clip; default: the feature extractor's.
            frame_times: Seconds from the start of each clip: the frames to take from files, or the times of decoded
                frames. `(num_frames,)` for one clip, one row per clip for several.
            fps: Frame rate of decoded frames (one value or one per clip); frame i is then at `i / fps`.
            video_metadata: Instead of `fps`: `{"fps": ..., "frames_indices": ...}` per clip, as transformers' loaders
                return it.
            do_sample_frames: Take `num_frames` of the decoded frames, by the alignment; needs `fps` or
                `video_metadata` unless the clip is all the audio there is.
            start: Where in the files the clips start, seconds (one value or one per clip); times count from there.
            end: Where they end, seconds.
            missing: `"error"`, or `"mask"` to mark the windows or frames of an absent track as absent. Decoded frames
                without audio beside files with audio have an absent track, too.
            damaged: `"error"`, or `"keep"` to use what can be decoded of truncated and corrupt files.
            channel: `"first"` or `"mean"` of several channels; default: the feature extractor's.
            audio_track: Which audio track of files that have several: its number, counted from 0, or its language
                (`"de"`, `"deu"`). Default: the one that a player plays.
            return_tensors: `"pt"`, `"np"` or `None` (lists of arrays, one per clip).
            return_times: Also return `frame_times` `(batch, num_frames)` and, with audio, `window_times`
                `(batch, num_frames, 2)`, in seconds and NaN where a shorter clip is filled up, and `window_coverage`
                `(batch, num_frames)`, the share of each window that lies inside the clip.
            device: Where to compute spectrograms and pixels.
            audio_kwargs: More arguments for the feature extractor.
            videos_kwargs: More arguments for the video processor.
            text_kwargs: More arguments for the tokenizer.
            kwargs: Arguments of the video processor (`do_resize`, `size`, ...).

        Returns:
            `pixel_values_videos` `(batch, num_frames, 3, height, width)` and `input_values`
            `(batch, num_frames, audio_length, num_mel_bins)`, as far as there are videos and audio; `padding_mask`
            `(batch, num_frames)` bool with the latter, True where a window is present; `padding_mask_videos` only
            when a frame is absent, so that the model need not look for padding where there is none. Of a model that
            sees several frames of a moment, `pixel_values_videos` has their channels one after the other.

        Raises:
            ValueError: An input cannot be used (`MediaError` for files); the message says which, why and the remedy.
            TypeError: An argument is unknown.
        """
        if images is not None:
            raise ValueError("This processor has no image side; pass images as `videos`, a list of frames.")
        if videos is None and audio is None and text is None:
            raise ValueError(
                "Nothing to process: pass `videos`, `audio` or both" + (", or `text`." if self.has_tokenizer else ".")
            )
        words = {} if text is None else self._tokenize(text, text_kwargs)
        if videos is None and audio is None:
            return to_batch(words, return_tensors)
        _check_rules(missing, damaged, num_frames)
        hearing = self.with_audio_choice(channel, audio_track)
        video_options, audio_options = self._sort_options(kwargs, audio_kwargs, videos_kwargs)
        rate = audio_options.pop("sampling_rate", None)
        if rate is not None and sampling_rate is not None and rate != sampling_rate:
            raise ValueError(f"sampling_rate is {sampling_rate} and, in `audio_kwargs`, {rate}; give one of them.")
        rate = sampling_rate if rate is None else rate
        clips = _pair_clips(videos, audio)
        own_audio = audio is None and any(_brings_audio(clip.video, missing) for clip in clips)
        _set_times(clips, frame_times, num_frames=num_frames, fps=fps, do_sample_frames=do_sample_frames)
        decoded = [clip.is_decoded for clip in clips]
        files = [is_media_source(clip.video) or is_media_source(clip.audio) for clip in clips]
        by_time = "frames of files are chosen by time, with `num_frames` or `frame_times`"
        for name, value, heeds, reason in (
            ("fps", fps, decoded, by_time),
            ("video_metadata", video_metadata, decoded, by_time),
            ("start", start, files, "only files are cut"),
            ("end", end, files, "only files are cut"),
        ):
            for clip, part in zip(clips, per_clip(name, value, heeds=heeds, reason=reason), strict=True):
                setattr(clip, name, part)
        if audio_track is not None and not own_audio and not any(is_media_source(clip.audio) for clip in clips):
            raise ValueError("audio_track means nothing for this input: no audio of a file is read. Leave it out.")
        self._check_rate(rate, [clip.audio for clip in clips])
        if missing == "error":
            _check_tracks(clips, with_video=videos is not None, with_audio=audio is not None, own_audio=own_audio)
        settings = _Settings(
            num_frames=num_frames,
            sampling_rate=rate,
            do_sample_frames=do_sample_frames,
            missing=missing,
            damaged=damaged,
            device=device,
            own_audio=own_audio,
            threads=1 if len(clips) > 1 else 0,
            video_options=video_options,
        )
        hearing._load_all(clips, settings, workers=min(sum(files), os.cpu_count() or 1))
        for clip in clips:
            if clip.times is None and (clip.duration is not None or clip.pixels is None):
                count = clip.num_frames or num_frames
                clip.times = self.feature_extractor.default_frame_times(clip.duration or 0.0, count)
        output: dict[str, Any] = {}
        if videos is not None:
            present = [clip.pixels for clip in clips if clip.pixels is not None]
            absent = present[0][:0] if present else self._pixels(None, "", settings.video_options, device)
            pixels = [absent if clip.pixels is None else clip.pixels for clip in clips]
            # As many frames as there are windows.
            output |= pad_clips(pixels, max(clip.num_frames for clip in clips))
        if audio is not None or own_audio:
            output |= hearing.feature_extractor(
                [clip.waveform for clip in clips],
                frame_times=_known_times(clips),
                return_tensors="pt",
                return_times=return_times,
                device=device,
                **audio_options,
            )
        elif return_times:
            times = [torch.tensor(row, dtype=torch.float64) for row in _known_times(clips)]
            output["frame_times"] = stack_padded(times, max(map(len, times)), math.nan)
        return to_batch(output | words, return_tensors)

    def _tokenize(self, text: Any, text_kwargs: dict[str, Any] | None) -> dict[str, torch.Tensor]:
        """What the text encoder takes of texts."""
        if not self.has_tokenizer:
            raise ValueError(
                "This processor has no tokenizer, and its model no text encoder; leave `text` out, or load a model "
                "with text (CavMaeSyncTextDualEncoderModel)."
            )
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not texts:
            raise ValueError(f"`text` is {text!r}; pass a text or a list of texts.")
        for place, one in enumerate(texts):
            if not isinstance(one, str) or not one.strip():
                raise ValueError(f"Text {place} is {one!r}; every text must be a string that is not empty.")
        # Text encoders that take no attention mask (SigLIP's) were trained with texts filled up to one length.
        padding = True if "attention_mask" in self.tokenizer.model_input_names else "max_length"
        tokens = self.tokenizer(list(texts), **({"padding": padding, "return_tensors": "pt"} | (text_kwargs or {})))
        lengths = tokens["attention_mask"].sum(dim=1) if "attention_mask" in tokens else None
        limit = self.tokenizer.model_max_length
        if lengths is not None and int(lengths.max()) > limit:
            place = int(lengths.argmax())
            raise ValueError(
                f"Text {place} has {int(lengths[place])} tokens, and the text encoder takes {limit}; shorten it, or "
                "pass text_kwargs={'truncation': True}."
            )
        return dict(tokens)

    def stream(
        self,
        video: Any,
        hop: float = 0.625,
        num_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        missing: str = "error",
        damaged: str = "error",
        want_audio: bool = True,
        want_video: bool = True,
        audio: Any = None,
        sampling_rate: int | None = None,
        channel: str | None = None,
        audio_track: int | str | None = None,
        return_tensors: str | TensorType = "pt",
        return_media: bool = False,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> Iterator[BatchFeature]:
        """Read a video of any length in constant memory: aligned frames and windows, some at a time.

        Frame k is the one on screen at `(k + 0.5) * hop`, and its window is centred on it with the true audio on
        either side, over the borders of chunks. So a clip of `n * hop` seconds gives what a call with `num_frames=n`
        and `alignment="time"` gives. (The published mapping is one for whole clips; a stream is aligned in time.)

        Args:
            video: Path, address, bytes or file object.
            hop: Seconds from one frame to the next; 0.625 is the distance in a clip of 10 s with 16 frames.
            num_frames: Frames per chunk; default: the feature extractor's. The last chunk may be shorter.
            start: Where in the file to start, seconds. What lies before counts as silence.
            end: Where to end, seconds.
            missing: `"error"`, or `"mask"` to mark an absent track as absent.
            damaged: `"error"`: a truncated or corrupt file ends in an error, after all that could be decoded has been
                handed out. `"keep"`: it ends there without one.
            want_audio: Whether audio is decoded; if not, all windows are absent.
            want_video: Whether frames are decoded; if not, all frames are absent, windows lie on the centres of
                the steps themselves, and files without a video track will do.
            audio: Another audio track for the video: a file, or a waveform as `__call__` takes one clip's. Its time 0
                is the video's; then the video's own audio is not read. Windows after its end are absent.
            sampling_rate: Rate in Hz of a waveform in `audio`; required with it.
            channel: As in `__call__`.
            audio_track: As in `__call__`; of `audio` where that is a file.
            return_tensors: `"pt"` or `"np"`.
            return_media: Also give each chunk's decoded frames and audio, a `MediaChunk`, as `media`; it is no input
                of the model.
            device: Where to compute spectrograms and pixels.
            kwargs: Arguments of the video processor.

        Yields:
            A batch of one clip as `__call__` returns it, with `frame_times` `(1, num_frames)`, `window_times`
            `(1, num_frames, 2)`, both in seconds of the *file*, and `window_coverage` `(1, num_frames)`.

        Raises:
            MediaError: The file cannot be used (raised with the first chunk).
            ValueError: An argument cannot work; raised at once.
            TypeError: An argument is unknown; raised at once.
        """
        _check_rules(missing, damaged, num_frames)
        options, _ = self._sort_options(kwargs)
        hearing = self.with_audio_choice(channel, audio_track)
        extractor = copy.copy(hearing.feature_extractor)
        extractor.alignment = "time"
        context = extractor.context_seconds + _CONTEXT_MARGIN_SECONDS
        span: dict[str, Any] = {
            "hop": hop,
            "num_frames": extractor.num_frames if num_frames is None else num_frames,
            "start": start,
            "end": end,
        }
        rules: dict[str, Any] = {"missing": missing, "damaged": damaged}
        shown = rules | self.video_processor.moment_options
        track: dict[str, Any] = {
            "sampling_rate": extractor.sampling_rate,
            "channel": extractor.channel,
            "audio_track": hearing.audio_track,
        }
        if audio is None:
            chunks = iter_media(
                video, context=context, want_audio=want_audio, want_video=want_video, **span, **track, **shown
            )
        elif not want_audio or not want_video:
            raise ValueError("`audio` goes with the frames of `video`; leave out `want_audio` and `want_video`.")
        else:
            context += DUB_CONTEXT_SECONDS
            if is_media_source(audio):
                self._check_rate(sampling_rate, [audio])
                heard = iter_media(audio, context=context, want_video=False, **span, **track, **rules)
            else:
                waveform = hearing._one_waveform(audio, sampling_rate)
                heard = iter_waveform(waveform, extractor.sampling_rate, context=context, **span)
            chunks = with_audio_of(iter_media(video, context=0.0, want_audio=False, **span, **shown), heard)

        # In a function of its own, so that arguments are refused at once and not with the first chunk.
        def batches() -> Iterator[BatchFeature]:
            for chunk in chunks:
                frames = chunk.frames if chunk.moments is None else chunk.moments
                pixels = self._pixels(frames, chunk.source, options, device)
                output = pad_clips([pixels], len(chunk.frame_times)) | _chunk_windows(extractor, chunk, device)
                batch = to_batch(output, return_tensors)
                if return_media:
                    batch["media"] = chunk
                yield batch

        return batches()

    def _one_waveform(self, audio: Any, sampling_rate: int | None) -> torch.Tensor:
        """The waveform that is the audio of one video, `(num_samples,)` at the feature extractor's rate."""
        clips, _ = split_waveforms(audio)
        if len(clips) != 1:
            raise ValueError(f"`audio` is {len(clips)} waveforms for one video; give one (its channels as `[array]`).")
        samples, rate = samples_and_rate(clips[0], sampling_rate, "The audio")
        if samples is None:
            raise ValueError("`audio` is a list of None; give the video's audio, or leave `audio` out.")
        own = self.feature_extractor
        return load_waveform(samples, rate, to_rate=own.sampling_rate, channel=own.channel, name="The audio")

    def _check_rate(self, sampling_rate: int | None, audio: Sequence[Any]) -> None:
        """Refuse a rate that no waveform has: it would not be that of a file's audio."""
        own = self.feature_extractor.sampling_rate
        if sampling_rate not in (None, own) and all(one is None or is_media_source(one) for one in audio):
            raise ValueError(
                f"sampling_rate is {sampling_rate}, but no waveform is given that it could belong to: files say the "
                f"rate of their audio themselves, and it is brought to {own} Hz. Leave sampling_rate out."
            )

    def _sort_options(
        self,
        kwargs: dict[str, Any],
        audio_kwargs: dict[str, Any] | None = None,
        videos_kwargs: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments for the video processor and for the feature extractor; refuses what neither would heed."""
        for_video, for_audio = dict(videos_kwargs or {}), dict(audio_kwargs or {})
        if "alignment" in {*kwargs, *for_video, *for_audio}:
            raise ValueError(
                "`alignment` is one setting for frames and windows and no argument of a call; set "
                '`processor.feature_extractor.alignment = "reference"` (or "time").'
            )
        for group, options in (("videos_kwargs", for_video), ("audio_kwargs", for_audio)):
            for name in sorted(_SHARED_ARGUMENTS & set(options)):
                raise ValueError(
                    f"`{name}` in `{group}` would reach frames or windows alone; pass it to the call itself, beside "
                    "`videos`."
                )
        for name, value in kwargs.items():
            audio_alone = name in IGNORED_ARGUMENTS or name == "return_attention_mask"
            (for_audio if audio_alone else for_video)[name] = value
        typed = self.video_processor.valid_kwargs
        known = (set(typed.__required_keys__) | set(typed.__optional_keys__)) - _SHARED_ARGUMENTS - {"return_metadata"}
        for name in for_video:
            if name not in known:
                raise TypeError(f"Unknown argument {name!r}; see the arguments of the processor's call.")
        return for_video, for_audio

    def _load_all(self, clips: list[_Clip], settings: _Settings, workers: int) -> None:
        """Read clips side by side and make pixels of each at once; only as many as threads hold full-size frames."""
        # torch spreads the work on pixels over the cores itself, so one clip at a time is enough; decoding goes on.
        turn = threading.Lock()

        def load(clip: _Clip) -> None:
            frames = self._read(clip, settings)
            if frames is not None:
                with turn:
                    clip.pixels = self._pixels(frames, clip.name, settings.video_options, settings.device)

        if workers <= 1:
            for clip in clips:
                load(clip)
            return
        with ThreadPoolExecutor(workers) as pool:  # PyAV decodes without holding the interpreter's lock
            list(pool.map(load, clips))

    def _read(self, clip: _Clip, settings: _Settings) -> Any:
        """Decode a clip's files and take its frames and waveform; returns the frames."""
        extractor, frames = self.feature_extractor, None
        both: dict[str, Any] = {
            "sampling_rate": extractor.sampling_rate,
            "channel": extractor.channel,
            "audio_track": self.audio_track,
            "start": clip.start,
            "end": clip.end,
            "missing": settings.missing,
            "damaged": settings.damaged,
            "threads": settings.threads,
        }
        if clip.is_decoded:
            frames = self._place_frames(clip, settings)
        elif clip.video is not None:
            media = decode_media(
                clip.video,
                num_frames=extractor.num_frames if settings.num_frames is None else settings.num_frames,
                alignment=extractor.alignment,
                frame_times=clip.times,
                want_audio=settings.own_audio,
                **both,
                **self.video_processor.moment_options,
            )
            frames = media.frames if media.moments is None else media.moments
            clip.name, clip.duration = media.source, media.duration
            if media.frame_times is not None:
                clip.times = media.frame_times.tolist()
            _set_waveform(clip, media.waveform, extractor.sampling_rate, None)
        clip.video = None
        if is_media_source(clip.audio):
            media = decode_media(clip.audio, want_video=False, **both)
            _set_waveform(clip, media.waveform, extractor.sampling_rate, media.duration)
        elif clip.audio is not None:
            samples, rate = samples_and_rate(clip.audio, settings.sampling_rate, f"Clip {clip.position}")
            shape = np.shape(samples) if isinstance(samples, np.ndarray | torch.Tensor) else (len(samples),)
            _set_waveform(clip, samples, rate, shape[-1] / rate if shape else None)
        return frames

    def _place_frames(self, clip: _Clip, settings: _Settings) -> Any:
        """Give decoded frames their times, and take some of them where that is asked for."""
        frames = split_frames(clip.video)
        total = len(frames)
        metadata = dict(clip.video_metadata) if clip.video_metadata is not None else {}
        rate = metadata.get("fps") if clip.fps is None else clip.fps
        if rate is not None:
            if not (isinstance(rate, int | float | np.number) and rate > 0):
                raise ValueError(f"{clip.name}: the frame rate must be a positive number, got {rate!r}.")
            rate = float(rate)
        numbers = metadata.get("frames_indices")
        numbers = list(range(total)) if numbers is None else [int(index) for index in numbers]
        if len(numbers) != total:
            raise ValueError(f"{clip.name}: {len(numbers)} frame indices for {total} frames; give one per frame.")
        if clip.times is None and rate is not None:
            clip.times = [index / rate for index in numbers]
        if clip.times is not None and len(clip.times) != total:
            raise ValueError(
                f"{clip.name}: {len(clip.times)} frame times for {total} frames; give one time per frame."
            )
        if settings.do_sample_frames:
            extractor = self.feature_extractor
            places = self.video_processor.sample_frames(
                VideoMetadata(total_num_frames=total, fps=rate),
                num_frames=extractor.num_frames if settings.num_frames is None else settings.num_frames,
                alignment=extractor.alignment,
            ).tolist()
            times, clip.times = clip.times, None if clip.times is None else [clip.times[place] for place in places]
            if len(self.video_processor.shifts) > 1:
                return self._find_moments(clip.name, frames, times, places)
            return frames[places] if hasattr(frames, "shape") else [frames[place] for place in places]
        if settings.num_frames is not None and total != settings.num_frames:
            raise ValueError(
                f"{clip.name}: num_frames is {settings.num_frames} but the clip has {total} frames; leave num_frames "
                "out, or pass do_sample_frames=True with fps to take some of them."
            )
        if len(self.video_processor.shifts) > 1:
            return self._find_moments(clip.name, frames, clip.times, range(total))
        return frames

    def _find_moments(self, name: str, frames: Any, times: list[float] | None, chosen: Sequence[int]) -> MomentFrames:
        """The frames of moments among decoded ones: by their times, or where nobody knows them those beside each."""
        shifts = self.video_processor.shifts
        if times is None:
            beside = torch.arange(len(shifts)) - len(shifts) // 2
            places = (torch.tensor(list(chosen)).unsqueeze(1) + beside).clamp(0, len(frames) - 1)
            return MomentFrames(frames, places)
        try:
            return MomentFrames(frames, nearest_frames(times, chosen, shifts))
        except ValueError as error:
            raise ValueError(
                f"{name}: {error}; give all frames of the video, with do_sample_frames=True to take some of them, or "
                "the file itself."
            ) from error

    def _pixels(
        self, frames: Any, name: str, options: dict[str, Any], device: str | torch.device | None
    ) -> torch.Tensor:
        """Pixels `(num_frames, channels, height, width)` of one clip; none of them, in the right size, without frames.

        Args:
            frames: Its frames, or `MomentFrames`, of which each is made pixels of once.
            name: For messages.
            options: For the video processor.
            device: Likewise.
        """
        if frames is None:
            black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
            frames = MomentFrames(black, torch.zeros(0, len(self.video_processor.shifts), dtype=torch.long))
        moments = frames if isinstance(frames, MomentFrames) else None
        given = frames if moments is None else moments.images
        if device:
            options = options | {"device": device}
        done = self.video_processor([given], names=[name], do_sample_frames=False, return_tensors="pt", **options)
        pixels = done["pixel_values_videos"][0]
        return pixels if moments is None else moments.stacked(pixels)


def _chunk_windows(
    extractor: CavMaeSyncFeatureExtractor, chunk: MediaChunk, device: str | torch.device | None
) -> dict[str, torch.Tensor]:
    """Windows of one chunk of a stream; times in seconds of the file."""
    times = chunk.frame_times.tolist()
    waveform = chunk.waveform
    # Less than one spectrogram frame at the end of a video belongs to no frame of the whole, either.
    too_short = waveform is None or (len(waveform) < extractor.window_samples and chunk.waveform_start > 0)
    if waveform is None or too_short or not len(waveform):
        log_mel = torch.empty(0, extractor.num_mel_bins, device=device)
    else:
        log_mel = extractor.log_mel(waveform if device is None else waveform.to(device))
    first_frame = chunk.waveform_start * FRAMES_PER_SECOND
    windows = extractor.windows(log_mel, times, first_frame=first_frame, origin=chunk.start)
    spans = torch.tensor(window_times(windows.starts, extractor.audio_length), dtype=torch.float64) + chunk.start
    within = {} if extractor.clip_length is None else {"window_offsets": windows.offsets.unsqueeze(0)}
    return within | {
        "input_values": windows.values.unsqueeze(0),
        "padding_mask": windows.mask.unsqueeze(0),
        "frame_times": (chunk.frame_times + chunk.start).unsqueeze(0),
        "window_times": spans.unsqueeze(0),
        "window_coverage": windows.coverage.unsqueeze(0),
    }


def _check_rules(missing: Any, damaged: Any, num_frames: Any) -> None:
    """Refuse values of the call's arguments that cannot work, whatever the input."""
    for name, value, other in (("missing", missing, "mask"), ("damaged", damaged, "keep")):
        if value not in ("error", other):
            raise ValueError(f'`{name}` is {value!r}; it must be "error" or "{other}".')
    whole = isinstance(num_frames, int | np.integer) and not isinstance(num_frames, bool)
    if num_frames is not None and not (whole and num_frames >= 1):
        raise ValueError(f"num_frames is {num_frames!r}; it must be a whole number of at least 1.")


def split_audio(audio: Any) -> list[Any]:
    """Tell one clip of audio from several, files or waveforms; returns a list of clips."""
    if is_media_source(audio):
        return [audio]
    if isinstance(audio, list | tuple) and any(map(is_media_source, audio)):
        return list(audio)
    return split_waveforms(audio)[0]


def _pair_clips(videos: Any, audio: Any) -> list[_Clip]:
    """Tell one clip from several, and pair videos with their audio."""
    shown = split_clips(videos) if videos is not None else None
    heard = split_audio(audio) if audio is not None else None
    if shown is not None and heard is not None and len(shown) != len(heard):
        raise ValueError(
            f"Got {len(shown)} videos and {len(heard)} waveforms; pass one waveform per video (several channels of "
            "one clip as `[array]`, channels first)."
        )
    count = len(shown if shown is not None else heard or [])
    pairs = zip(shown or [None] * count, heard or [None] * count, strict=True)
    return [_Clip(position, f"Clip {position}", *pair) for position, pair in enumerate(pairs)]


def _brings_audio(video: Any, missing: str) -> bool:
    """Whether the audio is expected of what was given as a video."""
    if missing == "error" and decoder_kind(video) == "video":
        # It is a video like decoded frames, and brings audio where its file has some.
        return probe_media(video).has_audio
    return is_media_source(video)


def _check_tracks(clips: list[_Clip], *, with_video: bool, with_audio: bool, own_audio: bool) -> None:
    """Refuse clips that lack what others have."""
    for clip in clips:
        if with_video and clip.video is None:
            hint = Hint("missing", "mask", "mark its frames as absent")
            raise MissingTrackError(f"{clip.name} has no video: it is None.", "video", hint=hint)
        hint = Hint("missing", "mask", "mark its audio as absent")
        if with_audio and clip.audio is None:
            raise MissingTrackError(f"{clip.name} has no audio: it is None.", "audio", hint=hint)
        if own_audio and clip.is_decoded:
            raise MissingTrackError(
                f"{clip.name} is frames without audio, beside files with audio; give everything its audio with "
                "`audio`.",
                "audio",
                hint=hint,
            )


def _set_times(
    clips: list[_Clip], frame_times: Any, *, num_frames: int | None, fps: Any, do_sample_frames: bool
) -> None:
    """Give every clip its row of frame times, and refuse those that contradict other arguments."""
    if frame_times is None:
        return
    try:
        rows = [] if isinstance(frame_times, str | bytes) else list(frame_times)
    except TypeError:
        rows = []
    if not rows:
        raise ValueError(f"frame_times is {frame_times!r}; give the frames' times in seconds, one row per clip.")
    if all(np.ndim(row) == 0 for row in rows):
        rows = [rows]
    if len(rows) != len(clips):
        raise ValueError(f"frame_times has {len(rows)} rows for {len(clips)} clips; give one row of times per clip.")
    for clip, row in zip(clips, rows, strict=True):
        if row is None:
            continue
        clip.times = [as_seconds("A frame time", time) for time in row]
        if do_sample_frames and clip.is_decoded:
            continue
        if num_frames is not None and len(clip.times) != num_frames:
            raise ValueError(
                f"{clip.name}: {len(clip.times)} frame times, but num_frames is {num_frames}; leave one of them out."
            )
        if fps is not None and clip.is_decoded:
            raise ValueError(f"{clip.name} has frame_times and fps, which could differ; leave one of them out.")


def per_clip(name: str, value: Any, *, heeds: list[bool], reason: str) -> list[Any]:
    """Every clip's part of an argument, one value for all or one per clip; refuses what nothing would heed.

    Args:
        name: Of the argument.
        value: What was passed.
        heeds: Which clips can use it.
        reason: Why others cannot.
    """
    several = isinstance(value, list | tuple | np.ndarray)
    if several and len(value) != len(heeds):
        raise ValueError(
            f"{name} has {len(value)} {'entries' if name == 'video_metadata' else 'values'} for {len(heeds)} clips; "
            "give one for all or one per clip."
        )
    if value is not None and not several and not any(heeds):
        raise ValueError(f"{name} means nothing for this input: {reason}. Leave it out.")
    parts = list(value) if several else [value] * len(heeds)
    for position, (part, heeded) in enumerate(zip(parts, heeds, strict=True)):
        if several and part is not None and not heeded:
            raise ValueError(f"{name} means nothing for clip {position}: {reason}. Give None there.")
    return [part if heeded else None for part, heeded in zip(parts, heeds, strict=True)]


def _set_waveform(clip: _Clip, samples: Any, rate: int, duration: float | None) -> None:
    """Keep samples together with their rate; their length in seconds counts where the video's is unknown."""
    clip.waveform = None if samples is None else {"array": samples, "sampling_rate": rate}
    clip.duration = clip.duration or duration


def _known_times(clips: list[_Clip]) -> list[list[float]]:
    """The times of every clip's frames."""
    rows = []
    for clip in clips:
        if clip.times is None:
            raise ValueError(
                f"{clip.name}: the times of its frames are unknown; pass `fps`, `video_metadata` or `frame_times`."
            )
        rows.append(clip.times)
    return rows


__all__ = ["CavMaeSyncProcessor", "per_clip", "split_audio"]
