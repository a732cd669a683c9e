"""Files of a Hugging Face model folder: which of them determine a model's output, and what is wrong with them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_files
from sae_variants.common.json_files import refuse_pointer

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER = ("tokenizer*", "vocab*", "merges*", "*.model", "special_tokens_map.json", "added_tokens.json")
ADAPTER = "adapter_config.json"
CONFIG = ("config.json", ADAPTER)


def _matches(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def model_files(folder: Path) -> list[Path]:
    """Return the files that determine a model's output: config, tokenizer and weights."""
    return _matches(folder, (*CONFIG, *TOKENIZER, *WEIGHTS))


def hash_model(folder: Path) -> str:
    """Return the hash of the content of `model_files`; the files are read again only after they change."""
    files = model_files(folder)
    return _hash(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@cache
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    return hash_files([path for path, _, _ in files])


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model's `config.json`.

    Raises:
        UsageError: There is none, or it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    refuse_pointer(path)
    config = _read_json(path)
    if not isinstance(config, dict):
        raise UsageError(f"{path} is not a JSON object")
    return config


def check_model_folder(folder: Path) -> None:
    """Check that a folder holds a config, whole weights and a tokenizer of a causal language model.

    Raises:
        UsageError: Names the file and what is wrong with it.
    """
    if not folder.is_dir():
        raise UsageError(f"no model folder {str(folder)!r}" + (": it is a file" if folder.is_file() else ""))
    config = read_config(folder)
    for what, patterns in (("weights", WEIGHTS), ("tokenizer", ("tokenizer*", "vocab*", "*.model"))):
        if not _matches(folder, patterns):
            raise UsageError(f"{folder} holds no {what} ({', '.join(patterns)})")
    for path in model_files(folder):
        refuse_pointer(path)
    if (folder / ADAPTER).is_file():
        raise UsageError(
            f"{folder} holds an adapter ({ADAPTER}), which would not be applied: merge it into the model "
            "(PeftModel.merge_and_unload) and save the whole"
        )
    for index in _matches(folder, ("*.safetensors.index.json", "pytorch_model*.bin.index.json")):
        _check_shards(index)
    _check_causal(folder, config)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error


def _check_shards(index: Path) -> None:
    content = _read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict):
        raise UsageError(f"{index} has no weight_map, which names the files of the weights")
    missing = sorted({shard for shard in shards.values() if not (index.parent / str(shard)).is_file()})
    if missing:
        raise UsageError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names: download it again")


def _check_causal(folder: Path, config: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UsageError(f"{folder / 'config.json'} names no model_type, such as llama")
    if config.get("auto_map") and kind not in CAUSAL:
        raise UsageError(f"{folder} needs Python code of its repository, which is not run ({kind})")
    check_name(f"model_type in {folder / 'config.json'}", kind, CONFIG_MAPPING)
    encoder = kind in MASKED and not config.get("is_decoder")
    if kind not in CAUSAL or encoder or config.get("is_encoder_decoder"):
        raise UsageError(f"{folder} is no causal language model: its model_type is {kind}")
