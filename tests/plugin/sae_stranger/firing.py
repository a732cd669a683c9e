"""How many latents fire on a token of held-out text?"""

from dataclasses import dataclass

from eval_runners import Evaluator, Metric, heldout_activations


@dataclass(frozen=True)
class Settings:
    n_contexts: int = 16
    """Held-out contexts to read."""


class Firing(Evaluator[Settings]):
    settings_class = Settings
    metrics = (Metric("all", "l0", "latents per token", "neither", short="firing"),)

    def evaluate(self, sae, target, settings, context):
        batches = heldout_activations(target, context.model, settings.n_contexts, context_size=32)
        counts = [(sae.encode(acts[~special]) > 0).sum(-1).float().mean().item() for acts, special in batches]
        return {"all.l0": sum(counts) / len(counts)}
