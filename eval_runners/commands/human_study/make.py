"""python -m eval_runners human-study make: write the questions of a study as one HTML page, and the key beside it."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.harness.fit import check_context, load_for_target
from eval_runners.harness.options import parse_with_overrides
from eval_runners.harness.score import model_loader
from eval_runners.measures.intrusion import CHOICES, Item
from eval_runners.views.page import render_page
from sae_variants.cli.fields import add_fields, given_fields, to_option
from sae_variants.cli.options import (
    Parser,
    add_target_options,
    device_from,
    parse_seeds,
    target_from,
)
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, write_atomically
from sae_variants.common.hashing import hash_value

if TYPE_CHECKING:
    from eval_runners.measures.firing import Excerpt, Firing

OTHERS = 20
"""Latents among whose excerpts an intruder is looked for."""
OFTEN = 10
"""Tokens on which a latent that is asked about fires at least,"""
DENSEST = 0.2
"""and share of tokens on which it fires at most: of others hardly an excerpt is without."""


def main(argv: list[str]) -> int:
    from eval_runners.commands.human_study.files import read_key
    from eval_runners.contract.contract import Evaluation
    from eval_runners.contract.registry import load_evaluator
    from eval_runners.harness.find_sae import locate_all, resolve_requests
    from eval_runners.measures.firing import collect_firing
    from eval_runners.store.envelope import make_output
    from eval_runners.store.result import ResultLocation

    human_study = load_evaluator("human_study")
    parser = Parser(prog="python -m eval_runners human-study make", description=__doc__)
    parser.add_argument("--sae", action="append", required=True, metavar="NAME", dest="saes", help="may be repeated")
    parser.add_argument("--output", default="study.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--seeds", type=parse_seeds, default=[0], metavar="0,1,2", help="of variants (default: 0)")
    add_target_options(parser)
    add_fields(parser, human_study.settings_class, "study")
    args, overrides = parse_with_overrides(parser, argv)
    page, key_file = Path(args.output), Path(args.output).with_suffix(".key.json")
    for file in (page, key_file):
        check_file_writable(file, "--output")
    hide_host_warnings()
    target, device = target_from(args), device_from(args)
    config = human_study.settings_class(**given_fields(args, human_study.settings_class))
    for name, least in (("items", 1), ("n_contexts", 1), ("strongest", CHOICES), ("controls", 0)):
        if getattr(config, name) < least:
            raise UsageError(f"{to_option(name)} must be at least {least}, not {getattr(config, name)}")
    names = list(dict.fromkeys([*args.saes, "random"]))
    found = locate_all(resolve_requests(names, target, overrides, seeds=args.seeds, trained=args.trained), device)
    model = model_loader(target, device)()
    check_context(config.context_size, target, model)
    place = ResultLocation(Path(), human_study.name, target, asdict(config), {}, device, _command("make", argv))
    saes, questions = [], []
    for number, one in enumerate(found):
        sae = load_for_target(one, target, model, device)
        firing = collect_firing(sae, target, model, config.n_contexts, config.context_size)
        questions += _questions(firing, config, number, one.label)
        empty = make_output(human_study, config, {}, sae, target)
        result = place.complete(empty, Evaluation(), one, 0.0)
        saes.append({"path": str(place.path(one)), "learns": one.learns, "result": result})
    weights = [one.weight_hash for one in found]
    random.Random(f"{config.seed} {weights}").shuffle(questions)  # who has the SAEs only can undo it
    items = {str(at): _shown(question, model.tokenizer) for at, question in enumerate(questions, start=1)}
    known = {
        str(at): asdict(q["item"]) | {"latents": q["latents"]} for at, q in enumerate(questions, start=1)
    }  # fmt: skip
    study = hash_value({"items": items, "known": known, "weights": weights})
    if key_file.exists() and read_key(key_file)["study"] != study:
        raise UsageError(f"{key_file} is the key of another study, whose answers need it: give another --output")
    for one in saes:  # of another study of the same SAE there is another result
        one["path"] = str(Path(one["path"]).with_suffix(f".{study}.json"))
    key = {"study": study, "items": items, "known": known, "saes": saes}
    write_atomically(key_file, json.dumps(key), "--output")
    text = render_page("human_study.html", {"study": study, "items": items})
    write_atomically(page, text, "--output")
    labels = ", ".join(dict.fromkeys(one.label for one in found))
    print(f"{page}: {len(items)} questions on {labels}, {len(text.encode()) / 2**20:.1f} MiB")
    print(f"{key_file}: which is which; keep it from whoever answers, and beside the answers when they are scored")
    return 0


def _command(step: str, argv: list[str]) -> list[str]:
    return ["python", "-m", "eval_runners", "human-study", step, *argv]


def _questions(firing: Firing, config: Any, sae: int, label: str) -> list[dict[str, Any]]:
    """Items of one SAE, and its controls, in no order: excerpts with what is known of them."""
    lot = random.Random(f"{config.seed} {sae}")
    counts = firing.counts_S().tolist()
    rare = [latent for latent, n in enumerate(counts) if OFTEN <= n <= DENSEST * firing.tokens]
    lot.shuffle(rare)
    pools: dict[int, list[Excerpt]] = {}

    def pool(latent: int) -> list[Excerpt]:
        if latent not in pools:
            pools[latent] = [one for one, _ in zip(firing.excerpts(latent), range(config.strongest), strict=False)]
        return pools[latent]

    often = (latent for latent in rare if len(pool(latent)) >= CHOICES)
    made = []
    for latent in often:
        if len(made) == config.items:
            break
        acts_CT = firing.acts_CT(latent)
        mine = lot.sample(pool(latent), CHOICES - 1)
        lengths = [len(one.ids) for one in mine]
        strangers = [
            (other, excerpt)
            for other in lot.sample(rare, min(len(rare), OTHERS)) if other != latent
            for excerpt in lot.sample(pool(other), len(pool(other))) if not _fires(acts_CT, excerpt)
        ]  # fmt: skip
        alike = [one for one in strangers if min(lengths) <= len(one[1].ids) <= max(lengths)]  # length tells nothing
        if intruder := next(iter([*alike, *strangers]), None):
            made.append(_mixed(lot, sae, True, [*((latent, one) for one in mine), intruder], CHOICES - 1))
    if len(made) < config.items:
        raise UsageError(
            f"{label}: only {len(made)} latents can be asked about, which fire on {OFTEN} tokens and at most "
            f"{DENSEST:.0%} of {firing.tokens}: lower --items, raise --n-contexts, or leave this SAE out"
        )
    for _ in range(config.controls):
        latents = lot.sample(rare, min(CHOICES, len(rare)))
        if len(latents) == CHOICES:
            drawn = [(latent, lot.choice(pool(latent))) for latent in latents]
            made.append(_mixed(lot, sae, False, drawn, lot.randrange(CHOICES)))
    return made


def _fires(acts_CT: Any, excerpt: Excerpt) -> bool:
    """Whether a latent fires anywhere in an excerpt."""
    return bool(acts_CT[excerpt.context, excerpt.first : excerpt.first + len(excerpt.ids)].any())


def _mixed(lot: Any, sae: int, has_latent: bool, drawn: list[tuple[int, Excerpt]], intruder: int) -> dict[str, Any]:
    order = lot.sample(range(CHOICES), CHOICES)
    item = Item(sae, has_latent, order.index(intruder))
    return {"item": item, "excerpts": [drawn[n][1] for n in order], "latents": [drawn[n][0] for n in order]}


def _shown(question: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Excerpts as the page has them: activations as shares of the excerpt's largest, so that they do not tell."""
    from eval_runners.measures.firing import token_texts

    return [
        {
            "tokens": token_texts(one.ids, tokenizer), "at": one.at,
            "acts": [round(act / max(one.acts), 2) for act in one.acts],
        }
        for one in question["excerpts"]
    ]  # fmt: skip
