"""firing: how many latents fire on a token of held-out text."""

from dataclasses import dataclass

from eval_runners import Evaluation, Metric, envelope, envelope_class, heldout_activations

METRICS = (Metric("l0", "latents per token", "neither", "eval_result_metrics.all.l0", short="firing"),)


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 16
    """Contexts that are read."""


def output_class():
    return envelope_class("firing", EvalConfig, categories=("all",), metrics=("l0",))


def evaluate(sae, target, config, *, model, device):
    batches = heldout_activations(target, model, config.n_contexts, context_size=32)
    counts = [(sae.encode(acts[~special]) > 0).sum(-1).float().mean().item() for acts, special in batches]
    result = envelope("firing", config, {"all": {"l0": sum(counts) / len(counts)}}, sae, target)
    return Evaluation(result, failures=[] if any(counts) else ["no latent fires"])
