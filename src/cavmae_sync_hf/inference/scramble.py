# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is left of a result when pictures are given the sound of other moments?

The control condition of feature extraction: the sound of all films of a run is cut into pieces as long as an analysis
window, and the pieces are dealt out anew, so that no picture keeps its own sound, nor the sound of a piece beside it
where there are others to choose from. Every modality keeps what it holds and, within a piece, its course in time;
what belongs together is what is lost. With windows side by side this replaces the sound of window i by that of window
`permutation[i]`.

The sound of a piece is heard with its true surroundings, so no window of sound has a cut in it. Where a film's sound
cannot be read, the picture that was dealt it has none, and its rows are NaN: they stay beside those of the true
condition.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.alignment_cavmae_sync import FRAMES_PER_SECOND, step_times, window_seconds
from ..model.errors_cavmae_sync import MediaError
from ..model.media_cavmae_sync import decode_media, probe_media
from ..model.media_stream_cavmae_sync import iter_media
from .windows import Film, Plan

__all__ = ["ScrambledSound", "derange"]

# Decoded around a piece beyond half a window of sound: the spectrogram's own 25 ms and a margin for rounding.
_MARGIN_SECONDS = 0.2
_ROUNDS = 200


def derange(count: int, forbidden: Callable[[int, int], bool], generator: np.random.Generator) -> np.ndarray:
    """A random permutation without forbidden pairs, as far as that is possible; never with `i -> i`.

    Args:
        count: Length, at least 2.
        forbidden: `forbidden(i, j)`: whether i should not get j.
        generator: Draws.

    Returns:
        `(count,)`; where no permutation without forbidden pairs was found, one that only has no `i -> i`.
    """
    for rule in (lambda i, j: i == j or forbidden(i, j), lambda i, j: i == j):
        dealt = generator.permutation(count)
        for _ in range(_ROUNDS):
            wrong = [i for i in range(count) if rule(i, dealt[i])]
            if not wrong:
                return dealt
            for i in wrong:
                # An exchange that leaves both right, or a blind one that shakes things up.
                for j in generator.integers(0, count, 20):
                    if not rule(i, dealt[j]) and not rule(int(j), dealt[i]):
                        break
                dealt[[i, j]] = dealt[[j, i]]
    # Only for two or three pieces may the dealing above not have ended.
    return np.roll(np.arange(count), 1)


