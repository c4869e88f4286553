# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Search by moments: an index of the moments of many videos, and queries of audio, images or video."""

from .indexing import IndexSummary, index_status, index_videos
from .querying import Query, embed_query
from .searching import Hit, SearchFilters, SearchResult, search, search_clips, search_moments
from .settings import IndexSettings
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
