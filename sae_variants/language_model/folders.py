"""Language models in local folders, made loadable by TransformerLens under a short registered name.

TransformerLens finds a model by name: the name must be on its official list, and config and weights are then looked up
on the Hub under that name. A folder's path does not work as a name, because it must be on the list too, and a path that
contains "llama" or "bert" takes another architecture's branch. A folder is therefore registered under a name, and while
that name is loaded, config, weights and tokenizer come from the folder. Only this module adapts TransformerLens.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from sae_variants.language_model.conversion import convert_checked, load_hf_model
from sae_variants.language_model.model_files import check_model_folder, hash_model
from sae_variants.language_model.tokenizers import fill_special_tokens, load_tokenizer

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SANDBOX = "sandbox"
_NEUTRAL = "sae-variants-folder"
"""Name that TransformerLens is given for every folder: it takes some names for an architecture's."""


@dataclass(frozen=True)
class _Folder:
    path: Path
    identity: str | None = None
    """Identity of the model in hashes, if not the content of its files."""


_folders: dict[str, _Folder] = {SANDBOX: _Folder(Path(__file__).parents[1] / "sandbox")}


class _Loaded:
    """Replacement of a transformers Auto class that returns what is loaded already."""

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded

    def from_pretrained(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.loaded


def _gemma2_config(hf: Any) -> dict[str, Any]:
    """Return TransformerLens' config of a Gemma-2 of any size; TransformerLens knows only the published sizes."""
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
        "tokenizer_name": _NEUTRAL,
    }


def _readable_config(hf_model: Any) -> Any:
    """Return a copy of a model's config with fields that TransformerLens reads and transformers 5 does not write."""
    import copy

    config = copy.deepcopy(hf_model.config)
    config.architectures = [type(hf_model).__name__]
    if config.model_type == "gpt2" and not hasattr(config, "n_ctx"):
        config.n_ctx = config.n_positions
    rope = getattr(config, "rope_parameters", None) or {}
    if "partial_rotary_factor" in rope and not hasattr(config, "partial_rotary_factor"):
        config.partial_rotary_factor = rope["partial_rotary_factor"]
    return config


@cache
def _install() -> None:
    import torch
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading
    from transformer_lens.HookedTransformer import DTYPE_FROM_STRING

    original = HookedTransformer.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, model_name: str, *args: Any, **kwargs: Any) -> Any:
        if model_name not in _folders:
            return original(cls, model_name, *args, **kwargs)
        folder = _folders[model_name].path
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or torch.float32
        check_model_folder(folder)
        hf_model = load_hf_model(folder, DTYPE_FROM_STRING[dtype] if isinstance(dtype, str) else dtype)
        embedding: Any = hf_model.get_input_embeddings()
        vocab_size = embedding.num_embeddings
        tokenizer = kwargs.setdefault("tokenizer", load_tokenizer(folder, vocab_size))

        def convert() -> HookedTransformer:
            config = _readable_config(hf_model)
            with contextlib.ExitStack() as stack:
                for auto, loaded in (("AutoConfig", config), ("AutoModelForCausalLM", hf_model)):
                    stack.enter_context(mock.patch.object(loading, auto, _Loaded(loaded)))
                if config.model_type == "gemma2":
                    known = mock.patch.object(loading, "convert_hf_model_config", return_value=_gemma2_config(config))
                    stack.enter_context(known)
                return original(cls, _NEUTRAL, *args, **kwargs)

        device = str(kwargs.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = convert_checked(folder, hf_model, tokenizer, convert, device)
        model.cfg.model_name = model_name.split("/")[-1]
        fill_special_tokens(model.tokenizer, vocab_size)
        return model

    HookedTransformer.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]


def register_folder(name: str, folder: Path, identity: str | None = None) -> None:
    """Make `HookedTransformer.from_pretrained(name)` load a folder.

    Args:
        name: Name to register.
        folder: Model folder.
        identity: What `model_id` returns; by default the hash of the folder's content.
    """
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    _install()
    _folders[name] = _Folder(folder, identity)
    OFFICIAL_MODEL_NAMES.extend({name, _NEUTRAL}.difference(OFFICIAL_MODEL_NAMES))


def register_sandbox() -> None:
    """Register the embedded language model under the name `sandbox`."""
    register_folder(SANDBOX, _folders[SANDBOX].path)


def is_local_model(name: str) -> bool:
    """Return whether a name is registered for a local folder."""
    return name in _folders


def model_folder(name: str) -> Path | None:
    """Return the folder that a name is registered for; None for a name on the Hub."""
    return _folders[name].path if name in _folders else None


def model_id(name: str) -> str:
    """Return what identifies a model in hashes.

    It is the hash of a local folder's content, `NAME@COMMIT` of a downloaded model, else the name on the Hub.
    """
    if name not in _folders:
        return name
    return _folders[name].identity or hash_model(_folders[name].path)


def register_model_folder(folder: Path) -> str:
    """Register a Hugging Face model folder under a name derived from its content, and return that name.

    Raises:
        UsageError: The folder does not hold a whole causal language model with its tokenizer.
    """
    check_model_folder(folder)
    name = "local-" + hash_model(folder)
    register_folder(name, folder.resolve())
    return name
