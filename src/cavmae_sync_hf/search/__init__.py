# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Search by moments: an index of the moments of many videos, and queries of audio, images or video.

`cavmae_sync_hf.search` is this package and, called, its function `search`: one name for both is what readers expect of
`from cavmae_sync_hf import search`.
"""

import sys
from types import ModuleType
from typing import Any

from .cutting import CutClip, cut_hits
from .indexing import IndexSummary, index_status, index_videos
from .querying import Query, embed_query
from .searching import Hit, SearchResult, search, search_clips, search_moments
from .settings import IndexSettings
from .store import MomentStore
from .tables import ClipEntry
from .view import SearchFilters
from .writing import write_hits

__all__ = [
    "ClipEntry",
    "CutClip",
    "Hit",
    "IndexSettings",
    "IndexSummary",
    "MomentStore",
    "Query",
    "SearchFilters",
    "SearchResult",
    "cut_hits",
    "embed_query",
    "index_status",
    "index_videos",
    "search",
    "search_clips",
    "search_moments",
    "write_hits",
]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> SearchResult:
        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
