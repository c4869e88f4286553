# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Processor of the language model: texts with placeholders and the clips that stand there become its inputs.

A clip is written as its moments in order: the time, then as many `<|video|>` as the model has vectors of a frame and
as many `<|audio|>` as it has of a window, each only where that is present. So the language model reads when what was
seen and heard, and a clip may have any number of moments. Files are decoded by `CavMaeSyncProcessor`.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import OmniModalProcessorMixin, TextKwargs
from transformers.utils import TensorType

from .alignment_cavmae_sync import center_times
from .auto_map_cavmae_sync import LM_AUTO_MAP, SavedWithCode
from .batching_cavmae_sync import stack_all, to_batch
from .feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor, samples_and_rate
from .media_cavmae_sync import decode_media, probe_media
from .processing_cavmae_sync import CavMaeSyncProcessor, per_clip, split_audio
from .video_processing_cavmae_sync import (
    CavMaeSyncVideoProcessor,
    is_media_source,
    pad_clips,
    split_clips,
    split_frames,
)

VIDEO_TOKEN, AUDIO_TOKEN = "<|video|>", "<|audio|>"
# A tokenizer without a length of its own has a huge one.
_LONGEST_CONTEXT = 1_000_000
# Stands for the time of a moment whose clip's length is not known yet: as many digits as any has.
_LATE_SECONDS = 99999.9

# Set before the template of a tokenizer that takes texts alone: contents that are lists become texts. It ends with a
# line break, which Jinja takes away (`trim_blocks`), so that what follows begins as it does by itself.
CONTENT_PRELUDE = (
    "{%- set cavmae_sync = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message.content is not defined or message.content is none or message.content is string -%}"
    "{%- set cavmae_sync.messages = cavmae_sync.messages + [message] -%}"
    "{%- else -%}"
    "{%- set line = namespace(text='') -%}"
    "{%- for part in message.content -%}"
    "{%- if part is string -%}{%- set line.text = line.text + part -%}"
    f"{{%- elif part.type == 'video' -%}}{{%- set line.text = line.text + '{VIDEO_TOKEN}' -%}}"
    f"{{%- elif part.type == 'audio' -%}}{{%- set line.text = line.text + '{AUDIO_TOKEN}' -%}}"
    "{%- elif part.text is defined -%}{%- set line.text = line.text + part.text -%}"
    "{%- else -%}{{- raise_exception('A content is of type ' ~ part.type ~ '; give text, video or audio.') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set cavmae_sync.messages = cavmae_sync.messages + [dict(message, content=line.text)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = cavmae_sync.messages %}\n"
)


