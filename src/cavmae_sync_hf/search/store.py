# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Moments in LanceDB: a clip is there wholly or not at all, whoever writes and whenever a run stops.

Two tables: `moments`, one row per window with its vectors, and `clips`, one row per clip with where it came from. Rows
are first appended to `moments` under a name of their own (`rows`), which hurts nobody, in memory that does not grow
with the clip; then one commit to `clips` makes that name count. Rows whose name no clip has do not exist for readers,
and are swept away: those of a run that was killed, of a clip that changed or went, and of the slower of two writers.

Every commit to `clips` also changes one row that all of them share, so that of two at a time LanceDB lets one through
and repeats the other on top of it: no lock is needed, on any store.
"""

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..files import StrPath, writing
from ..model.errors_cavmae_sync import DiskError, SearchError
from ..provenance import require_package
from .settings import IndexSettings
from .tables import (
    ClipEntry,
    as_entry,
    as_matrix,
    as_row,
    clips_schema,
    moments_schema,
    release_names,
    shared_row,
    writer_is_gone,
)

MOMENTS, CLIPS = "moments", "clips"
_Found = TypeVar("_Found")
_METADATA_KEY = b"cavmae_sync_index"
# LanceDB itself repeats a commit that another one overtook; this is for those that it gives up.
_COMMIT_ATTEMPTS = 12
_COMMIT_WAIT_SECONDS = 0.05
# So many values go into one SQL list; longer ones are asked for in portions.
_IN_LIST = 1000
# In the names of approximate indexes.
_PARTITIONS = re.compile(r"_p(\d+)_")
_EARLIER_ROWS_PER_PARTITION = 2_000
_CONFLICT_WORDS = ("conflict", "concurrent", "retry", "contention")


def open_index(index: "StrPath | MomentStore") -> "MomentStore":
    """The index at an address, or the one that is handed in, brought up to date.

    Raises:
        SearchError: There is none, or it cannot be read.
    """
    if isinstance(index, MomentStore):
        index.refresh()
        return index
    return MomentStore.open(index)


class MomentStore:
    """An index. Made by `open` and `create`; one object is used by one thread at a time.

    Attributes:
        uri: Where it lies.
        settings: How it was made.
    """

    def __init__(self, uri: str, *, connection: Any, moments: Any, clips: Any, settings: IndexSettings) -> None:
        self.uri, self.settings = uri, settings
        self._connection, self._moments, self._clips = connection, moments, clips
        self._remembered: dict[str, tuple[tuple[int, int], Any]] = {}
        # Of both tables, read when next asked for: a search asks often, and each answer of LanceDB takes 0.15 ms.
        self._versions: tuple[int, int] | None = None

    @classmethod
    def open(cls, uri: StrPath, storage_options: dict[str, str] | None = None) -> "MomentStore":
        """Open an index.

        Args:
            uri: A folder, or an address of an object store such as `s3://bucket/index`.
            storage_options: For the object store, such as its region; default: its own environment variables.

        Raises:
            SearchError: There is none, or it cannot be read.
        """
        name = _as_uri(uri)
        if "://" not in name:
            _check_folder(name)
        with _reading(name):
            connection = _connect(name, storage_options)
            moments = _open_table(connection, MOMENTS)
        if moments is None:
            raise SearchError(f"{name}: holds no index; `cavmae-sync index SOURCE INDEX` makes one.")
        return cls._assemble(name, connection, moments)

    @classmethod
    def create(
        cls,
        uri: StrPath,
        settings: IndexSettings,
        storage_options: dict[str, str] | None = None,
    ) -> "MomentStore":
        """Open an index to add to it, and make it where there is none.

        Args:
            uri: As for `open`. A folder that is not empty and holds no index is refused.
            settings: What is to be added.
            storage_options: As for `open`.

        Raises:
            SearchError: It was made with another model or hop, or cannot be read or written.
        """
        name = _as_uri(uri)
        if "://" not in name:
            _check_folder(name, new=True)
        schema = moments_schema(settings.hidden_size).with_metadata({_METADATA_KEY: settings.to_json()})
        with _reading(name):
            connection = _connect(name, storage_options)
            moments = _open_table(connection, MOMENTS)
            if moments is None:  # an empty table is false
                moments = _create_table(connection, MOMENTS, schema=schema)
        store = cls._assemble(name, connection, moments)
        store.settings.check(settings, name, adding=True)
        if store._clips is None:
            import pyarrow as pa

            clips = clips_schema(settings.hidden_size)
            first = pa.Table.from_pylist([shared_row()], schema=clips)
            with _reading(name):
                store._clips = _create_table(connection, CLIPS, data=first, schema=clips, on_bad_vectors="null")
        return store

    @classmethod
    def _assemble(cls, name: str, connection: Any, moments: Any) -> "MomentStore":
        with _reading(name):
            metadata = moments.schema.metadata or {}
            if _METADATA_KEY not in metadata:
                raise SearchError(f"{name}: holds a table {MOMENTS!r} that cavmae-sync did not make.")
            settings = IndexSettings.from_json(metadata[_METADATA_KEY], name)
            clips = _open_table(connection, CLIPS)
            return cls(name, connection=connection, moments=moments, clips=clips, settings=settings)

    def refresh(self) -> None:
        """See what others have written since."""
        with _reading(self.uri):
            self._moments.checkout_latest()
            if self._clips is None:
                self._clips = _open_table(self._connection, CLIPS)
            else:
                self._clips.checkout_latest()
        self._versions = None

    def remember(self, what: str, find: Callable[[], _Found]) -> _Found:
        """What `find` found last time, until somebody has written."""
        if self._versions is None:
            with _reading(self.uri):
                self._versions = self._moments.version, -1 if self._clips is None else self._clips.version
        versions, known = self._versions, self._remembered.get(what)
        if known is None or known[0] != versions:
            known = self._remembered[what] = versions, find()
        found: _Found = known[1]
        return found

    @property
    def has_thumbnails(self) -> bool:
        """Whether any row has an image."""
        return self.remember("thumbnails", lambda: self._any("thumbnail"))

    # --- clips ---------------------------------------------------------------------------------------------------

    def entries(self) -> dict[str, ClipEntry]:
        """All clips by key, without their vectors; as of the last `refresh`."""
        return self.remember("entries", self._read_entries)

    def _read_entries(self) -> dict[str, ClipEntry]:
        if self._clips is None:
            return {}
        with _reading(self.uri):
            columns = [name for name in self._clips.schema.names if name not in ("audio", "video", "turn")]
            found = self._clips.search().select(columns).limit(None).to_arrow()
        return {entry.key: entry for entry in (as_entry(row) for row in found.to_pylist() if row["key"])}

    def with_vectors(self, keys: Sequence[str]) -> dict[str, ClipEntry]:
        """Some clips by key, with their vectors."""
        entries = {key: self.entries()[key] for key in keys if key in self.entries()}
        for part in _portions(sorted(entries)):
            with _reading(self.uri):
                query = self._clips.search().where(f"key IN ({_sql_list(part)})").select(["key", "audio", "video"])
                table = query.limit(None).to_arrow()
            for row in table.to_pylist():
                audio, video = (None if row[s] is None else np.asarray(row[s], np.float32) for s in ("audio", "video"))
                entries[row["key"]] = replace(entries[row["key"]], audio=audio, video=video)
        return entries

    def clip_vectors(self, modality: str) -> tuple[list[str], np.ndarray]:
        """Keys of the clips that have a clip vector, and the vectors `(clips, hidden)` float32."""
        if self._clips is None:
            return [], np.zeros((0, self.settings.hidden_size), np.float32)
        with _reading(self.uri):
            found = self._clips.search().where(f"key != '' AND {modality} IS NOT NULL").select(["key", modality])
            table = found.limit(None).to_arrow()
        return table["key"].to_pylist(), as_matrix(table[modality], self.settings.hidden_size)[0]

    def register(self, entries: Sequence[ClipEntry]) -> set[str]:
        """Make clips count, all at once; rows that they replace are removed.

        A clip that another writer has changed since `previous` was read keeps what that one made of it.

        Args:
            entries: The clips; their rows are in `moments`.

        Returns:
            Keys of the clips that count now as they are given.
        """
        import pyarrow as pa

        if not entries:
            return set()
        schema = self._clips.schema
        rows = [as_row(entry) for entry in entries] + [shared_row()]
        data = pa.Table.from_pylist(rows, schema=schema)

        def commit() -> None:
            merge = self._clips.merge_insert("key")
            # Null vectors are meant.
            merge.when_matched_update_all(where="target.key = '' OR target.rows = source.previous")
            merge.when_not_matched_insert_all().execute(data, on_bad_vectors="null")

        self._commit(self._clips, commit)
        self.refresh()
        now = self.entries()
        # Those of bad files have no rows to tell them by.
        counting = {key: (entry.rows, entry.problem) for key, entry in now.items()}
        accepted = {entry.key for entry in entries if counting.get(entry.key) == (entry.rows, entry.problem)}
        gone = [entry.previous for entry in entries if entry.key in accepted and entry.previous != entry.rows]
        self._remove_rows(gone + [entry.rows for entry in entries if entry.key not in accepted])
        release_names(entry.rows for entry in entries)
        return accepted

    def forget(self, keys: Collection[str]) -> None:
        """Remove clips and their rows."""
        rows = [entry.rows for key, entry in self.entries().items() if key in set(keys)]
        for part in _portions(sorted(keys)):
            self._commit(self._clips, partial(self._clips.delete, f"key IN ({_sql_list(part)})"))
        self.refresh()
        self._remove_rows(rows)

    def sweep(self) -> int:
        """Remove rows that belong to no clip and whose writer is gone; gives the number of their names."""
        self.refresh()
        gone = [name for name in self.loose_rows() if writer_is_gone(name)]
        self._remove_rows(gone)
        return len(gone)

    def loose_rows(self) -> list[str]:
        """Names of rows in `moments` that belong to no clip: to be left out of every search."""
        return self.remember("loose rows", self._find_loose_rows)

    def _find_loose_rows(self) -> list[str]:
        used = {entry.rows: entry.moments for entry in self.entries().values() if entry.rows}
        with _reading(self.uri):
            if self._moments.count_rows() == sum(used.values()):
                return []
        return sorted(set(self.count_by_rows()) - set(used))

    @staticmethod
    def only_rows(kept: Collection[str], left_out: Collection[str]) -> list[str]:
        """Conditions for rows of some names; `kept` and `left_out` are all names that rows have."""
        if not left_out:
            return []
        if len(left_out) <= len(kept):
            return [f"rows NOT IN ({_sql_list(left_out)})"]
        return [f"rows IN ({_sql_list(kept)})"] if kept else ["false"]

    def incomplete(self) -> list[str]:
        """Keys of clips whose rows are not all there, which nothing but damage from outside can cause."""
        there = self.count_by_rows()
        return [key for key, entry in self.entries().items() if entry.rows and there.get(entry.rows) != entry.moments]

    def count_by_rows(self) -> dict[str, int]:
        """Number of rows in `moments` under each name."""
        counts: dict[str, int] = {}
        for batch in self.scan(["rows"]):
            for item in batch["rows"].value_counts().to_pylist():
                counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
        return counts

    # --- moments -------------------------------------------------------------------------------------------------

    def append(self, batches: Iterable[Any]) -> None:
        """Append rows; they count once a clip with their name is registered.

        Args:
            batches: Record batches of `moments_schema`, read once, in memory that does not grow with their number.
        """
        import pyarrow as pa

        try:
            with _reading(self.uri):
                reader = pa.RecordBatchReader.from_batches(moments_schema(self.settings.hidden_size), iter(batches))
                self._moments.add(reader, on_bad_vectors="null")
        finally:  # what makes the batches may have asked for it in between
            self._versions = None

    def copy(self, rows: str, name: str) -> int:
        """Append a copy of rows under another name; gives their number."""
        import pyarrow as pa

        schema = moments_schema(self.settings.hidden_size)
        count = 0

        def copies() -> Iterator[Any]:
            nonlocal count
            for batch in self.scan(schema.names, f"rows = '{_checked(rows)}'"):
                count += len(batch)
                columns = {column: batch[column] for column in schema.names}
                yield pa.record_batch(columns | {"rows": pa.array([name] * len(batch))}, schema=schema)

        self.append(copies())
        return count

    def count(self) -> int:
        """Number of rows in `moments`, those included that belong to no clip."""
        return self.remember("count", self._count_rows)

    def _count_rows(self) -> int:
        with _reading(self.uri):
            return int(self._moments.count_rows())

    def share_of(self, where: str) -> float:
        """Share of all rows that fulfil a condition, 0 to 1."""
        with _reading(self.uri):
            return int(self._moments.count_rows(where)) / max(1, self.count())

    def scan(self, columns: Sequence[str], where: str | None = None, *, row_ids: bool = False) -> Iterator[Any]:
        """Record batches of all rows that fulfil a condition, in no certain order; with `_rowid` if asked for."""
        with _reading(self.uri):
            query = self._moments.search().select(list(columns)).with_row_id(row_ids).limit(None)
            yield from (query if where is None else query.where(where)).to_batches(batch_size=8192)

    def nearest(
        self,
        column: str,
        vectors: np.ndarray,
        count: int,
        where: str | None = None,
        *,
        partitions: int,
        refine: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows whose vectors lie nearest to each of some vectors, by the approximate index.

        Args:
            column: `"audio"` or `"video"`.
            vectors: float32 `(vectors, hidden)`.
            count: Rows for each.
            where: Condition that rows must fulfil.
            partitions: Parts of the index that are looked into.
            refine: `count * refine` rows are compared exactly; default: none, by what the index holds of them alone.

        Returns:
            For each row found, its row id, which vector it was found for, and the cosine, which without `refine` is
            an estimate.
        """
        with _reading(self.uri):
            queries = vectors.astype(np.float32)
            query = self._moments.search(
                queries[0] if len(queries) == 1 else list(queries), vector_column_name=column, query_type="vector"
            )
            query = query.distance_type("cosine").limit(count).nprobes(partitions)
            query = query if refine is None else query.refine_factor(refine)
            query = query if where is None else query.where(where, prefilter=True)
            found = query.select(["_distance"]).with_row_id(True).to_arrow()
        which = found["query_index"].to_numpy() if "query_index" in found.column_names else np.zeros(len(found))
        cosines = 1.0 - found["_distance"].to_numpy()
        return found["_rowid"].to_numpy().astype(np.int64), which.astype(np.int64), cosines

    def take(self, ids: np.ndarray, columns: Sequence[str]) -> Any:
        """Some rows as a table of the columns and `_rowid`, in no certain order; ids that no row has are left out."""
        with _reading(self.uri):
            return self._moments.take_row_ids(ids.tolist()).select(list(columns)).with_row_id().to_arrow()

    # --- upkeep --------------------------------------------------------------------------------------------------

    def indexed_columns(self) -> dict[str, int]:
        """Vector columns with an approximate index, and how many rows it covers."""
        found = [
            item for item in self.remember("indices", self._list_indices) if item.columns[0] in ("audio", "video")
        ]
        return {item.columns[0]: int(item.num_indexed_rows) for item in found}

    def trained_on(self) -> dict[str, int]:
        """Vector columns with an approximate index, and how many rows there were when it was built."""
        indices = self.remember("indices", self._list_indices)
        found = {item.columns[0]: item.name.rpartition("_")[2] for item in indices}
        return {column: int(rows) for column, rows in found.items() if column in ("audio", "video") and rows.isdigit()}

    def partitions(self, column: str) -> int:
        """Parts of the approximate index of a vector column."""
        for item in self.remember("indices", self._list_indices):
            number = _PARTITIONS.search(item.name)
            if item.columns[0] == column and number is not None:
                return int(number[1])
        # Indexes of earlier versions do not tell, but all were made alike.
        return max(1, round(self.trained_on().get(column, 0) / _EARLIER_ROWS_PER_PARTITION))

    def has_vectors(self, column: str) -> bool:
        """Whether any row has a vector there."""
        return self._any(column)

    def _any(self, column: str) -> bool:
        """Whether any row has a value there."""
        with _reading(self.uri):
            return bool(self._moments.search().where(f"{column} IS NOT NULL").select(["window"]).limit(1).to_arrow())

    def pieces(self) -> int:
        """Files of which the table of moments consists."""
        with _reading(self.uri):
            return int(self._moments.stats()["fragment_stats"]["num_fragments"])

    def optimise(self) -> None:
        """Join small pieces, bring the approximate index up to date and drop what no reader can need any more."""
        from datetime import timedelta

        for table in (self._moments, self._clips):
            self._commit(table, partial(table.optimize, cleanup_older_than=timedelta(days=1)))
        self.refresh()

    def build_index(self, config: Any, rows: int, columns: Sequence[str] = ("audio", "video")) -> None:
        """Build the approximate index of some vector columns, and the indexes of names and times.

        Args:
            config: LanceDB's description of the index.
            rows: For how many rows it was made, which its name tells, as it does its parts.
            columns: Which ones.
        """
        from lancedb.index import BTree

        parts = f"_p{config.num_partitions}_{rows}"
        plans = [("rows", BTree(), "rows_idx"), ("start", BTree(), "start_idx")]
        for column, plan, name in plans + [(c, config, f"{c}{parts}") for c in columns]:
            old = [item.name for item in self._list_indices() if item.columns == [column] and item.name != name]
            self._commit(self._moments, partial(self._moments.create_index, column, config=plan, name=name))
            for other in old:
                self._commit(self._moments, partial(self._moments.drop_index, other))
        self.refresh()

    def _list_indices(self) -> list[Any]:
        with _reading(self.uri):
            return list(self._moments.list_indices())

    def _remove_rows(self, names: Iterable[str]) -> None:
        for part in _portions(sorted({name for name in names if name})):
            self._commit(self._moments, partial(self._moments.delete, f"rows IN ({_sql_list(part)})"))
        with _reading(self.uri):
            self._moments.checkout_latest()
        self._versions = None

    def _commit(self, table: Any, change: Callable[[], Any]) -> None:
        """Make a change, again where other writers were in its way."""
        for attempt in range(_COMMIT_ATTEMPTS):
            try:
                with _reading(self.uri):
                    change()
                    return
            except SearchError as error:
                words = str(error).lower()
                if attempt + 1 == _COMMIT_ATTEMPTS or not any(word in words for word in _CONFLICT_WORDS):
                    raise
                time.sleep(_COMMIT_WAIT_SECONDS * 2 ** min(attempt, 6) * random.uniform(0.5, 1.5))
                table.checkout_latest()
            finally:
                self._versions = None


