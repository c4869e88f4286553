"""The package's layers: arrows between rooms go down only, and no module is part of a circle of imports."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import cavmae_sync_hf

ROOT = Path(cavmae_sync_hf.__file__).parent
# From bottom to top; rooms of one layer do not import each other. `model` travels with weights and imports nothing.
LAYERS: tuple[set[str], ...] = (
    {"model"}, {"files"}, {"provenance", "names"}, {"metrics", "syncworld"}, {"data"}, {"model_card"},
    {"hub", "selfcheck"}, {"convert"}, {"inference"}, {"export"}, {"loading"}, {"evaluation", "search"},
    {"training"}, {"app"}, {"cli"},
)  # fmt: skip


def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports anywhere: in functions and under TYPE_CHECKING, too."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items() if name != "__init__"}
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            base = package[: len(package) - node.level + 1] if node.level else []
            parts = [*base, *(node.module or "").split(".")]
            if not node.level and parts.pop(0) != ROOT.name:
                continue
            target = ".".join(filter(None, parts))
            submodules = {f"{target}.{alias.name}".lstrip(".") for alias in node.names} & files.keys()
            found[name] |= submodules or {target or "__init__"}
    return found


def test_layers__arrows_go_down_only():
    rank = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__", "example"} == rank.keys()
    wrong = [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in sorted(targets)
        if (room := module.split(".")[0]) != (below := target.split(".")[0]) and rank.get(below, 99) >= rank[room]
    ]
    assert wrong == []


def test_modules__import_each_other_in_no_circle():
    try:
        circle: list[str] = []
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert circle == []


def test_signed_numbers__show_no_minus_before_a_rounded_nothing():
    signed = [
        f"{path.relative_to(ROOT)}: {found}"
        for path in ROOT.rglob("*.py")
        for found in re.findall(r":\+\.\d+f\}", path.read_text(encoding="utf-8"))
    ]
    assert not signed, "use the format `+z.2f`"
