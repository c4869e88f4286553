# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A folder of exported towers that are known to compute what the model computes."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..convert.reading import not_finite, shorten
from ..files import StrPath, file_digest, parse_json, whole_folder, write_json
from ..inference.texts import longest_text
from ..model.errors_cavmae_sync import ExportError, Hint
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..provenance import checkpoint_record, software_versions
from .tower_files import load_tower, onnx_versions, quantize_file, require_onnx, write_onnx
from .towers import EXAMPLE_SHAPES, AnyTower, TowerIO, make_towers, trace

DESCRIPTION = "export.json"
# Of a model whose texts have a space of their own: what brings the others' embeddings there.
PROJECTIONS = "text_projections.safetensors"
FORMAT = "cavmae-sync-export"
FORMAT_VERSION = 1
# How far an exported tower's embeddings, which have length 1, may lie from the model's; its patch embeddings likewise,
# relative to the largest of them.
TOLERANCE = 1e-4
# Below this cosine, 8-bit weights have broken a tower rather than rounded it.
_LEAST_INT8_COSINE = 0.9
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
# What a folder written here consists of, and nothing else: such a folder may be replaced as a whole.
_OWN_FILES = (
    "*_tower*.onnx",
    "*_tower*.onnx.data",
    "*_tower.pt2",
    DESCRIPTION,
    PROJECTIONS,
    "processor_config.json",
    "*_cavmae_sync.py",
    # Of tokenizers.
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)


