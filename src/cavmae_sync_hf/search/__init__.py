# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Where have I seen or heard this? An index of the moments of many videos, and searching it."""

from .indexing import IndexSummary, index_videos
from .querying import Query, embed_query
from .results import Hit, SearchFilters, SearchResult
from .searching import search, search_clips, search_moments
from .settings import IndexSettings
from .status import index_status
from .store import MomentStore
from .tables import ClipEntry

__all__ = [
    "ClipEntry",
    "Hit",
    "IndexSettings",
    "IndexSummary",
    "MomentStore",
    "Query",
    "SearchFilters",
    "SearchResult",
    "embed_query",
    "index_status",
    "index_videos",
    "search",
    "search_clips",
    "search_moments",
]
