"""Everything that a case study shows of one latent: contexts, logits, neighbours, patterns, ablation, children.

Shapes: C contexts, T tokens of a context without BOS, D = d_in, V vocabulary, S = d_sae.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from eval_runners.measures.latent_choice import choose_latents, parse_latents
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from eval_runners.measures.firing import Excerpt, Firing


TOP, LOWER, QUANTILES = 8, 2, (0.75, 0.5, 0.25)
"""Contexts of each latent: those of the largest activations, and so many near each of these quantiles of the others."""
WORDS, NEAREST, BINS, CHILDREN = 8, 5, 16, 8
TRACED = 6
"""Contexts in which a latent is taken away."""


def describe_latents(
    sae: Any, target: Any, model: Any, latents: str, n_contexts: int, context_size: int, seed: int
) -> dict[str, Any]:
    """What the page shows.

    Raises:
        UsageError: no latent fires, or `latents` names none.
    """
    import torch

    from eval_runners.measures.ablation import in_float32
    from eval_runners.measures.firing import collect_firing
    from eval_runners.measures.token_patterns import REPLACEMENTS, describe_by_patterns, sample_replacements
    from sae_variants.common.console import progress
    from sae_variants.two_level.saved import TwoLevelSAE, lower_level_of

    parse_latents(latents, sae.cfg.d_sae)
    firing = collect_firing(sae, target, model, n_contexts, context_size)
    chosen = choose_latents(firing, latents, seed)
    if not chosen:
        raise UsageError(f"--latents {latents}: no latent of the SAE fires often enough on this text")
    lower = lower_level_of(sae) if isinstance(sae, TwoLevelSAE) else None
    tree = Children(sae, lower, firing, target, model, n_contexts, context_size) if lower is not None else None
    replacements = sample_replacements(firing.ids_CT, model, REPLACEMENTS, seed)
    generator = torch.Generator().manual_seed(seed)
    rank_S = firing.gain_S.argsort(descending=True).argsort()
    unit_SD = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1)
    rows = []
    with in_float32(model):
        for latent in progress(chosen, "latents"):
            places, acts = firing.of(latent)
            row: dict[str, Any] = {
                "latent": latent, "density": len(places) / firing.tokens, "rank": int(rank_S[latent]) + 1,
                "gain": float(firing.gain_S[latent]), "max": float(acts.max()) if len(acts) else 0.0,
            }  # fmt: skip
            rows.append(row)
            row |= logit_effects(model, sae.W_dec.detach()[latent])
            cosine_S = unit_SD @ unit_SD[latent]
            cosine_S[latent] = -2.0
            near = cosine_S.topk(min(NEAREST, len(cosine_S) - 1))
            row["nearest"] = [[int(n), float(c)] for n, c in zip(near.indices, near.values, strict=True)]
            if not len(places):
                continue
            row |= excerpt_groups(firing.excerpts(latent), model.tokenizer)
            row["positions"] = position_rates(firing, places)
            acts_CT = firing.acts_CT(latent)
            told = describe_by_patterns(sae, target, model, latent, firing.ids_CT, acts_CT, replacements)
            row["patterns"] = {name: told[name] for name in ("patterns", "firing precision", "firing recall")}
            row["effect"] = ablation_effect(sae, lower, model, target, firing, latent, generator)
            if tree is not None:
                row["children"] = tree.of(latent, places, model.tokenizer)
    about = {
        "model": target.title, "hook": target.hook_name, "d_sae": sae.cfg.d_sae, "tokens": firing.tokens,
        "contexts": len(firing.ids_CT), "alive": int((firing.counts_S() > 0).sum()), "latents": latents,
        "two_levels": tree is not None,
    }  # fmt: skip
    return {"about": about, "latents": rows}


def excerpt_groups(excerpts: Iterable[Excerpt], tokenizer: Any, top: int = TOP) -> dict[str, Any]:
    """Excerpts as the page has them: of the largest activations, and near quantiles of all others."""
    every = list(excerpts)
    found: dict[str, Any] = {"top": [shown_excerpt(one, tokenizer) for one in every[:top]], "lower": []}
    rest = every[top:]
    for quantile in QUANTILES if len(rest) >= len(QUANTILES) * LOWER else ():
        middle = min(max(round((1 - quantile) * len(rest)) - LOWER // 2, 0), len(rest) - LOWER)
        part = [shown_excerpt(one, tokenizer) for one in rest[middle : middle + LOWER]]
        found["lower"].append({"quantile": quantile, "excerpts": part})
    return found


def shown_excerpt(one: Excerpt, tokenizer: Any) -> dict[str, Any]:
    from eval_runners.measures.firing import token_texts

    return {"tokens": token_texts(one.ids, tokenizer), "acts": [float(f"{a:.3g}") for a in one.acts], "at": one.at}


def logit_effects(model: Any, row_D: Tensor) -> dict[str, Any]:
    """Words whose logits a decoder row raises and lowers most by itself, through the last norm and the unembedding.

    Per unit of activation, less the mean over all words, and over what the norm divides by. Nothing where the row is
    not of the residual stream.
    """
    from eval_runners.measures.firing import token_texts

    row_D = row_D.float().to(model.W_U.device)
    if len(row_D) != model.cfg.d_model:
        return {"raised": [], "lowered": []}
    if "LN" in str(model.cfg.normalization_type):
        row_D = row_D - row_D.mean()
    row_D = row_D * getattr(getattr(model, "ln_final", None), "w", 1.0)
    change_V = row_D.to(model.W_U.dtype) @ model.W_U
    change_V = (change_V - change_V.mean()).float()
    found = {}
    for name, sign in (("raised", 1), ("lowered", -1)):
        best = (sign * change_V).topk(min(WORDS, len(change_V)))
        texts = token_texts(best.indices.tolist(), model.tokenizer)
        found[name] = [[text, sign * value] for text, value in zip(texts, best.values.tolist(), strict=True)]
    return found


def position_rates(firing: Firing, places: Tensor) -> list[float]:
    """How often a latent fires in equally long stretches of a context, over how often in all; 1 if that is nothing."""
    import torch

    length = firing.ids_CT.shape[1]
    bins = min(BINS, length)
    tokens_B = torch.bincount(
        ((~firing.special_CT).nonzero()[:, 1] * bins) // length, minlength=bins
    )  # fmt: skip
    fires_B = torch.bincount((places % length) * bins // length, minlength=bins)
    rate_B = fires_B / tokens_B.clamp(min=1) / (len(places) / firing.tokens)
    return [float(f"{rate:.3g}") for rate in rate_B.tolist()]


def ablation_effect(
    sae: Any, lower: Any, model: Any, target: Any, firing: Firing, latent: int, generator: Any
) -> dict[str, Any]:
    """What changes without it, in contexts drawn from those in which it fires."""
    import torch

    from eval_runners.measures.causal_trace import trace_latent

    acts_CT = firing.acts_CT(latent)
    within = (acts_CT > 0).any(1).nonzero().squeeze(1)
    within = within[torch.randperm(len(within), generator=generator)[:TRACED]]
    bos = torch.full((len(within), 1), model.tokenizer.bos_token_id)
    places_CT = torch.cat([torch.zeros_like(bos).bool(), acts_CT[within] > 0], 1)
    parent_L = sae.parent_L.cpu() if lower is not None else None
    return trace_latent(
        sae, lower, parent_L, model, target.hook_name, torch.cat([bos, firing.ids_CT[within]], 1), places_CT, latent,
        {"children": latent}, 3, generator,
    )  # fmt: skip


class Children:
    """The lower level of an SAE of two, and whose children its latents are."""

    def __init__(
        self, sae: Any, lower: Any, upper: Firing, target: Any, model: Any, n_contexts: int, context_size: int
    ) -> None:
        from eval_runners.measures.firing import collect_firing

        self.parent_L, self.upper = sae.parent_L.cpu(), upper
        self.firing = collect_firing(lower, target, model, n_contexts, context_size)

    def of(self, latent: int, places: Tensor, tokenizer: Any) -> dict[str, Any]:
        """The children that fire, those first whose firing tells most of their parent's, in bits less the bias."""
        import torch

        from eval_runners.measures.information import mutual_information

        counts_L = self.firing.counts_S()
        mine = [int(child) for child in (self.parent_L == latent).nonzero().squeeze(1)]
        alive = [child for child in mine if counts_L[child]]
        if not alive:
            return {"count": len(mine), "alive": 0, "rows": []}
        both_1K = torch.tensor([[int(torch.isin(self.firing.of(child)[0], places).sum()) for child in alive]])
        bits_1K, bias_1K = mutual_information(
            both_1K.double(), torch.tensor([len(places)]), counts_L[alive], self.firing.tokens
        )
        rows = [
            {
                "latent": child, "bits": float(bits_1K[0, number] - bias_1K[0, number]),
                "density": int(counts_L[child]) / self.firing.tokens,
                "within": int(both_1K[0, number]) / int(counts_L[child]),
                "top": excerpt_groups(islice(self.firing.excerpts(child), 3), tokenizer, 3)["top"],
            }
            for number, child in enumerate(alive)
        ]  # fmt: skip
        rows.sort(key=lambda row: -row["bits"])
        return {"count": len(mine), "alive": len(alive), "rows": rows[:CHILDREN]}