@dataclass
class _Clip:
    """One clip, from what was given to what the model takes.

    Attributes:
        name: For messages.
        kind: `"video"` or `"audio"`, which of the placeholders stands for it.
        media: What was given: a file, frames, or a waveform.
        audio: Audio of its own for a video.
        hears: Whether a video's own audio is used.
        start: Where a file is cut, seconds.
        end: Likewise.
        video_metadata: What a loader says about decoded frames.
        times: The asked moments, or the times of decoded frames, seconds.
        texts: What is said at each moment.
        count: How many moments it has at most.
        shows: Whether there are frames, as far as known.
        sounds: Whether there is audio, likewise.
        duration: Seconds, `None` where unknown.
    """

    name: str
    kind: str
    media: Any
    audio: Any = None
    hears: bool = True
    start: float | None = None
    end: float | None = None
    video_metadata: Any = None
    times: list[float] | None = None
    texts: list[str] | None = None
    count: int = 1
    shows: bool = True
    sounds: bool = True
    duration: float | None = None

    @property
    def is_decoded(self) -> bool:
        """Whether it is frames, not a file."""
        return self.kind == "video" and not is_media_source(self.media)

    @property
    def is_seen(self) -> bool:
        """Whether its frames are expected."""
        return self.kind == "video" and self.shows

    @property
    def is_heard(self) -> bool:
        """Whether its windows are expected."""
        own = self.hears and self.sounds and not self.is_decoded
        return self.kind == "audio" or self.audio is not None or own

    def times_of(self, count: int) -> list[float]:
        """`count` of the asked moments, evenly chosen."""
        times = self.times or []
        return [times[int(place)] for place in center_times(len(times), count)]

    def texts_of(self, count: int) -> list[str] | None:
        """The texts where it has `count` moments: of moments that became one, they follow each other."""
        if self.texts is None:
            return None
        merged: list[list[str]] = [[] for _ in range(count)]
        for place, text in enumerate(self.texts):
            merged[place * count // len(self.texts)] += [text] if text else []
        return [" ".join(texts) for texts in merged]


@dataclass
class _LoadedClip:
    """One clip as the model takes it.

    Attributes:
        times: Of its moments, seconds, `(num_moments,)`.
        video_mask: Which frames are present, likewise.
        audio_mask: Which windows are present, likewise.
        pixels: `(num_moments, channels, height, width)`; `None` where no frame is present.
        windows: `input_values`, and `window_offsets` where there are such, with one value per moment; empty where no
            window is present.
    """

    times: Tensor
    video_mask: Tensor
    audio_mask: Tensor
    pixels: Tensor | None
    windows: dict[str, Tensor]


class CavMaeSyncLMProcessor(SavedWithCode, OmniModalProcessorMixin):
    """Turns texts, or chats, with videos and audio into the inputs of `CavMaeSyncForConditionalGeneration`.

    In a text each `<|video|>` stands for one video and each `<|audio|>` for one clip of audio alone; `clip_text` says
    what they become. The audio of a video file is used unless a call says otherwise, without a placeholder of its own.
    `apply_chat_template` takes messages with `{"type": "video", "path": ...}` and `{"type": "audio", "path": ...}`.

    Texts are filled up on the left, so that answers follow them, unless the tokenizer was made or saved with a
    `padding_side` of its own: the constructor sets `tokenizer.padding_side`.

    Args:
        feature_extractor: A [`CavMaeSyncFeatureExtractor`], as the audio-visual model has it.
        video_processor: A [`CavMaeSyncVideoProcessor`], likewise.
        tokenizer: Of the language model, with both placeholders in it (`add_media_tokens`).
        chat_template: A Jinja template for contents that are lists. Default: the tokenizer's own, before which such
            contents are made texts with placeholders.
        tokens_per_frame: Pooled patch vectors of a frame beside its global one, as in the model's configuration: a
            square number, 0 for none.
        tokens_per_window: Those of a window, any number.

    Attributes:
        video_token: Placeholder of a video and of each vector of a frame.
        audio_token: Placeholder of a clip of audio alone and of each vector of a window.
        video_token_id: Its number in the vocabulary.
        audio_token_id: Likewise.

    Raises:
        ValueError: The tokenizer lacks the placeholders, or a number cannot be.
    """

    feature_extractor: CavMaeSyncFeatureExtractor
    video_processor: CavMaeSyncVideoProcessor
    tokenizer: PreTrainedTokenizerBase
    video_token = VIDEO_TOKEN
    audio_token = AUDIO_TOKEN

    def __init__(
        self,
        feature_extractor: CavMaeSyncFeatureExtractor,
        video_processor: CavMaeSyncVideoProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | dict[str, str] | None = None,
        tokens_per_frame: int = 9,
        tokens_per_window: int = 4,
    ) -> None:
        for name, value in (("tokens_per_frame", tokens_per_frame), ("tokens_per_window", tokens_per_window)):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not whole or (name == "tokens_per_frame" and math.isqrt(value) ** 2 != value):
                kinds = "a square (0, 1, 4, 9, 16, ...)" if name == "tokens_per_frame" else "a whole number from 0 on"
                raise ValueError(f"`{name}` is {value!r}; it must be {kinds}.")
        if chat_template is None:
            chat_template = _for_lists(getattr(tokenizer, "chat_template", None))
        super().__init__(feature_extractor, video_processor, tokenizer, chat_template=chat_template)
        lacking = _lacking(tokenizer)
        if lacking:
            raise ValueError(
                f"The tokenizer ({type(tokenizer).__name__}, {len(tokenizer)} tokens) does not have {' and '.join(lacking)} as "
                "one token; call CavMaeSyncLMProcessor.add_media_tokens(tokenizer) first, and "
                "resize_token_embeddings(len(tokenizer)) of the language model."
            )
        if "padding_side" not in tokenizer.init_kwargs:
            tokenizer.padding_side = "left"
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        self.tokens_per_frame = tokens_per_frame
        self.tokens_per_window = tokens_per_window
        # Written into `processor_config.json`. Set here, so that saving changes nothing and loading gives the same.
        self.auto_map = dict(LM_AUTO_MAP)

    @staticmethod
    def add_media_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
        """Add the placeholders to a tokenizer as special tokens.

        Args:
            tokenizer: Of the language model; it is changed.

        Returns:
            How many were new. The embeddings of the language model must then be resized to `len(tokenizer)`.
        """
        tokens = [AddedToken(token, special=True, normalized=False) for token in _lacking(tokenizer)]
        if not tokens:
            return 0
        return tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that the model takes from this processor."""
        return ["input_ids", "attention_mask", *self._media_processor.model_input_names]

    @property
    def _media_processor(self) -> CavMaeSyncProcessor:
        """Makes inputs of the audio-visual model out of a clip."""
        return CavMaeSyncProcessor(self.feature_extractor, self.video_processor)

    def clip_text(
        self,
        times: Iterable[float],
        video_present: Iterable[bool],
        audio_present: Iterable[bool],
        texts: Sequence[str | None] | None = None,
    ) -> str:
        """What stands for one clip in the text that the model reads.

        Each moment is its time, `f"{time:.1f}s"`, then `1 + tokens_per_frame` times `<|video|>` where its frame is
        present, `1 + tokens_per_window` times `<|audio|>` where its window is, and its text. Without pooled vectors:
        `"0.3s<|video|><|audio|>0.9s<|video|><|audio|>1.6s<|audio|>"`. Needs no media, so it serves for cached vectors
        as well.

        Args:
            times: Of the moments in seconds, `(num_moments,)`. Where a moment only fills up a clip, NaN; it is left
                out.
            video_present: Whether the frame of each is present, likewise.
            audio_present: Whether the window of each is.
            texts: What is said at each, such as subtitles; `None` or empty for nothing.

        Raises:
            ValueError: They are not of one length, a present moment has no time, or a text holds a placeholder.
        """
        moments = [float(time) for time in times]
        shown, heard = ([bool(value) for value in values] for values in (video_present, audio_present))
        said: list[str | None] = [None] * len(moments) if texts is None else list(texts)
        if not len(moments) == len(shown) == len(heard) == len(said):
            raise ValueError(
                f"A clip has {len(moments)} times, {len(shown)} frames, {len(heard)} windows and {len(said)} texts; "
                "give one of each for every moment."
            )
        parts: list[str] = []
        for number, (time, sees, hears, text) in enumerate(zip(moments, shown, heard, said, strict=True)):
            if text and (self.video_token in text or self.audio_token in text):
                raise ValueError(f"The text of moment {number} holds a placeholder of media: {text!r}; remove it.")
            if math.isfinite(time):
                parts.append(f"{time:.1f}s")
                parts.append(self.video_token * (1 + self.tokens_per_frame) * sees)
                parts.append(self.audio_token * (1 + self.tokens_per_window) * hears)
                parts.append(text or "")
            elif sees or hears:
                raise ValueError(f"Moment {number} is present and its time is {time}; give it in seconds.")
        return "".join(parts)

    def expand(self, text: str, clip_texts: Sequence[str]) -> str:
        """A text with its placeholders replaced by what stands for the clips.

        Args:
            text: With one `<|video|>` for each video and one `<|audio|>` for each clip of audio alone.
            clip_texts: What `clip_text` gave for each, in the order of the placeholders.

        Raises:
            ValueError: There are not as many clips as placeholders.
        """
        kinds = self._placeholders(text)
        if len(kinds) != len(clip_texts):
            raise ValueError(
                f"The text has {len(kinds)} placeholders ({self.video_token}, {self.audio_token}) and there are "
                f"{len(clip_texts)} clips; give one placeholder for each: {_shortened(text)!r}."
            )
        return self._expanded([text], [kinds], [list(clip_texts)])[0][0]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        audio_from_video_indices: Sequence[int | None] | None = None,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        frame_times: Any = None,
        moment_texts: Sequence[Sequence[str | None] | None] | None = None,
        start: float | Sequence[float | None] | None = None,
        end: float | Sequence[float | None] | None = None,
        sampling_rate: int | None = None,
        video_metadata: Any = None,
        load_audio_from_video: bool = True,
        max_length: int | None = None,
        padding: bool | str | None = None,
        return_tensors: str | TensorType | None = None,
        return_times: bool = False,
        return_mm_token_type_ids: bool = False,
        return_text_replacement_offsets: bool = False,
        do_sample_frames: bool | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one text or several, with their clips.

        Where an argument has one value per clip, clips are counted in the order of their placeholders, over all texts.

        Args:
            images: Not taken; pass images as a video, a list of frames.
            text: A text or several, with a placeholder for each clip.
            videos: Files, or decoded frames, as [`CavMaeSyncProcessor`] takes them: one, a list in the order of the
                placeholders, or one list per text. A file without pictures is one of audio alone, one without an
                audio track has no `<|audio|>`.
            audio: Clips of audio alone, for `<|audio|>` in the text: files or waveforms, in the same ways.
            audio_from_video_indices: Where each entry of `audio` belongs: `None` for a clip of audio alone, `i` for
                the audio of video i (counted over all texts). With fewer entries of `audio` than this has, the audio
                of the named videos is their files' own; videos that are not named have none.
            num_frames: Moments per clip; default: the feature extractor's.
            fps: Moments per second instead: one every `1 / fps` seconds.
            frame_times: As in [`CavMaeSyncProcessor`]: the moments in seconds from the start of each clip, or the
                times of decoded frames; a row for one clip or one row (or `None`) per clip.
            moment_texts: Per clip what is said at each moment (see `clip_text`), or `None`; it then has as many
                moments as texts, unless other arguments say how many.
            start: Where in the files the clips start, seconds (one value or one per clip); times count from there.
            end: Where they end, seconds.
            sampling_rate: Rate in Hz of waveforms in `audio` that do not bring their own.
            video_metadata: Times of decoded frames, as loaders of transformers say them: `{"fps": ...,
                "frames_indices": ...}`, one for all or one per clip.
            load_audio_from_video: Whether the audio of video files is used.
            max_length: Longest text in tokens, clips included; default: the tokenizer's. Longer ones have fewer
                moments, of every clip the same share fewer. Leave room in it for the answer.
            padding: As of a tokenizer; default: to the longest where tensors are asked for.
            return_tensors: `"pt"`, `"np"` or `None` (lists).
            return_times: Also return `frame_times` `(clips, moments)`, seconds from the start of each clip, NaN where
                a clip has fewer.
            return_mm_token_type_ids: Also return `mm_token_type_ids`: 2 for a frame's token, 3 for a window's, else 0.
            return_text_replacement_offsets: Also return where placeholders stood and what they became, per text.
            do_sample_frames: False: take decoded frames as they are, whatever `num_frames` and `fps` say.
            text_kwargs: More arguments for the tokenizer.
            kwargs: Arguments of the tokenizer, and those of [`CavMaeSyncProcessor`] that are not above.

        Returns:
            `input_ids` and `attention_mask` `(texts, tokens)`; `pixel_values_videos` `(clips with video, moments, 3,
            height, width)`, with `padding_mask_videos` `(clips with video, moments)` where a frame is absent;
            `input_values` `(clips with audio, moments, audio_length, num_mel_bins)` with `padding_mask` `(clips with
            audio, moments)`, and `window_offsets` where the feature extractor makes them. Clips are in the order of
            the text, and as many placeholders are in `input_ids` as there are vectors of what is present.

        Raises:
            ValueError: An input cannot be used (`MediaError` for files), a placeholder has no clip or a clip no
                placeholder, or a text is too long with one moment per clip.
            TypeError: An argument is unknown.
        """
        if images is not None:
            raise ValueError("This processor has no image side; pass images as `videos`, a list of frames.")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(
                f"`text` is {_shortened(repr(text))}; pass a text or a list of texts, with {self.video_token} where a "
                f"video belongs and {self.audio_token} where audio alone does."
            )
        words = {name: kwargs.pop(name) for name in list(kwargs) if name in TextKwargs.__annotations__}
        words = {"return_token_type_ids": False} | words | (text_kwargs or {})
        return_tensors = words.pop("return_tensors", return_tensors)
        max_length = words.pop("max_length", max_length)
        padding = words.pop("padding", padding)
        return_mm_token_type_ids = words.pop("return_mm_token_type_ids", return_mm_token_type_ids)
        return_text_replacement_offsets = words.pop("return_text_replacement_offsets", return_text_replacement_offsets)

        kinds = [self._placeholders(one) for one in texts]
        rows = self._pair(kinds, videos, audio, audio_from_video_indices, load_audio_from_video)
        clips = [clip for row in rows for clip in row]
        _set_options(clips, start=start, end=end, video_metadata=video_metadata)
        _set_times(clips, frame_times)
        _set_texts(clips, moment_texts)
        if fps is not None and (num_frames is not None or not _positive(fps)):
            raise ValueError(f"fps is {fps!r} and num_frames {num_frames!r}; give one of them, above zero.")
        for clip in clips:
            clip.count = self._count(clip, num_frames, fps, sampling_rate, do_sample_frames)

        limit = self.tokenizer.model_max_length if max_length is None else max_length
        known = None if limit >= _LONGEST_CONTEXT else limit
        media: list[_LoadedClip] = []
        clip_texts: list[list[str]] = []
        for number, (one, of, row) in enumerate(zip(texts, kinds, rows, strict=True)):
            length = partial(self._length, one, of, words)
            loaded, held = self._load_row(number, row, length, known, sampling_rate, kwargs)
            media += loaded
            clip_texts.append(held)
        expanded, offsets = self._expanded(list(texts), kinds, clip_texts)
        padding = return_tensors is not None and len(texts) > 1 if padding is None else padding
        if padding == "max_length" or words.get("truncation"):
            words["max_length"] = known
        tokens = self.tokenizer(expanded, padding=padding, **words)
        self._check_special_mm_tokens(expanded, tokens, modalities=["video", "audio"])
        data = dict(tokens)
        if return_text_replacement_offsets:
            data["text_replacement_offsets"] = offsets
        if return_mm_token_type_ids:
            data["mm_token_type_ids"] = self.create_mm_token_type_ids(tokens["input_ids"])
        data |= to_batch(self._stack(media, return_times), return_tensors)
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, *, load_audio_from_video: bool = True, **kwargs: Any
    ) -> Any:
        """As of every processor of transformers, except that the audio of videos is used unless that is refused.

        Args:
            conversation: A chat or a list of chats. A content is a text, or a list of `{"type": "text", "text": ...}`,
                `{"type": "video", "path": ...}` and `{"type": "audio", "path": ...}`, where `"path"` may as well be
                `"url"`, or `"video"` and `"audio"` for what the call takes as `videos` and `audio`.
            chat_template: Default: the processor's.
            load_audio_from_video: Whether the audio of video files is used.
            kwargs: As of transformers: `tokenize`, `add_generation_prompt`, `return_dict`, `return_tensors`,
                `return_assistant_tokens_mask`, and in `processor_kwargs` arguments of the call.

        Raises:
            ValueError: There is no template, or as in the call.
        """
        return super().apply_chat_template(
            conversation, chat_template, load_audio_from_video=load_audio_from_video, **kwargs
        )

    def _resolve_chat_template(self, chat_template: str | None) -> str:
        """The template; says what to do where there is none."""
        if chat_template is None and self.chat_template is None:
            raise ValueError(
                "There is no chat template: the tokenizer has none, and none was given to the processor. Pass "
                "`chat_template=...` (Jinja) to CavMaeSyncLMProcessor or to this call, or call the processor with a "
                f"text that has {self.video_token} in it."
            )
        return super()._resolve_chat_template(chat_template)

    def _multimodal_inputs_from_conversations(
        self, conversations: Any, audio_loading_params: dict[str, Any], load_audio_from_video: bool = True
    ) -> tuple[list[Any], list[Any], list[Any], dict[str, Any]]:
        """What chats show and let hear, one list per chat; files are left to the decoder."""
        given: dict[str, list[list[Any]]] = {"video": [], "audio": []}
        for conversation in conversations:
            for found in given.values():
                found.append([])
            for message in conversation:
                content = message.get("content")
                for part in content if isinstance(content, list | tuple) else ():
                    if isinstance(part, Mapping) and part.get("type") in given:
                        keys = (part["type"], "url", "path")
                        given[part["type"]][-1] += [part[key] for key in keys if part.get(key) is not None][:1]
        audio = given["audio"] if any(given["audio"]) else []
        return [], given["video"], audio, {"load_audio_from_video": load_audio_from_video}

    def _placeholders(self, text: str) -> list[str]:
        """The kinds of the placeholders of a text, in order, without those that are marked as plain text."""
        _, offsets = self.get_text_with_replacements(
            [text], [], [""] * text.count(self.video_token), [""] * text.count(self.audio_token)
        )
        return [entry["type"] for entry in offsets[0]]

    def _expanded(
        self, texts: list[str], kinds: list[list[str]], clip_texts: list[list[str]]
    ) -> tuple[list[str], list[Any]]:
        """Texts with their clips in place, and where these stand, as transformers says it."""
        replacements: dict[str, list[str]] = {"video": [], "audio": []}
        for row, held in zip(kinds, clip_texts, strict=True):
            for kind, clip_text in zip(row, held, strict=True):
                replacements[kind].append(clip_text)
        return self.get_text_with_replacements(list(texts), [], replacements["video"], replacements["audio"])

    def _length(self, text: str, kinds: list[str], words: dict[str, Any], clip_texts: list[str]) -> int:
        """How many tokens a text has with its clips in place."""
        expanded, _ = self._expanded([text], [kinds], [clip_texts])
        return len(self.tokenizer(expanded[0], **(words | {"verbose": False, "truncation": False}))["input_ids"])

    def _pair(
        self,
        kinds: list[list[str]],
        videos: Any,
        audio: Any,
        indices: Sequence[int | None] | None,
        load_audio: bool,
    ) -> list[list[_Clip]]:
        """The clips of each text, in the order of its placeholders."""
        shown, shown_counts = _flat(videos, split_clips, _is_frame)
        heard, heard_counts = _flat(audio, split_audio, _is_number)
        own: dict[int, Any] = {}
        hears = [load_audio] * len(shown)
        if indices is not None:
            wrong = [i for i in indices if i is not None and not 0 <= i < len(shown)]
            alone = [place for place, i in enumerate(indices) if i is None]
            if wrong or len(heard) not in (len(indices), len(alone)):
                raise ValueError(
                    f"audio_from_video_indices is {list(indices)} for {len(heard)} audio inputs and {len(shown)} "
                    "videos; give None for each clip of audio alone and the number of a video for each of its own."
                )
            hears = [number in indices for number in range(len(shown))]
            if len(heard) == len(indices) and len(alone) < len(indices):
                own = {i: heard[place] for place, i in enumerate(indices) if i is not None}
                heard, heard_counts = [heard[place] for place in alone], None
        for token, kind, given, counts in (
            (self.video_token, "video", shown, shown_counts),
            (self.audio_token, "audio", heard, heard_counts),
        ):
            found = [row.count(kind) for row in kinds]
            if counts is not None and len(counts) != len(kinds):
                raise ValueError(
                    f"There are {len(kinds)} texts and {len(counts)} lists of {kind} inputs; give one each."
                )
            for number, (wanted, there) in enumerate(
                zip(found, counts, strict=True) if counts is not None else [(sum(found), len(given))]
            ):
                where = f"Text {number} has" if counts is not None or len(kinds) == 1 else "The texts have"
                if wanted > there:
                    raise ValueError(
                        f"{where} {wanted} placeholders {token} and {there} {kind} inputs; each stands for one. "
                        f"Give as many, or take {token} out of the text (chats: sanitize_control_tokens=True "
                        "keeps it as plain text)."
                    )
                if wanted < there:
                    raise ValueError(
                        f"{where} {wanted} placeholders {token} and {there} {kind} inputs; write {token} into the "
                        "text where each belongs."
                    )
        left = {"video": iter(enumerate(shown)), "audio": iter(enumerate(heard))}
        rows: list[list[_Clip]] = []
        for row in kinds:
            rows.append([])
            for kind in row:
                number, given_clip = next(left[kind])
                clip = _Clip(f"{kind.capitalize()} {number}", kind, given_clip)
                if kind == "video":
                    clip.audio, clip.hears = own.get(number), hears[number]
                rows[-1].append(clip)
        return rows

    def _count(
        self, clip: _Clip, num_frames: int | None, fps: float | None, rate: int | None, sampled: bool | None
    ) -> int:
        """How many moments a clip has before its text is made to fit."""
        most = None
        if clip.is_decoded:
            most = len(split_frames(clip.media))
            if clip.times is None and not clip.video_metadata and clip.audio is None:
                raise ValueError(
                    f"{clip.name} is decoded frames whose times are unknown; pass `video_metadata` ({{'fps': ...}}) "
                    "or `frame_times`, or the file itself."
                )
        elif clip.times is not None:
            most = len(clip.times)
        wanted = most
        if fps is not None and sampled is not False:
            wanted = max(1, round(self._duration(clip, rate) * fps))
        elif num_frames is not None and sampled is not False:
            wanted = num_frames
        elif most is None:
            wanted = self.feature_extractor.num_frames if clip.texts is None else len(clip.texts)
        count = wanted if most is None else min(most, wanted if wanted is not None else most)
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"num_frames is {num_frames!r}; it must be a whole number of at least 1.")
        if clip.texts is not None and len(clip.texts) != count:
            raise ValueError(
                f"{clip.name} has {count} moments and {len(clip.texts)} moment_texts; give one per moment."
            )
        return count

    def _duration(self, clip: _Clip, rate: int | None) -> float:
        """Length of a clip in seconds, without decoding it where its header says it."""
        if clip.duration is not None:
            return clip.duration
        if clip.is_decoded:
            metadata = clip.video_metadata or {}
            times = clip.times
            if times is None and metadata.get("fps"):
                total = len(split_frames(clip.media))
                indices = metadata.get("frames_indices")
                times = [float(i) / metadata["fps"] for i in (range(total) if indices is None else indices)]
            if times is None:
                raise ValueError(f"{clip.name}: fps says nothing of frames whose times are unknown; leave it out.")
            clip.duration = (max(times) - min(times)) * len(times) / max(1, len(times) - 1)
        elif not is_media_source(clip.media):
            samples, own_rate = samples_and_rate(clip.media, _rate_of(clip.media, rate), clip.name)
            clip.duration = torch.as_tensor(samples).shape[-1] / own_rate
        else:
            info = probe_media(clip.media)
            clip.shows, clip.sounds = info.has_video, info.has_audio
            whole = info.duration
            if whole is None:
                whole = decode_media(clip.media, num_frames=1, missing="mask").duration
            clip.duration = max(0.0, min(whole, math.inf if clip.end is None else clip.end) - (clip.start or 0.0))
        return clip.duration

    def _load_row(
        self,
        number: int,
        row: list[_Clip],
        length: Callable[[list[str]], int],
        limit: int | None,
        rate: int | None,
        options: dict[str, Any],
    ) -> tuple[list[_LoadedClip], list[str]]:
        """The clips of one text, of as many moments as its length allows, and what stands for them."""
        if not row:
            return [], []
        most = share = max(clip.count for clip in row)

        def counts(share: int) -> list[int]:
            return [max(1, clip.count * share // most) for clip in row]

        def too_long(share: int) -> bool:
            """Before anything is decoded: what is present is taken from headers."""
            if limit is None:
                return False
            pairs = list(zip(row, counts(share), strict=True))
            # The first saves making texts that are far too long.
            return self._least(pairs) > limit or length([self._draft(clip, count) for clip, count in pairs]) > limit

        if too_long(most):
            for clip in row:
                if not clip.is_decoded:
                    self._duration(clip, rate)
            share = max(1, bisect_left(range(1, most + 1), True, key=too_long))
        while True:
            loaded = [self._load(clip, count, rate, options) for clip, count in zip(row, counts(share), strict=True)]
            held = [
                self.clip_text(clip.times.tolist(), clip.video_mask, clip.audio_mask, given.texts_of(len(clip.times)))
                for clip, given in zip(loaded, row, strict=True)
            ]
            found = length(held) if limit is not None else 0
            if limit is None or found <= limit:
                return loaded, held
            if share == 1:
                own = length([""] * len(row))
                raise ValueError(
                    f"Text {number} has {own} tokens of its own and {len(row)} clips of at least {found - own} tokens "
                    f"together, one moment each; that is {found}, and {limit} are allowed. Give fewer clips or a "
                    f"shorter text, a larger max_length up to the language model's context, or use a model with a "
                    f"smaller tokens_per_frame (now {self.tokens_per_frame}) or tokens_per_window (now "
                    f"{self.tokens_per_window})."
                )
            share -= 1

    def _least(self, counts: list[tuple[_Clip, int]]) -> int:
        """The placeholders of clips with so many moments, and one token for each time."""
        frame, window = 1 + self.tokens_per_frame, 1 + self.tokens_per_window
        return sum(count * (1 + frame * clip.is_seen + window * clip.is_heard) for clip, count in counts)

    def _draft(self, clip: _Clip, count: int) -> str:
        """What will stand for a clip of so many moments, at most."""
        if clip.times is not None:
            times = clip.times_of(count)
        else:
            times = [_LATE_SECONDS] * count if clip.duration is None else center_times(clip.duration, count)
        return self.clip_text(times, [clip.is_seen] * count, [clip.is_heard] * count, clip.texts_of(count))

    def _load(self, clip: _Clip, count: int, rate: int | None, options: dict[str, Any]) -> _LoadedClip:
        """Read one clip, as `CavMaeSyncProcessor` does."""
        own_rate = _rate_of(clip.audio if clip.kind == "video" else clip.media, rate)
        call: dict[str, Any] = {"start": clip.start, "end": clip.end, "sampling_rate": own_rate}
        if clip.kind == "audio":
            call["audio"] = [clip.media]
        else:
            call["videos"], call["video_metadata"] = [clip.media], clip.video_metadata
            if clip.audio is not None:
                call["audio"] = [clip.audio]
            elif not clip.hears and is_media_source(clip.media):
                call["audio"] = [None]
        if clip.is_decoded:
            call["frame_times"] = None if clip.times is None else [clip.times]
            if count < len(split_frames(clip.media)):
                call |= {"num_frames": count, "do_sample_frames": True}
        elif clip.times is None:
            call["num_frames"] = count
        else:
            call["frame_times"] = [clip.times_of(count)]
        done = self._media_processor(**(options | call), missing="mask", return_times=True, return_tensors="pt")
        times = done["frame_times"][0].double()
        absent = torch.zeros(len(times), dtype=torch.bool)
        pixels = done["pixel_values_videos"][0] if "pixel_values_videos" in done else None
        video_mask = absent if pixels is None else done.get("padding_mask_videos", ~absent[None])[0].cpu()
        audio_mask = done["padding_mask"][0].cpu() if "padding_mask" in done else absent
        windows = {name: done[name][0] for name in ("input_values", "window_offsets") if name in done}
        return _LoadedClip(
            times,
            video_mask,
            audio_mask,
            pixels if bool(video_mask.any()) else None,
            windows | {"padding_mask": done["padding_mask"][0]} if bool(audio_mask.any()) else {},
        )

    def _stack(self, clips: list[_LoadedClip], return_times: bool) -> dict[str, Tensor]:
        """The media of a batch; clips with fewer moments are filled up."""
        output: dict[str, Tensor] = {}
        shown = [clip.pixels for clip in clips if clip.pixels is not None]
        heard = [clip.windows for clip in clips if clip.windows]
        if shown:
            output |= pad_clips(shown)
        if heard:
            fills = {"input_values": self.feature_extractor.outside_value}
            output |= stack_all({name: [clip[name] for clip in heard] for name in heard[0]}, fills)
        if return_times and clips:
            output |= stack_all({"frame_times": [clip.times for clip in clips]}, {"frame_times": math.nan})
        return output


def _lacking(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Which of the placeholders are not one token each."""
    found = []
    for token in (VIDEO_TOKEN, AUDIO_TOKEN):
        number = tokenizer.convert_tokens_to_ids(token)
        tokens = tokenizer(token * 2, add_special_tokens=False)["input_ids"]
        if number is None or number == tokenizer.unk_token_id or tokens.count(number) != 2:
            found.append(token)
    return found


def _for_lists(template: Any) -> Any:
    """A tokenizer's template, or its templates by name, that takes contents that are lists."""
    if isinstance(template, Mapping):
        return {name: _for_lists(one) for name, one in template.items()}
    # The tokenizer of a saved processor has the template of the processor.
    return template if template is None or template.startswith(CONTENT_PRELUDE) else CONTENT_PRELUDE + template


def _flat(
    values: Any, split: Callable[[Any], list[Any]], is_part: Callable[[Any], bool]
) -> tuple[list[Any], list[int] | None]:
    """Clips one after the other, and how many each text has where they were given so.

    Args:
        values: What the call was given.
        split: Tells one clip from several.
        is_part: Whether a value is a part of a clip, so that a list of them is one clip.
    """
    if values is None:
        return [], None
    if isinstance(values, list | tuple) and not values:
        return [], None
    if not isinstance(values, list | tuple) or not all(isinstance(inner, list | tuple) for inner in values):
        return split(values), None
    if any(is_part(part) for inner in values for part in inner):
        return split(values), None
    return [clip for inner in values for clip in inner], [len(inner) for inner in values]


def _is_frame(value: Any) -> bool:
    """Whether a value in a list is one frame of a clip."""
    return isinstance(value, Image.Image) or getattr(value, "ndim", 4) < 4


def _is_number(value: Any) -> bool:
    """Whether a value in a list is a sample of a waveform."""
    return isinstance(value, int | float) or getattr(value, "ndim", 1) == 0


def _positive(value: Any) -> bool:
    """Whether a value is a number above zero."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _rate_of(audio: Any, rate: int | None) -> int | None:
    """The rate to name beside audio: files and mappings bring their own."""
    brings = audio is None or is_media_source(audio) or (isinstance(audio, Mapping) and audio.get("sampling_rate"))
    return None if brings else rate


def _shortened(text: str) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def _set_options(clips: list[_Clip], **options: Any) -> None:
    """Give every clip its part of arguments with one value for all or one per clip."""
    files = [is_media_source(clip.media) or is_media_source(clip.audio) for clip in clips]
    decoded = [clip.is_decoded for clip in clips]
    for name, value in options.items():
        frames = name == "video_metadata"
        reason = "it says the times of decoded frames" if frames else "only files are cut"
        parts = per_clip(name, value, heeds=decoded if frames else files, reason=reason)
        for clip, part in zip(clips, parts, strict=True):
            setattr(clip, name, part)


def _set_times(clips: list[_Clip], frame_times: Any) -> None:
    """Give every clip its row of frame times."""
    if frame_times is None:
        return
    rows = frame_times.tolist() if hasattr(frame_times, "tolist") else list(frame_times)
    if rows and all(isinstance(value, int | float) for value in rows):
        rows = [rows]
    if len(rows) != len(clips):
        raise ValueError(f"frame_times has {len(rows)} rows for {len(clips)} clips; give one row of times per clip.")
    for clip, row in zip(clips, rows, strict=True):
        clip.times = None if row is None else [float(time) for time in row]
        if clip.times == []:
            raise ValueError(f"{clip.name} has an empty row of frame_times; give its moments in seconds, or None.")


def _set_texts(clips: list[_Clip], moment_texts: Any) -> None:
    """Give every clip what is said at its moments."""
    if moment_texts is None:
        return
    if isinstance(moment_texts, str) or len(moment_texts) != len(clips):
        raise ValueError(
            f"moment_texts has {len(moment_texts)} entries for {len(clips)} clips; give a list of texts, or None, per "
            "clip."
        )
    for clip, row in zip(clips, moment_texts, strict=True):
        if isinstance(row, str) or row == []:
            raise ValueError(f"{clip.name} has {row!r} as moment_texts; give a list with a text per moment.")
        clip.texts = None if row is None else [text or "" for text in row]


__all__ = ["AUDIO_TOKEN", "CONTENT_PRELUDE", "VIDEO_TOKEN", "CavMaeSyncLMProcessor"]
