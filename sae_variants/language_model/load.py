"""Language models in local folders, known to TransformerLens under a short registered name.

TransformerLens finds a model by name: it must be on its official list, and config and weights are then looked up on
the Hub by that name. A folder's path does not work as a name (it must be listed too, and a path that contains "llama"
or "bert" takes another architecture's branch), so a folder gets a name, and while that name is being loaded the
three look-ups are answered from the folder. This is the only place where TransformerLens is adapted.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from sae_variants.common import hashing as _hash
from sae_variants.common.errors import UsageError, one_of

SANDBOX = "sandbox"
_folders: dict[str, Path] = {SANDBOX: Path(__file__).parents[1] / "sandbox"}


class _FromFolder:
    """Stands in for a transformers Auto class: what is asked for by name is read from a folder."""

    def __init__(self, auto_class: Any, name: str, folder: Path) -> None:
        self.auto_class, self.name, self.folder = auto_class, name, folder

    def from_pretrained(self, name: str, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("token", None)
        found = self.auto_class.from_pretrained(self.folder if name == self.name else name, *args, **kwargs)
        if getattr(found, "model_type", "") == "gpt2" and not hasattr(found, "n_ctx"):
            found.n_ctx = found.n_positions  # TransformerLens reads what transformers 5 no longer writes
        return found


def _gemma2_config(folder: Path, name: str) -> dict[str, Any]:
    """TransformerLens' config of a Gemma-2 of any size; it has its own by heart, for the published sizes only."""
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
    """Makes `HookedTransformer.from_pretrained(name)` load that folder."""
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    _install()
    _folders[name] = folder
    if name not in OFFICIAL_MODEL_NAMES:
        OFFICIAL_MODEL_NAMES.append(name)


def register_sandbox() -> None:
    register_folder(SANDBOX, _folders[SANDBOX])


def model_id(name: str) -> str:
    """What stands for a model in a hash: the content of a local folder, else the name on the Hub."""
    if name not in _folders:
        return name
    return _hash.of_files(model_files(_folders[name]))


def revision(name: str) -> str:
    """`model_id` with, for a model on the Hub, the commit that lies in the local cache: what has been loaded."""
    from huggingface_hub import try_to_load_from_cache
    from transformer_lens.loading_from_pretrained import get_official_model_name

    if name in _folders:
        return model_id(name)
    config = try_to_load_from_cache(get_official_model_name(name), "config.json")
    return f"{name}@{Path(config).parent.name}" if isinstance(config, str) else name


def model_files(folder: Path) -> list[Path]:
    """What decides a model's numbers: config, tokenizer and weights."""
    patterns = ("config.json", "tokenizer*", "vocab*", "merges*", "*.model", "*.safetensors", "pytorch_model*.bin")
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def name_folder(folder: Path) -> str:
    """Registers a Hugging Face model folder under a name made of its content. UsageError if it holds no model."""
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
    name = "local-" + _hash.of_files(model_files(folder))
    register_folder(name, folder.resolve())
    return name


def is_transport(error: BaseException) -> bool:
    """Whether an error is of the network, whichever library huggingface_hub speaks HTTP with."""
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in HTTP_LIBRARIES


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """A model or text that cannot be had ends in one line, not in a stack of retries."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        unreachable = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
        # transformers and datasets report an unreachable Hub as an OSError without a number
        unnumbered = isinstance(error, OSError) and error.errno is None
        if not (is_transport(error) or unnumbered or isinstance(error, unreachable)):
            raise
        raise UsageError(f"cannot get {what} on the Hugging Face Hub ({type(error).__name__}): {_OFFLINE}") from error


HTTP_LIBRARIES = ("httpx", "httpx2", "requests")
_OFFLINE = "check the name and the network, or use --target sandbox or --model FOLDER, which need none"


@cache
def reuse_freed_memory() -> None:
    """Ask glibc to keep large freed blocks: fresh pages for every activation take half the time on CPU."""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 2**28)


def load_model(name: str, device: str, dtype: str) -> Any:
    """A `HookedTransformer` without weight processing, as SAEBench loads it."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from sae_lens.util import str_to_dtype
    from safetensors import SafetensorError
    from transformer_lens import HookedTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if device == "cpu":
        reuse_freed_memory()
    with hub_errors(f"the model {name}"), contextlib.redirect_stdout(io.StringIO()):
        if name not in _folders and not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=10)  # fails at once where there is no network; a download retries first
        try:
            return HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=str_to_dtype(dtype))
        except (ValueError, NotImplementedError, KeyError, RuntimeError, SafetensorError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"TransformerLens cannot load the model {name}: {first[:200]}") from error


def hook_width(model: Any, hook_name: str) -> int:
    """d_in at a hook. UsageError with the near names if the model has no such hook."""
    import torch

    one_of("hook", hook_name, model.hook_dict)
    with torch.no_grad():
        _, cached = model.run_with_cache(
            torch.zeros(1, 2, dtype=torch.long, device=model.cfg.device), names_filter=hook_name
        )
    if cached[hook_name].ndim != 3:
        raise UsageError(
            f"hook {hook_name} has shape {tuple(cached[hook_name].shape)}; choose one with [batch, pos, d_in]"
        )
    if cached[hook_name].shape[-1] < 2:
        raise UsageError(f"hook {hook_name} is a single number per token; choose one with a vector")
    return cached[hook_name].shape[-1]


def hook_activations(model: Any, hook_name: str, dtype: str = "float32", contexts_per_pass: int = 64) -> Any:
    """Function from token ids [C, T] to activations [C, T, D] at a hook; the model stops after the hook's layer."""
    import torch
    from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name, str_to_dtype

    stop = extract_stop_at_layer_from_tlens_hook_name(hook_name)

    @torch.no_grad()
    def activations(tokens_CT: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in tokens_CT.split(contexts_per_pass):
            _, cached = model.run_with_cache(
                part.to(model.cfg.device), names_filter=hook_name, stop_at_layer=stop, prepend_bos=False
            )
            parts.append(cached[hook_name].to(str_to_dtype(dtype)))
        return torch.cat(parts)

    return activations
