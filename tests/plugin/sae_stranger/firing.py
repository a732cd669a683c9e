"""firing: how many latents fire on a token of held-out text."""

from dataclasses import dataclass

from eval_runners import Evaluation, Metric, heldout_activations, output
from eval_runners import output_class as envelope


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 16
    """Contexts that are read."""
    context_size: int = 32
    """Tokens in a context."""


METRICS = (Metric("l0", "latents per token", "neither", "eval_result_metrics.all.l0", short="firing"),)


def output_class():
    return envelope("firing", EvalConfig, ("all",), ("l0",))


def evaluate(sae, target, config, *, model, device):
    counts = [
        (sae.encode(acts[~special]) > 0).sum(-1).float().mean().item()
        for acts, special in heldout_activations(target, model, config.n_contexts, config.context_size)
    ]
    l0 = sum(counts) / len(counts)
    result = output("firing", config, {"all": {"l0": l0}}, sae, target)
    return Evaluation(result, failures=[] if l0 else ["no latent fires"])
