# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Files of traced towers: ONNX, ONNX with 8-bit weights and `torch.export` programs, written and run."""

import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..model.errors_cavmae_sync import ExportError
from ..provenance import require_package
from .towers import TowerIO, quiet

# protobuf holds no more than 2 GiB; the graph itself needs less than 100 MB.
_MOST_BYTES_IN_ONE_FILE = 1_900_000_000

# Gives the outputs of these names for the inputs.
RunTower = Callable[..., list[np.ndarray]]


def require_onnx(*names: str) -> None:
    """Raise an `ImportError` that says what to install where one of the modules is missing."""
    for name in names:
        require_package(name, "export", "Writing or running ONNX files")


def onnx_versions() -> dict[str, str]:
    """Versions of the libraries that ONNX files depend on."""
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "onnxscript")}


def write_onnx(program: torch.export.ExportedProgram, io: TowerIO, path: Path) -> int:
    """Write a traced tower as an ONNX file.

    Weights of more than 1.9 GB go into a file beside it, `<name>.data`.

    Args:
        program: From `towers.trace`.
        io: The tower's names.
        path: The file to write.

    Returns:
        The version of the ONNX operator set.
    """
    require_onnx("onnx", "onnxscript")
    import onnx

    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    with quiet():
        torch.onnx.export(
            program,
            dynamo=True,
            f=str(path),
            input_names=list(io.inputs),
            output_names=list(io.outputs),
            external_data=size > _MOST_BYTES_IN_ONE_FILE,
            verbose=False,
        )
    model = onnx.load(str(path), load_external_data=False)
    # The free sizes are called "batch" and "frames", not by the names of the tracer's symbols.
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    names = {sizes[number].dim_param: name for number, name in enumerate(io.axes)}
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for size_of_axis in (axis for value in values for axis in value.type.tensor_type.shape.dim):
        if size_of_axis.dim_param in names:
            size_of_axis.dim_param = names[size_of_axis.dim_param]
    # What is said twice of weights is wrong once ONNX Runtime turns them around to bring them to 8 bits.
    weights = {tensor.name for tensor in model.graph.initializer}
    others = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(others)
    onnx.save(model, str(path))
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def quantize_file(source: Path, target: Path) -> None:
    """Write a file whose matrix products have 8-bit weights (signed, one scale per column, values of 7 bits).

    What comes in is brought to 8 bits while it runs (dynamic quantisation), so that no calibration data are needed;
    norms, softmax, attention and the patch projection stay in float32.

    Processors without VNNI add two products of an unsigned input (to 255) and a signed weight in 16 bits, where they
    saturate beyond 32,767. Weights from -64 to 64 stay below: 2 * 255 * 64 = 32,640. Unsigned weights would also be
    right everywhere, but ONNX Runtime has no such fast kernels for them on processors with VNNI
    (`training/benchmarks/export.py --kinds`).
    """
    require_onnx("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root, level = logging.getLogger(), logging.getLogger().level
    try:
        root.setLevel(logging.ERROR)  # a hint about calibrated quantisation, which this is not
        quantize_dynamic(
            str(source),
            str(target),
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul"],
            use_external_data_format=source.stat().st_size > _MOST_BYTES_IN_ONE_FILE,
        )
    finally:
        root.setLevel(level)


def open_onnx(path: Path, threads: int | None = None, providers: Any = None) -> Any:
    """An ONNX Runtime session.

    Args:
        path: The file.
        threads: Of one operation; default: as many as there are cores.
        providers: ONNX Runtime's execution providers; default: the CPU.
    """
    require_onnx("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=providers or ["CPUExecutionProvider"])


def load_tower(path: Path, threads: int | None = None, providers: Any = None) -> RunTower:
    """A tower's file as a function of output names and the inputs, in their order.

    Args:
        path: An ONNX file or a `torch.export` program (`.pt2`).
        threads, providers: As for `open_onnx`.

    Raises:
        ExportError: It is no such file.
        ImportError: onnxruntime is missing.
    """
    try:
        if path.suffix == ".onnx":
            session = open_onnx(path, threads, providers)
            inputs = [value.name for value in session.get_inputs()]
            return lambda names, *arrays: session.run(list(names), dict(zip(inputs, arrays, strict=True)))
        with quiet():
            module = torch.export.load(path).module()
    except ImportError:
        raise
    except Exception as error:  # the libraries have errors of their own for what is no such file
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{path} cannot be loaded ({reason}); export the model anew.") from error

    def run(names: Sequence[str], *arrays: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(*map(torch.from_numpy, arrays))[: len(names)]]

    return run
