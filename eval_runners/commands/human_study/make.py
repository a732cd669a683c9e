"""python -m eval_runners human-study make: write the questions of a study as one HTML page, and the key beside it."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval_runners.commands.human_study.files import COMMAND, read_key
from eval_runners.contract.contract import Context, Evaluation
from eval_runners.contract.registry import load_evaluator
from eval_runners.data.heldout import tokenizer_of
from eval_runners.harness.find_sae import check_requests, locate_all, resolve_requests
from eval_runners.harness.fit import check_context, load_for_target
from eval_runners.harness.options import add_sae_option, parse_with_overrides
from eval_runners.harness.target_model import model_loader, require_source
from eval_runners.measures.intrusion import CHOICES
from eval_runners.store.envelope import make_output
from eval_runners.store.result import ResultLocation
from eval_runners.views.page import render_page
from sae_variants.cli.fields import add_fields, given_fields, to_option
from sae_variants.cli.options import Parser, add_target_options, device_from, parse_seeds, target_from
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, write_atomically
from sae_variants.common.hashing import hash_value

SMALLEST = {"items": 1, "n_contexts": 1, "strongest": CHOICES, "controls": 0}
"""Setting -> smallest value."""


def main(argv: list[str]) -> int:
    """Write the page and the key.

    Raises:
        UsageError: anything that cannot work, before any SAE is trained where it can be known.
    """
    evaluator = load_evaluator("human_study")
    args, overrides = parse_with_overrides(_parser(evaluator.settings_class), argv)
    page, key_file = Path(args.output), Path(args.output).with_suffix(".key.json")
    for file in (page, key_file):
        check_file_writable(file, "--output")
    hide_host_warnings()
    target = target_from(args)
    require_source("human-study", target)
    settings = evaluator.settings_class(**given_fields(args, evaluator.settings_class))
    for name, smallest in SMALLEST.items():
        if getattr(settings, name) < smallest:
            raise UsageError(f"{to_option(name)} must be at least {smallest}, not {getattr(settings, name)}")
    names = list(dict.fromkeys([*args.saes, "random"]))
    check_requests(names, target, overrides, seeds=args.seeds)
    # PyTorch, which takes seconds, is imported after what can be refused without it.
    from eval_runners.measures.firing import collect_firing
    from eval_runners.measures.intruder_questions import Question, question_texts, sample_questions

    device = device_from(args)
    requests = resolve_requests(names, target, overrides, seeds=args.seeds, trained=args.trained)
    located = locate_all(requests, device)
    model = model_loader(target, device)()
    check_context(settings.context_size, target, model)
    command = [*COMMAND, "make", *argv]
    location = ResultLocation(Path(), evaluator.name, target, asdict(settings), {}, command, evaluator.version)
    saes: list[dict[str, Any]] = []
    questions: list[Question] = []
    for number, one in enumerate(located):
        sae = load_for_target(one, target, model, device)
        firing = collect_firing(sae, target, model, settings.n_contexts, settings.context_size)
        questions += sample_questions(
            firing, number, one.label, settings.items, settings.controls, settings.strongest, settings.seed
        )
        unscored = make_output(evaluator, settings, {}, sae, target)
        result = location.complete(unscored, Evaluation(), Context(model, device, one), 0.0)
        saes.append({"path": str(location.path(one)), "learns": one.learns, "result": result})
    weights = [one.weight_hash for one in located]
    random.Random(f"{settings.seed} {weights}").shuffle(questions)  # only someone with the SAEs can undo it
    numbered = {str(number): question for number, question in enumerate(questions, start=1)}
    items = {name: question_texts(question, tokenizer_of(model)) for name, question in numbered.items()}
    known = {name: asdict(question.item) | {"latents": question.latents} for name, question in numbered.items()}
    study = hash_value({"items": items, "known": known, "weights": weights})
    if key_file.exists() and read_key(key_file)["study"] != study:
        raise UsageError(f"{key_file} is the key of another study, whose answers need it: give another --output")
    for entry in saes:  # another study of the same SAE has another result
        entry["path"] = str(Path(entry["path"]).with_suffix(f".{study}.json"))
    key = {"study": study, "items": items, "known": known, "saes": saes}
    write_atomically(key_file, json.dumps(key), "--output")
    text = render_page("human_study.html", {"study": study, "items": items})
    write_atomically(page, text, "--output")
    labels = ", ".join(dict.fromkeys(one.label for one in located))
    print(f"{page}: {len(items)} questions on {labels}, {len(text.encode()) / 2**20:.1f} MiB")
    print(f"{key_file}: the solutions; keep them from the raters, and put them beside the answers for scoring")
    return 0


def _parser(settings_class: type) -> Parser:
    parser = Parser(prog="python -m eval_runners human-study make", description=__doc__)
    add_sae_option(parser, "A variant, stock:ARCHITECTURE, a folder, or user/repo:sae_id on the Hub; may be repeated.")
    parser.add_argument("--output", default="study.html", metavar="FILE", help="The page (default: %(default)s).")
    parser.add_argument(
        "--seeds", type=parse_seeds, default=[0], metavar="0,1,2", help="Seeds of the variants (default: 0)."
    )
    add_target_options(parser)
    add_fields(parser, settings_class, "study")
    return parser
