"""A fresh interpreter: an empty cache, no network, none of the caller's Python settings."""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
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


def run_forked(work: Callable[[], object]) -> int:
    """How a copy of this process ends that does some work: what `os.waitpid` tells.

    Quicker by seconds than a fresh interpreter, where work is to be killed.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        if "torch" in sys.modules:  # the threads of its pool do not live on in a copy
            sys.modules["torch"].set_num_threads(1)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def group_members(group: int) -> list[int]:
    """Processes of a process group that live; none where the system does not tell."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            members.append(int(entry.name))
    return members


def wait_until(happened: Callable[[], object]) -> None:
    """Wait for something, as long as a test may."""
    limit = time.monotonic() + 200
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.05)
