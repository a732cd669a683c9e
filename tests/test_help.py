"""Every option of every command explains itself in a sentence that can be read alone."""

from __future__ import annotations

import argparse
import re
from importlib import import_module

import pytest

from eval_runners.commands import evaluate
from eval_runners.contract.registry import evaluator_names
from sae_variants.__main__ import main as variants_main
from sae_variants.cli.options import Parser

COMMANDS = {
    **{
        name: lambda name=name: import_module(f"eval_runners.commands.{name}").main([])
        for name in ("suite", "leaderboard", "report", "serve", "case_study", "publish")
    },
    **{
        f"human_study {step}": lambda step=step: import_module(f"eval_runners.commands.human_study.{step}").main([])
        for step in ("make", "judge", "score")
    },
    **{
        f"export {form}": lambda form=form: import_module(f"eval_runners.commands.export.{form}").main([])
        for form in ("saebench", "neuronpedia")
    },
    **{name: lambda name=name: evaluate.main(name, []) for name in evaluator_names()},
    "train": lambda: variants_main(["train", "temporal"]),
    **{
        name: lambda name=name: import_module(f"sae_variants.commands.{name}").main([])
        for name in ("make_sandbox", "measure_sandbox")
    },
}
DEFAULT = re.compile(r" \(default: [^)]*\)\.?$")
NOT_ALONE = re.compile(r"(The same|And|Or|What|How much|How many|Of|Which|That|Those)\b")


class Captured(Exception):
    """Carries the parser of a command out of it."""


def parser_of(command, monkeypatch) -> argparse.ArgumentParser:
    def capture(self, *args, **kwargs):
        raise Captured(self)

    monkeypatch.setattr(Parser, "parse_known_args", capture)
    monkeypatch.setattr(Parser, "parse_args", capture)
    with pytest.raises(Captured) as caught:
        command()
    return caught.value.args[0]


def options_of(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from options_of(sub)
        elif not isinstance(action, argparse._HelpAction):
            yield action


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_option_is_a_sentence_of_its_own(name, monkeypatch):
    wrong = []
    for action in options_of(parser_of(COMMANDS[name], monkeypatch)):
        text = DEFAULT.sub("", action.help or "").strip()
        begins = bool(text) and not text[0].islower() and not NOT_ALONE.match(text)
        if not begins or not (text.endswith((".", ").")) or DEFAULT.search(action.help or "")):
            wrong.append(f"{'/'.join(action.option_strings) or action.dest}: {action.help!r}")
    assert not wrong
