"""Language models in local folders, made loadable by TransformerLens under a short registered name.

TransformerLens finds a model by name: the name must be on its official list, and config and weights are then looked up
on the Hub under that name. A folder's path does not work as a name, because it must be on the list too, and a path that
contains "llama" or "bert" takes another architecture's branch. A folder is therefore registered under a name, and while
that name is loaded, config, weights and tokenizer come from the folder. Only this module adapts TransformerLens.
"""

from __future__ import annotations

import contextlib
import json
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from sae_variants.common.errors import UsageError
from sae_variants.common.hashing import hash_files

SANDBOX = "sandbox"
_folders: dict[str, Path] = {SANDBOX: Path(__file__).parents[1] / "sandbox"}


class _FromFolder:
    """Replacement of a transformers Auto class that reads a given name from a folder."""

    def __init__(self, auto_class: Any, name: str, folder: Path) -> None:
        self.auto_class, self.name, self.folder = auto_class, name, folder

    def from_pretrained(self, name: str, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("token", None)
        loaded = self.auto_class.from_pretrained(self.folder if name == self.name else name, *args, **kwargs)
        if getattr(loaded, "model_type", "") == "gpt2" and not hasattr(loaded, "n_ctx"):
            loaded.n_ctx = loaded.n_positions  # TransformerLens reads a field that transformers 5 no longer writes
        return loaded


def _gemma2_config(folder: Path, name: str) -> dict[str, Any]:
    """Return TransformerLens' config of a Gemma-2 of any size; TransformerLens knows only the published sizes."""
    from transformers import AutoConfig

    hf = AutoConfig.from_pretrained(folder)
    return {
        "d_model": hf.hidden_size,
        "d_head": hf.head_dim,
        "n_heads": hf.num_attention_heads,
        "n_key_value_heads": hf.num_key_value_heads,
        "d_mlp": hf.intermediate_size,
        "n_layers": hf.num_hidden_layers,
        "n_ctx": hf.max_position_embeddings,
        "eps": hf.rms_norm_eps,
        "d_vocab": hf.vocab_size,
        "act_fn": hf.hidden_activation,
        "initializer_range": hf.initializer_range,
        "normalization_type": "RMS",
        "rotary_base": hf.rope_parameters["rope_theta"],
        "positional_embedding_type": "rotary",
        "use_attn_scale": True,
        "attn_scale": hf.query_pre_attn_scalar**0.5,
        "window_size": hf.sliding_window,
        "use_local_attn": True,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in hf.layer_types],
        "attn_scores_soft_cap": hf.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": hf.final_logit_softcapping or -1.0,
        "gated_mlp": True,
        "final_rms": True,
        "use_normalization_before_and_after": True,
        "original_architecture": "Gemma2ForCausalLM",
        "tokenizer_name": name,
    }


@cache
def _install() -> None:
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading
    from transformers import AutoTokenizer

    original = HookedTransformer.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, model_name: str, *args: Any, **kwargs: Any) -> Any:
        folder = _folders.get(model_name)
        if folder is None:
            return original(cls, model_name, *args, **kwargs)
        kwargs.setdefault("tokenizer", AutoTokenizer.from_pretrained(folder))
        with contextlib.ExitStack() as stack:
            for auto in ("AutoConfig", "AutoModelForCausalLM"):
                stand_in = _FromFolder(getattr(loading, auto), model_name, folder)
                stack.enter_context(mock.patch.object(loading, auto, stand_in))
            if json.loads((folder / "config.json").read_text()).get("model_type") == "gemma2":
                config = _gemma2_config(folder, model_name)
                stack.enter_context(mock.patch.object(loading, "convert_hf_model_config", return_value=config))
            return original(cls, model_name, *args, **kwargs)

    HookedTransformer.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]


def register_folder(name: str, folder: Path) -> None:
    """Make `HookedTransformer.from_pretrained(name)` load a folder."""
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    _install()
    _folders[name] = folder
    if name not in OFFICIAL_MODEL_NAMES:
        OFFICIAL_MODEL_NAMES.append(name)


def register_sandbox() -> None:
    """Register the embedded language model under the name `sandbox`."""
    register_folder(SANDBOX, _folders[SANDBOX])


def is_local_model(name: str) -> bool:
    """Return whether a name is registered for a local folder."""
    return name in _folders


def model_folder(name: str) -> Path | None:
    """Return the folder that a name is registered for; None for a name on the Hub."""
    return _folders.get(name)


def model_id(name: str) -> str:
    """Return what identifies a model in hashes: the hash of a local folder's content, else the name on the Hub."""
    return hash_files(model_files(_folders[name])) if is_local_model(name) else name


def model_files(folder: Path) -> list[Path]:
    """Return the files that determine a model's output: config, tokenizer and weights."""
    patterns = ("config.json", "tokenizer*", "vocab*", "merges*", "*.model", "*.safetensors", "pytorch_model*.bin")
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def register_model_folder(folder: Path) -> str:
    """Register a Hugging Face model folder under a name derived from its content, and return that name.

    Raises:
        UsageError: The folder holds no config, no weights or no tokenizer.
    """
    if not folder.is_dir():
        raise UsageError(f"no model folder {str(folder)!r}")
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    try:
        json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise UsageError(f"{folder / 'config.json'} is not JSON: {error}") from error
    for what, patterns in (
        ("weights", ("*.safetensors", "pytorch_model*.bin")),
        ("tokenizer", ("tokenizer*", "vocab*")),
    ):
        if not any(path for pattern in patterns for path in folder.glob(pattern)):
            raise UsageError(f"{folder} holds no {what} ({', '.join(patterns)})")
    name = "local-" + hash_files(model_files(folder))
    register_folder(name, folder.resolve())
    return name
