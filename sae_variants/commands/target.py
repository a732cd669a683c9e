"""Command `target check`: load a target's model, hook and ten documents, and print what they are."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from sae_variants.cli.options import Parser, device_from
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.language_model.contexts import read_contexts, target_documents
from sae_variants.language_model.documents import Chat, Document, TokenIds
from sae_variants.language_model.target import Target, load_target
from sae_variants.training.recipe import check_plans, check_recipe

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

N_ROWS = 10
N_TOKENS = 8
N_CONTEXTS = 64


def main(argv: list[str]) -> int:
    """Check a target and print what it holds."""
    parser = Parser(prog="python -m sae_variants target", description="Check a target of your own.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check", help="Load model, hook and ten documents of a target, and print what they are."
    )
    check.add_argument("target", metavar="FILE", help="Target file, or name of a target.")
    check.add_argument("--device", default=None, help="Device, such as cpu or cuda (default: cuda if available).")
    args = parser.parse_args(argv)
    hide_host_warnings()
    target, device = load_target(args.target), device_from(args)
    check_recipe(target)
    check_plans(target)
    describe = describe_synthetic if target.synthetic else describe_target
    for name, value in describe(target, device).items():
        print(f"{name:22} {value}")
    return 0


def describe_target(target: Target, device: str) -> dict[str, str]:
    """Load the model and ten documents, and return what was found, by name.

    Raises:
        UsageError: The model, the hook or the text cannot be used, or they do not fit each other.
    """
    from sae_variants.language_model.hooks import hook_width
    from sae_variants.language_model.load import load_model

    documents = list(itertools.islice(target_documents(target, "train"), N_ROWS))
    model = load_model(target.model_name, device, target.dtype)
    width = hook_width(model, target.hook_name)
    context_size = check_context_size(target, model.cfg.n_ctx)
    first = next(read_contexts(target, model, context_size), None)
    if first is None:
        raise UsageError(f"the text of {target.name} is shorter than one context of {context_size} tokens")
    tokenizer: Any = model.tokenizer
    lengths = [_count_tokens(document, model) for document in documents]
    shown = [tokenizer.decode([token]) for token in first[:N_TOKENS].tolist()]
    bos = tokenizer.bos_token
    return {
        "target": f"{target.name}: {target.title}",
        "model": f"{target.model_name}: {model.cfg.original_architecture}, {model.cfg.n_layers} layers, "
        f"{model.cfg.n_ctx} positions, {model.cfg.d_vocab} token ids, {target.dtype}",
        "hook": f"{target.hook_name}: {width} wide",
        "text": f"{target.text_id}" + (f", trained on {target.train_text_id}" if not target.is_split else ""),
        "kind of documents": _kind_of(documents[0]),
        "tokens of ten rows": ", ".join(map(str, lengths)),
        "BOS": f"{bos!r} (id {tokenizer.bos_token_id})" if bos is not None else "none",
        "first tokens": " ".join(map(repr, shown)),
        "starts with BOS": "yes" if int(first[0]) == tokenizer.bos_token_id else "no",
    }


def describe_synthetic(target: Target, device: str) -> dict[str, str]:
    """Load a synthetic model and sample a few contexts, and return what was found, by name.

    Raises:
        UsageError: The model cannot be made.
    """
    import torch

    from sae_variants.synthetic.model import load_synthetic

    data = load_synthetic(target.synthetic or {}, device, f"[synthetic] of {target.name}")
    fires_NF = torch.cat([acts_CTF.flatten(0, 1) > 0 for acts_CTF in data.features(N_CONTEXTS, 128, "check")])
    rates_F, hierarchy = fires_NF.float().mean(0), data.model.hierarchy
    lives = data.half_lives_F
    return {
        "target": f"{target.name}: {target.title}",
        "model": f"{target.model_name}, {data.origin}: {len(rates_F)} features in {data.d_in} dimensions",
        "features of a token": f"{float(fires_NF.sum(1).float().mean()):.1f}",
        "firing rates": f"{float(rates_F.min()):.2g} to {float(rates_F.max()):.2g}",
        "trees": f"{len(hierarchy.roots)}" if hierarchy is not None else "none",
        "half-lives": f"{float(lives.min()):.2g} to {float(lives.max()):.2g} tokens" if lives is not None else "none",
    }


def check_context_size(target: Target, n_ctx: int) -> int:
    """Return the number of tokens in a context of the target's recipe; raise a UsageError if the model is shorter."""
    from sae_variants.training.settings import TrainSettings

    context_size = int(target.train.get("context_size", TrainSettings.context_size))
    if context_size > n_ctx:
        raise UsageError(
            f"context_size = {context_size} in [train] of {target.name} exceeds the model's {n_ctx} positions"
        )
    return context_size


def _count_tokens(document: Document, model: HookedTransformer) -> int:
    if isinstance(document, TokenIds):
        return len(document.ids)
    tokenizer: Any = model.tokenizer
    text = document.render(tokenizer) if isinstance(document, Chat) else document
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _kind_of(document: Document) -> str:
    if isinstance(document, TokenIds):
        return "tokenised rows, used as they are"
    return "conversations, by the chat template" if isinstance(document, Chat) else "text"