def _as_uri(uri: StrPath) -> str:
    name = os.fspath(uri)
    if not name:
        raise SearchError("The name of the index is empty; name a folder or an address.")
    return name if "://" in name else os.path.abspath(os.path.expanduser(name))


def _check_folder(name: str, new: bool = False) -> None:
    """Say plainly what is wrong with a place on this machine; LanceDB would make an empty folder of it."""
    if "\0" in name:
        raise SearchError(f"{name!r}: no folder can have this name; name another.")
    if os.path.isfile(name):
        raise SearchError(f"{name}: is a file; an index is a folder.")
    if os.path.isdir(os.path.join(name, f"{MOMENTS}.lance")):
        return
    if not new:
        if not os.path.exists(name):
            raise SearchError(f"{name}: no such index; `cavmae-sync index SOURCE INDEX` makes one.")
        raise SearchError(f"{name}: holds no index; `cavmae-sync index SOURCE INDEX` makes one.")
    # Another writer may have begun a moment ago: its tables appear under names that end in this.
    if os.path.isdir(name) and any(not item.endswith(".lance") for item in os.listdir(name)):
        raise SearchError(f"{name}: is a folder of other files; name a new or empty folder for the index.")


def _connect(name: str, storage_options: dict[str, str] | None) -> Any:
    return require_package("lancedb", "search", "Search").connect(name, storage_options=storage_options)