def export_model(
    model: PreTrainedModel,
    processor: CavMaeSyncProcessor,
    directory: StrPath,
    *,
    format: Literal["onnx", "torch"] = "onnx",
    int8: bool = False,
    overwrite: bool = False,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Write the towers of an encoder for ONNX Runtime, or as `torch.export` programs, and check them.

    The folder holds `audio_tower.onnx`, `video_tower.onnx` and `text_tower.onnx` (`.pt2` for `"torch"`), as far as the
    model has them; with `int8` also `audio_tower_int8.onnx` and so on; `export.json` with names, shapes, checksums and
    what the checks measured; and the processor. It is written under another name first, so that it is there whole or
    not at all.

    Args:
        model: Any of this package's models, in float32 on the CPU; of one with a head, the encoder is exported. Of a
            model with text, audio and video are embedded as by the audio-visual model inside, for its indexes; where
            texts have a space of their own (`projection_dim`), the projections are written, too.
        processor: The processor that makes its inputs.
        directory: Where to.
        format: `"onnx"` or `"torch"`.
        int8: Whether to write towers with 8-bit weights as well (`"onnx"` only).
        overwrite: Whether to replace a folder that an earlier call wrote.
        progress: Called with steps done, steps in all, and what is being done.

    Returns:
        What `export.json` says.

    Raises:
        ExportError: The model or the arguments do not fit, the folder holds something else, or a tower computes
            something else than the model.
        ImportError: ONNX libraries are missing; the message says which.
    """
    if format not in _SUFFIXES:
        raise ExportError(f"`format` is {format!r}; use {' or '.join(map(repr, _SUFFIXES))}.")
    if int8 and format != "onnx":
        raise ExportError(
            f"8-bit weights are a form of ONNX files, and the format is {format!r}.",
            hint=(Hint("format", "onnx", "write both"), Hint("int8", None, f"write {format} files alone")),
        )
    target = Path(directory).expanduser()
    _check_target(target, overwrite)
    if format == "onnx":
        require_onnx("onnx", "onnxscript", "onnxruntime")
    broken = not_finite(dict(model.named_parameters()))
    if broken:
        raise ExportError(f"The model's weights hold NaN or infinite values ({shorten(broken, 3)}); take another one.")
    with_text = hasattr(model, "get_text_features")
    if with_text and not processor.has_tokenizer:
        raise ExportError(
            "The model has a text encoder and the processor no tokenizer; pass CavMaeSyncProcessor(feature_extractor, "
            "video_processor, tokenizer), or export the audio-visual model inside: model.base_model."
        )
    longest = longest_text(model, processor) if with_text else None
    towers = make_towers(model.eval(), longest_text=longest)
    config = cast(Any, model.base_model if with_text else model).config
    if config.audio_context == "clip":
        raise ExportError(
            "The model hears windows within longer clips (`audio_context='clip'`), and an exported tower takes each "
            "window alone; export a model with `audio_context='window'`."
        )
    description: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": format,
        "checkpoint": checkpoint_record(model),
        "modality": config.modality,
        "hidden_size": config.hidden_size,
        "num_frames": config.num_frames,
        **({"longest_text": longest} if with_text else {}),
        "tolerance": TOLERANCE,
        "towers": {},
        "versions": software_versions() | (onnx_versions() if format == "onnx" else {}),
    }
    done, steps = 0, len(towers) * (3 if int8 else 2)

    def begin(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, steps, what)
        done += 1

    with whole_folder(target, overwrite=overwrite) as folder:
        for tower in towers:
            description["towers"][tower.io.modality] = _write_tower(tower, folder, format, int8=int8, begin=begin)
        processor.save_pretrained(folder)
        projections = {name: layer.weight.detach() for name, layer in getattr(model, "projections", {}).items()}
        if projections:
            save_file(projections, folder / PROJECTIONS)
            description["projections"] = {"file": PROJECTIONS, "sha256": file_digest(folder / PROJECTIONS)}
        write_json(folder / DESCRIPTION, description)
    return description


def _write_tower(
    tower: AnyTower, folder: Path, format: str, *, int8: bool, begin: Callable[[str], None]
) -> dict[str, Any]:
    """Write one tower and check it; gives its part of the description.

    Args:
        tower, folder, format, int8: Which, where and how.
        begin: Called with what is done next.
    """
    io, modality = tower.io, tower.io.modality
    path = folder / f"{modality}_tower{_SUFFIXES[format]}"
    begin(f"tracing the {modality} tower")
    try:
        program = trace(tower)
    except (RuntimeError, ValueError) as error:
        remedy = ""
        if modality == "text":
            remedy = " Export the audio-visual model inside alone, in Python: export_model(model.base_model, ...)."
        raise ExportError(f"torch cannot trace the {modality} tower: {error}{remedy}") from error
    entry: dict[str, Any] = {"inputs": _tensor_facts(io, "inputs"), "outputs": _tensor_facts(io, "outputs")}
    if format == "torch":
        # Not into the file itself: where the disk is full, torch's own writer ends the whole process.
        content = BytesIO()
        torch.export.save(program, content)
        path.write_bytes(content.getbuffer())
    else:
        entry["opset"] = write_onnx(program, io, path)
    del program
    begin(f"checking the {modality} tower")
    entry = _file_facts(path) | entry | {"max_difference": _check_equal(tower, path)}
    if int8:
        begin(f"8-bit weights for the {modality} tower")
        small = folder / f"{modality}_tower_int8.onnx"
        quantize_file(path, small)
        entry["int8"] = _file_facts(small) | {"min_cosine": _check_close(tower, small)}
    return entry


def _tensor_facts(io: TowerIO, side: str) -> list[dict[str, Any]]:
    """Names, types and shapes of a tower's inputs or outputs."""
    if side == "inputs":
        return [{"name": name, "dtype": io.dtype, "shape": [*io.axes, *io.input_shape]} for name in io.inputs]
    pairs = zip(io.outputs, io.output_shapes, strict=True)
    return [{"name": name, "dtype": "float32", "shape": [*io.output_axes, *shape]} for name, shape in pairs]


def _file_facts(path: Path) -> dict[str, Any]:
    """Name, size and checksum of a file, and of the weights beside it."""
    facts: dict[str, Any] = {}
    for name, file in (("file", path), ("data_file", path.with_name(f"{path.name}.data"))):
        if file.exists():
            prefix = name.removesuffix("file")
            facts |= {name: file.name, f"{prefix}bytes": file.stat().st_size, f"{prefix}sha256": file_digest(file)}
    return facts


def _run_file(path: Path, tower: AnyTower) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    run = load_tower(path)
    return lambda inputs: [
        torch.from_numpy(output) for output in run(tower.io.outputs, *(values.numpy() for values in inputs))
    ]


def _check_equal(tower: AnyTower, path: Path) -> dict[str, float]:
    """Compare an exported tower with the model; gives the largest difference of each output.

    Raises:
        ExportError: One is above the tolerance.
    """
    run = _run_file(path, tower)
    largest = dict.fromkeys(tower.io.outputs, 0.0)
    for seed, shape in enumerate(EXAMPLE_SHAPES):
        inputs = tower.example(shape, seed)
        with torch.no_grad():
            wanted = tower(*inputs)
        for output, own, other in zip(tower.io.outputs, wanted, run(inputs), strict=True):
            # Embeddings have length 1; patch embeddings are measured by the largest of them.
            scale = max(1.0, float(own.abs().max()))
            difference = float((own - other).abs().max()) / scale if own.shape == other.shape else float("inf")
            largest[output] = max(largest[output], difference)
            if not difference <= TOLERANCE:
                given = "texts" if tower.io.modality == "text" else "clips"
                raise ExportError(
                    f"{path.name} was exported, but its {output} for {shape[0]} {given} of {shape[1]} "
                    f"{tower.io.axes[1]} lie {difference:.2g} from the model's (at most {TOLERANCE:g} is allowed); "
                    "nothing was written. Another version of torch or onnxruntime may do."
                )
    return largest


def _check_close(tower: AnyTower, path: Path) -> float:
    """The lowest cosine between the embeddings of an 8-bit tower and the model's.

    Raises:
        ExportError: It is so low that the tower is broken.
    """
    run, lowest = _run_file(path, tower), 1.0
    for seed, shape in enumerate(EXAMPLE_SHAPES):
        inputs = tower.example(shape, seed)
        with torch.no_grad():
            wanted = tower(*inputs)[0]
        lowest = min(lowest, float(torch.cosine_similarity(wanted, run(inputs)[0], dim=-1).min()))
    if not lowest >= _LEAST_INT8_COSINE:
        raise ExportError(
            f"{path.name}: 8-bit weights turn embeddings as far as a cosine of {lowest:.3f} from the model's; nothing "
            "was written.",
            hint=Hint("int8", None, "export this model"),
        )
    return lowest


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse to write over anything but an earlier export."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        raise ExportError(f"{target} is a file; name a folder to export to.")
    try:
        own = parse_json((target / DESCRIPTION).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        own = False
    foreign = [entry.name for entry in target.iterdir() if entry.is_dir() or not any(map(entry.match, _OWN_FILES))]
    if foreign or not own:
        examples = ", ".join(sorted(foreign or [entry.name for entry in target.iterdir()])[:5])
        raise ExportError(f"{target} is not empty and holds other files ({examples}); name a new or empty folder.")
    if not overwrite:
        raise ExportError(f"{target} already holds an exported model.", hint=Hint("overwrite", True, "replace it"))
