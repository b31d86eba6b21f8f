"""Model files: safetensors with a JSON description in its metadata, never a pickle.

The metadata holds two strings: ``fsad``, the description as JSON, and ``sha256``, the digest of the
description and of every tensor. A file that was cut off, altered or made by something else is
refused with one sentence.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from fsad.errors import ModelFileError

FORMAT_VERSION = 1


def write_model(path: str | Path, tensors: Mapping[str, Tensor], description: dict) -> None:
    """Write ``tensors`` and the JSON-able ``description`` to ``path``, whole or not at all.

    Raises OSError where the folder is missing or cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"version": FORMAT_VERSION, **description}, sort_keys=True, allow_nan=False)
    content = to_bytes(stored, metadata={"fsad": text, "sha256": digest(text, stored)})
    replace_file(Path(path), content)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all: to a temporary file beside it, which then takes its name."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # a full disk, and whose file it lacks
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def replace_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table as CSV, whole or not at all; what else is in the rows is left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


def read_model(path: str | Path, kind: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the description that ``write_model`` put there.

    Raises ModelFileError for a damaged or foreign file, one of a newer format, or where another ``kind`` is
    asked for than described; OSError for one that is missing or may not be read.
    """
    with open(path, "rb"):  # OSError with its own words before safetensors meets the file
        pass
    advice = "make it again with `fsad adapt`" if kind in ("", "FewShotDetector") else "copy or make it again"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        wrong = "is not a complete fsad model: it is cut off, damaged or another kind of file"
        raise ModelFileError(f"{path} {wrong} ({error}); {advice}") from error
    if not {"fsad", "sha256"} <= metadata.keys():
        raise ModelFileError(f"{path} is a safetensors file, but not an fsad model; {advice}")
    if metadata["sha256"] != digest(metadata["fsad"], tensors):
        raise ModelFileError(f"{path} is damaged: its content does not match its checksum; {advice}")
    description = json.loads(metadata["fsad"])
    version = description.pop("version", None)
    if not isinstance(version, int):
        raise ModelFileError(f"{path} names no format version (got {version!r}); make it again")
    if version > FORMAT_VERSION:
        wrong = f"{path} has format version {version}, this fsad reads up to {FORMAT_VERSION}"
        raise ModelFileError(f"{wrong}: update it with `pip install --upgrade fsad`")
    if kind and description.get("kind") != kind:
        raise ModelFileError(f"{path} holds {description.get('kind')}, not {kind}")
    return tensors, description


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of a text and of each tensor's name, dtype, shape and bytes."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
