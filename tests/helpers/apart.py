"""A fresh interpreter: an empty cache, no network, none of the caller's Python settings."""

import os
import subprocess
import sys
from pathlib import Path


def run_apart(arguments: list[str], home: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run Python with `arguments` in `home`, which is also where Hub files would be kept."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "TRANSFORMERS"))}
    settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=clean | settings | environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
