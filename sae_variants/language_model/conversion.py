"""A Hugging Face model as TransformerLens' model, only if both give the same log-probabilities.

TransformerLens ignores, without a word, what its converters do not know, such as biases of a Llama or a scaled rotary
embedding. Both models therefore read the same random tokens, and their log-probabilities are compared.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.language_model.bridge import make_bridge

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIMITS = {"float32": 3e-4, "float16": 0.05, "bfloat16": 0.25}
"""Largest RMS difference at a token, in standard deviations of the log-probabilities, that rounding explains."""
SMALL = 50_000_000
"""Parameters up to which a model is checked on more tokens, and more strictly."""
_IGNORED = re.compile(r"(rotary_emb\.inv_freq|\.(attn|attention)\.(masked_)?bias)$")
"""Buffers, not weights, that older versions of transformers saved."""


@dataclass(frozen=True)
class Reference:
    """Answers of Hugging Face's model to a few tokens."""

    ids_1T: Tensor
    """Token ids."""
    logprobs_TV: Tensor
    """Log-probabilities of the next token, in float32 on the CPU."""
    limit: float
    """Largest difference that rounding explains."""

    def difference(self, model: HookedTransformer) -> float:
        """Return the largest RMS difference of a model's log-probabilities at a token, in units of their spread."""
        import torch

        with torch.no_grad():
            logits = model(self.ids_1T.to(model.cfg.device), return_type="logits", prepend_bos=False)
        change_TV = logits[0].float().log_softmax(-1).cpu() - self.logprobs_TV
        return float(change_TV.square().mean(-1).sqrt().max() / (self.logprobs_TV.std(-1).mean() + 1e-3))


def load_hf_model(folder: Path | str, dtype: torch.dtype) -> PreTrainedModel:
    """Load Hugging Face's causal language model of a folder, or of a name on the Hub, on the CPU.

    Raises:
        UsageError: It cannot be loaded, a tensor is missing or has another shape, or a weight is not used.
    """
    from transformers import AutoModelForCausalLM

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, trust_remote_code=False, ignore_mismatched_sizes=True
            )
            hf_model, info = loaded
    except Exception as error:
        raise UsageError(f"cannot load the model {folder}: {describe_error(error)}") from error
    unused = [name for name in info["unexpected_keys"] if not _IGNORED.search(name)]
    mismatched = [f"{name}, {[*held]} instead of {[*shape]}" for name, held, shape in info["mismatched_keys"]]
    for what, names in (
        ("lacks the tensor", info["missing_keys"]),
        ("holds another shape than its config says of the tensor", mismatched),
        ("holds a weight that the model does not use:", unused),
    ):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UsageError(f"cannot load the model {folder}: it {what} {min(names)}{others}")
    return hf_model.eval()


def take_reference(folder: Path, hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Reference:
    """Return what a loaded model answers to a few random tokens without special tokens.

    Raises:
        UsageError: The model cannot run, or its logits are not finite.
    """
    import torch

    is_small = hf_model.num_parameters() <= SMALL
    config: Any = hf_model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    positions = next((size for name in names if isinstance(size := getattr(config, name, None), int)), 256)
    length = min(positions, 256 if is_small else 32)
    usable = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    usable = [index for index in usable if index < config.vocab_size]
    chosen_T = torch.randint(len(usable), (length,), generator=torch.Generator().manual_seed(0))
    ids_1T = torch.tensor(usable)[chosen_T][None]
    try:
        with torch.no_grad():
            logprobs_TV = hf_model(ids_1T, use_cache=False).logits[0].float().log_softmax(-1)
    except Exception as error:
        raise UsageError(f"cannot run the model {folder}: {describe_error(error)}") from error
    if not logprobs_TV.isfinite().all():
        raise UsageError(f"the model {folder} gives logits that are not finite in {hf_model.dtype}")
    limit = LIMITS.get(str(hf_model.dtype).removeprefix("torch."), LIMITS["bfloat16"])
    return Reference(ids_1T, logprobs_TV, limit / 10 if is_small and hf_model.dtype == torch.float32 else limit)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of weights that TransformerLens fills in, because the log-probabilities are compared anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check_hooks(model: HookedTransformer) -> None:
    """Read all hooks at once, which fails where a module of the model takes its inputs in another shape."""
    import torch

    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        model.run_with_cache(torch.zeros(2, 3, dtype=torch.long, device=model.cfg.device), prepend_bos=False)


def convert_checked(
    folder: Path,
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    convert: Callable[[], HookedTransformer],
    device: str,
) -> HookedTransformer:
    """Return a model with the log-probabilities of Hugging Face's: TransformerLens' own, else its bridge.

    Args:
        folder: Model folder, which messages name.
        hf_model: Loaded Hugging Face model.
        tokenizer: Its tokenizer.
        convert: Makes TransformerLens' own model of it.
        device: Device of the model.

    Raises:
        UsageError: Neither has the log-probabilities of Hugging Face's model.
    """
    reference = take_reference(folder, hf_model, tokenizer)
    reasons = []
    for name, make in (
        ("HookedTransformer", convert),
        ("TransformerBridge", lambda: make_bridge(hf_model, tokenizer, device)),
    ):
        try:
            with _quiet():
                model = make()
            difference = reference.difference(model)
            _check_hooks(model)
        except Exception as error:
            reasons.append(f"{name}: {describe_error(error, 150)}")
            continue
        if difference <= reference.limit:
            if reasons:
                print(f"note: {folder} runs in TransformerLens' bridge ({reasons[0]})", file=sys.stderr)
            return model
        reasons.append(f"{name}: log-probabilities differ from Hugging Face's by {difference:.1e} of their spread")
    raise UsageError(f"TransformerLens cannot load the model {folder} rightly ({'; '.join(reasons)})")
