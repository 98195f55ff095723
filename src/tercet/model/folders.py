"""Model folders as they lie on disk or on the hub, before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from tercet.records import InputError

WEIGHTS_ELSEWHERE = [
    "*.bin",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.gguf",
    "original/*",
]


def resolve(path: str | Path) -> Path:
    """A local folder for a folder or a hub id; the hub's safetensors are fetched once."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    text = str(path)
    if folder.is_absolute() or text.startswith(".") or text.count("/") != 1:
        raise InputError(f"{path}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, ignore_patterns=WEIGHTS_ELSEWHERE))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{path}: neither a folder nor a model that the hub gives ({first_line(error)})"
        ) from None


def read_config(path: str | Path, folder: Path, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        raise InputError(f"{path}: not a model folder (it has no config.json)")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{path}: no *.safetensors file; convert the weights to safetensors")
    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: {first_line(error)}") from None
    return config


def read_tensors(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """Those of the named tensors that the folder's safetensors files hold."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in names & set(tensors.keys()):
                found[name] = tensors.get_tensor(name)
    return found


def check_vocabulary(path: str | Path, folder: Path, config: Any) -> None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    largest = max(max(ids, default=0), *(t["id"] for t in content["added_tokens"]), 0)
    if largest >= config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has ids up to {largest}, but the model's vocabulary is only "
            f"{config.vocab_size}; this tokenizer belongs to another model"
        )


@contextmanager
def loading(path: Any) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be loaded ({first_line(error)})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Loading reports a missing head or bars for a second's work; say nothing instead."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
