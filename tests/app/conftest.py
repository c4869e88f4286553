# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A page that a server of this machine serves."""

from contextlib import contextmanager

import pytest

from cavmae_sync_hf.app import demo_clips
from cavmae_sync_hf.app.engine import Engine


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Serve a page with small demo clips and quick maps, as long as a block lasts; takes `build_app`'s options."""

    @contextmanager
    def served(prepare=lambda patch: None, **options):
        from cavmae_sync_hf.app import build_app

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo_clips, "LIBRARY_CLIPS", 1)
            patch.setattr(demo_clips, "SIDE", 96)
            patch.setattr(Engine, "map_plan", lambda self, seconds: {"fps": 2.0, "method": "cosine"})
            prepare(patch)
            page = build_app(demo_folder=tmp_path_factory.mktemp("demo"), **options)
            page.launch(prevent_thread_lock=True, quiet=True)
            yield page
            page.close(verbose=False)
        assert not page.workspace.root.exists()

    return served


@pytest.fixture(scope="module")
def demo(request, tmp_path_factory):
    """Small demo clips, with as many in the library as the module's `LIBRARY_CLIPS` says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_clips, "LIBRARY_CLIPS", getattr(request.module, "LIBRARY_CLIPS", 1))
        patch.setattr(demo_clips, "SIDE", 96)
        return demo_clips.make_demo_clips(tmp_path_factory.mktemp("demo"))
