"""Makes the common test mixins of a transformers source distribution importable, without copying them.

A source distribution holds `tests/test_*_common.py` but not every module that these import. `common_module` links the
files that are there into a temporary package and adds the missing ones as empty stubs.
"""

import atexit
import functools
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers

VARIABLE = "TRANSFORMERS_TESTS"
PACKAGE = "transformers_common_tests"

# What the mixins import and the distribution lacks. Exporters and generation do not concern these models; the fetcher
# only has to give names for media that are on no disk here.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        "    'return_dict': False,\n"
        "    'output_hidden_states': True,\n"
        "    'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5,\n"
        "    'architectures': ['SomeModel'],\n"
        "    'id2label': {0: 'label'},\n"
        "    'label2id': {'label': '0'},\n"
        "    'problem_type': 'regression',\n"
        "}\n"
    ),
}


def require_distribution() -> None:
    """Skip the calling test module where no source distribution was named."""
    if not os.environ.get(VARIABLE):
        pytest.skip(
            f"set {VARIABLE} to an unpacked transformers source distribution to run its common tests",
            allow_module_level=True,
        )


@functools.cache
def _package_folder() -> Path:
    source = Path(os.environ[VARIABLE]) / "tests"
    if not (source / "test_modeling_common.py").is_file():
        raise FileNotFoundError(
            f"{VARIABLE}={os.environ[VARIABLE]} has no tests/test_modeling_common.py; name the unpacked folder of "
            "`pip download --no-binary :all: --no-deps transformers`."
        )
    facts = (source.parent / "PKG-INFO").read_text().splitlines() if (source.parent / "PKG-INFO").is_file() else []
    version = next((line.split()[1] for line in facts if line.startswith("Version:")), transformers.__version__)
    if version != transformers.__version__:
        raise ValueError(
            f"{VARIABLE} names the tests of transformers {version}, but {transformers.__version__} is installed; "
            f"download transformers=={transformers.__version__}."
        )
    folder = Path(tempfile.mkdtemp(prefix="transformers_common_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package = folder / PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    for file in source.glob("test_*_common.py"):
        (package / file.name).symlink_to(file.resolve())
    for name, text in STUBS.items():
        stub = package / name
        stub.parent.mkdir(exist_ok=True)
        (stub.parent / "__init__.py").touch()
        stub.write_text(text)
    (folder / "fetch_hub_objects_for_ci.py").write_text(
        "def url_to_local_path(url, *args, **kwargs):\n    return url\n"
    )
    sys.path.insert(0, str(folder))
    return folder


def common_module(name: str) -> ModuleType:
    """The distribution's `tests/<name>.py`."""
    _package_folder()
    return importlib.import_module(f"{PACKAGE}.{name}")


__all__ = ["common_module", "require_distribution"]