def _open_table(connection: Any, table: str) -> Any:
    """A table, or `None` where there is none."""
    try:
        return connection.open_table(table)
    except ValueError as error:
        if "not found" in str(error):
            return None
        raise


def _create_table(connection: Any, table: str, **arguments: Any) -> Any:
    """A new table, or the one that another writer made in the meantime."""
    try:
        return connection.create_table(table, **arguments)
    except ValueError as error:
        if "already exists" not in str(error):
            raise
        return connection.open_table(table)


def _portions(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), _IN_LIST):
        yield names[first : first + _IN_LIST]


def _checked(name: str) -> str:
    """A name of this package's making, which cannot end a text in SQL."""
    if not name.replace("-", "").replace(":", "").isalnum():
        raise SearchError(f"The index names rows {name!r}, which cavmae-sync does not; make the index anew.")
    return name


def _sql_list(names: Iterable[str]) -> str:
    return ", ".join(f"'{_checked(name)}'" for name in names)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """LanceDB's errors as one of ours; what the caller's own code raises within is left alone."""
    import pyarrow as pa

    try:
        with writing(name) if "://" not in name else contextlib.nullcontext():
            yield
    except (SearchError, DiskError, ImportError):
        raise
    except (RuntimeError, OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise SearchError(
            f"{name}: the index cannot be read or written ({reason}); if it is damaged, make it anew under another "
            "name."
        ) from error
