"""python -m eval_runners human-study judge: have a language model answer the questions of a study.

The language model is behind any endpoint that speaks OpenAI's API and is given by `--url`. A key, if the endpoint needs
one, is read from OPENAI_API_KEY and is never printed. After an interruption, the same command continues with the
questions that have no answer yet.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_runners.commands.human_study.files import read_answers, read_key
from eval_runners.data.endpoint import FEWEST_REFUSED, Refused, ask, check_endpoint
from eval_runners.measures.intrusion import CHOICES
from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, write_atomically


def main(argv: list[str]) -> int:
    """Ask every question that has no answer yet, and save each answer at once.

    Returns:
        0 if there is an answer, else 1.

    Raises:
        UsageError: files, a URL or a key that do not fit, or an endpoint that does not answer.
    """
    from tqdm import tqdm

    args = _parse(argv)
    key = read_key(Path(args.key))
    check_endpoint(args.url)
    file_name = re.sub(r"[^\w.-]+", "_", args.model)
    output = Path(args.output) if args.output else Path(args.key).with_name(f"{file_name}.answers.json")
    check_file_writable(output, "--output")
    saved = _saved_answers(output, key["study"], args.model)
    answers: dict[str, int] = saved["answers"]
    unclear, refused = 0, []
    for question in tqdm([name for name in key["items"] if name not in answers], desc="questions"):
        try:
            prompt = {"role": "user", "content": make_prompt(key["items"][question])}
            choice = parse_choice(ask(args.url, args.model, [prompt]))
        except Refused as error:
            refused.append(str(error))
            if len(refused) == FEWEST_REFUSED and not answers:
                raise UsageError(f"{refused[0]}: check --model") from error
            continue
        if choice is None:
            unclear += 1
            continue
        answers[question] = choice
        write_atomically(output, json.dumps(saved), "--output")
    print(f"{output}: {len(answers)} of {len(key['items'])} answers")
    if unclear:
        print(f"{unclear} replies did not name one number from 1 to {CHOICES}; the same command asks those again")
    if refused:
        print(f"{len(refused)} questions were refused; the first: {refused[0]}")
    return 0 if answers else 1


def _parse(argv: list[str]) -> Namespace:
    parser = Parser(prog="python -m eval_runners human-study judge", description=__doc__)
    parser.add_argument("key", metavar="KEY", help="The .key.json that `make` wrote beside the page.")
    parser.add_argument("--url", required=True, help="An OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
    parser.add_argument("--model", required=True, metavar="NAME", help="The endpoint's name of the language model.")
    parser.add_argument("--output", metavar="FILE", help="File of the answers (default: beside the key).")
    return parser.parse_args(argv)


def _saved_answers(output: Path, study: str, model: str) -> dict[str, Any]:
    """The answers of an interrupted command, or none."""
    empty = {"study": study, "rater": model, "kind": "model", "answers": {}}
    if not output.exists():
        return empty
    saved = read_answers(output)
    if any(saved[name] != empty[name] for name in ("study", "rater", "kind")):
        raise UsageError(f"{output} holds other answers; give another --output")
    return saved


def make_prompt(excerpts: Sequence[dict[str, Any]]) -> str:
    """The prompt of one question; the token on which a latent fires most stands in double brackets."""
    lines = [
        f"{number}. " + "".join(f"[[{t}]]" if i == excerpt["at"] else t for i, t in enumerate(excerpt["tokens"]))
        for number, excerpt in enumerate(excerpts, start=1)
    ]
    return (
        f"Four of these {CHOICES} excerpts of text have something in common at or before the marked place, and one "
        "does not belong. Sometimes nothing is to be seen: then guess.\n\n"
        + "\n\n".join(lines)
        + "\n\nWhich one does not belong? Answer with its number alone."
    )


def parse_choice(reply: str) -> int | None:
    """The excerpt that a reply names, from 0, or None for a reply that does not name exactly one."""
    numbers = set(re.findall(rf"\b[1-{CHOICES}]\b", reply))
    return int(numbers.pop()) - 1 if len(numbers) == 1 else None