class ScrambledSound:
    """Gives the moments of films the sound of other pieces (a `SoundSupply`).

    Args:
        films: All films of the run.
        plan: What is extracted.
        processor: The model's processor.
        seed: Seeds the dealing.
        progress: Called with films looked at and their number.

    Raises:
        ValueError: There are fewer than two pieces.
    """

    def __init__(
        self,
        films: Sequence[Film],
        plan: Plan,
        processor: Any,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.films, self.plan, self.seed = list(films), plan, seed
        # Windows are centred in time whatever the processor's setting, as in a stream.
        self.extractor = copy.copy(processor.feature_extractor)
        self.extractor.alignment = "time"
        self.piece = plan.grid.per_window  # moments
        self.seconds = self.piece * plan.grid.hop
        self.numbers = {film.id: number for number, film in enumerate(self.films)}
        counts = []
        for place, film in enumerate(self.films):
            counts.append(self._whole_pieces(film))
            if progress is not None:
                progress(place + 1, len(self.films))
        # (film, piece) of every whole piece.
        self.pieces = [(film, piece) for film, count in enumerate(counts) for piece in range(count)]
        if len(self.pieces) < 2:
            raise ValueError(
                f"The sound of {len(self.films)} film(s) has {len(self.pieces)} whole piece(s) of {self.seconds:g} s: "
                "nothing to deal out. Use more films or shorter windows."
            )
        self.first = np.cumsum([0, *counts]).tolist()
        self.counts = counts
        # Pieces this close hear some of each other's time.
        self.reach = math.ceil(window_seconds(self.extractor.audio_length) / 2 / self.seconds)
        self.permutation = derange(len(self.pieces), self._near, np.random.default_rng(seed))
        self._held: tuple[tuple[int, int], tuple[Tensor, Tensor, Tensor]] | None = None

    def windows(self, film: Film, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """For moments of a film: windows `(n, audio_length, mel bins)`, their presence and coverage `(n,)`."""
        parts: list[tuple[Tensor, ...]] = []
        for number in numbers:
            piece, place = divmod(number, self.piece)
            sounds = self._piece(self.partner(self.numbers[film.id], piece))
            parts.append(tuple(column[place] for column in sounds))
        values, mask, coverage = (torch.stack(column) for column in zip(*parts, strict=True))
        return values, mask, coverage

    def partner(self, film: int, piece: int) -> tuple[int, int]:
        """Whose sound a piece of a film's picture gets: film and piece."""
        if piece < self.counts[film]:
            return self.pieces[self.permutation[self.first[film] + piece]]
        # The rest at the end of a film is no whole piece and gives its sound to nobody; it borrows.
        generator = np.random.default_rng((self.seed, film, piece))
        far = [at for at, other in enumerate(self.pieces) if other[0] != film or piece - other[1] > self.reach]
        return self.pieces[int(generator.choice(far or len(self.pieces)))]

    def pairing(self) -> list[dict[str, Any]]:
        """One row per piece: whose picture, and whose sound it gets; times in seconds of the files."""
        rows = []
        for at, (film, piece) in enumerate(self.pieces):
            sound_film, sound_piece = self.pieces[self.permutation[at]]
            row: dict[str, Any] = {}
            for prefix, number, place in (("", film, piece), ("sound_", sound_film, sound_piece)):
                begin = self.films[number].start + place * self.seconds
                row |= {f"{prefix}id": self.films[number].id, f"{prefix}start": begin}
                row[f"{prefix}end"] = begin + self.seconds
            rows.append(row)
        return rows

    def _near(self, i: int, j: int) -> bool:
        (film, piece), (other_film, other_piece) = self.pieces[i], self.pieces[j]
        return film == other_film and abs(piece - other_piece) <= self.reach

    def _whole_pieces(self, film: Film) -> int:
        """Pieces that fit into a film; none where it cannot be read, which its own turn will tell."""
        try:
            media = film.open()
            duration = probe_media(media).duration
            if duration is None:
                hop = self.plan.grid.hop
                chunks = iter_media(media, hop=hop, want_video=False, missing="mask", damaged="keep")
                duration = sum(len(chunk.asked_times) for chunk in chunks) * hop
        except (MediaError, OSError):
            return 0
        stop = duration if film.end is None else min(film.end, duration)
        return max(0, math.floor((stop - film.start) / self.seconds + 1e-6))

    def _piece(self, piece: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Windows of sound of all moments of a piece; the last one asked for is kept."""
        if self._held is None or self._held[0] != piece:
            self._held = (piece, self._decode(*piece))
        return self._held[1]

    def _decode(self, number: int, piece: int) -> tuple[Tensor, Tensor, Tensor]:
        film, extractor, hop = self.films[number], self.extractor, self.plan.grid.hop
        times = step_times(hop, self.piece, piece * self.piece)
        context = window_seconds(extractor.audio_length) / 2 + _MARGIN_SECONDS
        # A whole second of the span, as in a stream, so that the spectrogram lies on the same grid.
        second = max(0, math.floor(times[0] - context))
        stop = film.start + times[-1] + context
        waveform = None
        # What is wrong with that film is said at its own turn.
        with suppress(MediaError, OSError):
            waveform = decode_media(
                film.open(),
                start=film.start + second,
                end=stop if film.end is None else min(stop, film.end),
                want_video=False,
                sampling_rate=extractor.sampling_rate,
                channel=extractor.channel,
                damaged=self.plan.damaged,
            ).waveform
        if waveform is None or not len(waveform):
            windows = extractor.windows(torch.empty(0, extractor.num_mel_bins), times)
            return windows.values, torch.zeros_like(windows.mask), torch.zeros_like(windows.coverage)
        log_mel = extractor.log_mel(waveform)
        windows = extractor.windows(log_mel, times, first_frame=second * FRAMES_PER_SECOND)
        return windows.values, windows.mask, windows.coverage
