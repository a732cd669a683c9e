"""Direct effect of a decoder row on the logits.

Shapes: L latents, D = d_in, V = vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eval_runners.data.heldout import tokenizer_of
from eval_runners.measures.firing import token_texts

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedTokenizerBase

SHOWN_TOKENS = 8
"""Tokens with the largest effects that are listed, in each direction."""


def logit_effects(model: HookedTransformer, row_D: Tensor) -> dict[str, list[list[str | float]]]:
    """Tokens whose logits a decoder row raises and lowers most by itself, through the last norm and the unembedding.

    Effects are per unit of activation and of the last norm's scale, less the mean over the vocabulary.

    Returns:
        `raised` and `lowered`: [text, effect] of each token. Both are empty if the unembedding does not read rows.
    """
    row_D = row_D.float().to(model.W_U.device)
    if not reads_rows(model, len(row_D)):
        return {"raised": [], "lowered": []}
    if "LN" in str(model.cfg.normalization_type):
        row_D = row_D - row_D.mean()
    row_D = row_D * getattr(getattr(model, "ln_final", None), "w", 1.0)
    effect_V = row_D.to(model.W_U.dtype) @ model.W_U
    return extreme_tokens((effect_V - effect_V.mean()).float(), tokenizer_of(model), SHOWN_TOKENS)


def plain_logits(model: HookedTransformer, rows_LD: Tensor) -> Tensor | None:
    """Product [L, V] of decoder rows and the unembedding, without the last norm.

    Neuronpedia and SAEDashboard show these as a latent's logits.

    Returns:
        float32; None if the unembedding does not read rows of that width.
    """
    if not reads_rows(model, rows_LD.shape[-1]):
        return None
    return (rows_LD.to(model.W_U) @ model.W_U).float()


def reads_rows(model: HookedTransformer, width: int) -> bool:
    """Whether decoder rows of that width are directions of the residual stream, which the unembedding reads."""
    return width == model.cfg.d_model == model.W_U.shape[0]


def extreme_tokens(
    effect_V: Tensor, tokenizer: PreTrainedTokenizerBase, n_tokens: int
) -> dict[str, list[list[str | float]]]:
    """[text, effect] of the tokens with the largest (`raised`) and smallest (`lowered`) effects, strongest first."""
    effects = {}
    for name, sign in (("raised", 1), ("lowered", -1)):
        largest = (sign * effect_V).topk(min(n_tokens, len(effect_V)))
        texts = token_texts(largest.indices.tolist(), tokenizer)
        effects[name] = [[text, sign * value] for text, value in zip(texts, largest.values.tolist(), strict=True)]
    return effects
