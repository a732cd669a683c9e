"""Values that users type take the annotated type of their field, or end in one line."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from sae_variants.cli.fields import add_fields, given_fields
from sae_variants.cli.options import Parser, parse_extra_options, split_unknown_options
from sae_variants.common.errors import UsageError
from sae_variants.common.values import check_type


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, float, 3.0),
        (3.0, int, 3),
        (3, int | float, 3),
        (3.0, int | float, 3.0),
        (None, float | None, None),
        ("a", Literal["a", "b"], "a"),
        ([1, 2], list[int], [1, 2]),
        (1, list[int], [1]),
        (3.0, Any, 3.0),
    ],
)
def test_a_value_takes_its_annotated_type(value, hint, expected):
    converted = check_type("x", value, hint)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        (3.5, int, "x must be int, not 3.5"),
        (True, int, "x must be int, not True"),
        (1, bool, "x must be bool, not 1"),
        (math.nan, float, "x must be float, not nan"),
        (math.inf, float, "x must be float, not inf"),
        ("3", float | None, "x must be float or None, not '3'"),
        ("c", Literal["a", "b"], "x must be a, b, not 'c'"),
        ([1, "a"], list[int], "x must be list[int], not [1, 'a']"),
        ("a", list[int], "x must be list[int], not ['a']"),
    ],
)
def test_a_value_of_another_type_is_one_line(value, hint, says):
    with pytest.raises(UsageError) as refused:
        check_type("x", value, hint)
    assert str(refused.value) == says


@dataclass
class Settings:
    d_sae: int = 8
    """Number of latents, 100 % of them."""
    ks: tuple[int, ...] = (1, 2)
    """Numbers of latents."""
    rate: float | None = None
    """Rate, or none."""
    start: Literal["copies", "random"] = "copies"
    """Initialisation."""
    tracing: bool = False
    """Whether steps are traced."""


def given(*words: str) -> dict[str, Any]:
    parser = Parser(prog="p")
    add_fields(parser, Settings, "settings")
    return given_fields(parser.parse_args(words), Settings)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("--d-sae", "1e6"), {"d_sae": 1_000_000}),
        (("--ks", "1,2,5"), {"ks": (1, 2, 5)}),
        (("--rate", "none"), {"rate": None}),
        (("--rate=3",), {"rate": 3.0}),
        (("--start", "random"), {"start": "random"}),
        (("--tracing",), {"tracing": True}),
        (("--tracing", "false"), {"tracing": False}),
    ],
)
def test_options_of_a_dataclass(words, expected):
    assert given(*words) == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--d-sae", "1.5"), "'1.5' is not a whole number"),
        (("--ks", "1,x"), "'x' is not a whole number"),
        (("--ks", ","), "at least one value is needed"),
        (("--rate", "fast"), "'fast' is not a number"),
        (("--start", "zeros"), "zeros must be copies, random, not 'zeros'"),
        (("--tracing", "perhaps"), "'perhaps' is neither true nor false"),
    ],
)
def test_options_that_do_not_fit_are_one_line(words, says):
    with pytest.raises(UsageError, match=says):
        given(*words)


def test_help_of_a_dataclass():
    parser = Parser(prog="p")
    add_fields(parser, Settings, "settings")
    text = " ".join(parser.format_help().split())
    assert "--d-sae INT Number of latents, 100 % of them. (default: 8)" in text
    assert "--ks A,B,... Numbers of latents. (default: 1,2)" in text
    assert "--start copies|random" in text


def test_options_that_a_parser_does_not_know_are_values_by_name():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seed")
    known, unknown = split_unknown_options(parser, "a --seed 3 --train.k 4 b --train.d-sae=8 --train.x -1".split())
    assert known == ["a", "--seed", "3", "b"]
    assert unknown == ["--train.k", "4", "--train.d-sae=8", "--train.x", "-1"]
    assert parse_extra_options(unknown, prefix="train.") == {"k": 4, "d_sae": 8, "x": -1}


@pytest.mark.parametrize(
    ("word", "says"), [("--train.k", "option --train.k needs a value"), ("--k=3", "unknown option")]
)
def test_an_unknown_option_that_cannot_be_used(word, says):
    with pytest.raises(UsageError, match=says):
        parse_extra_options(split_unknown_options(argparse.ArgumentParser(), [word])[1], prefix="train.")


def test_none_is_a_word_where_the_type_knows_no_nothing():
    assert check_type("x", None, str) == "none"
    assert check_type("x", None, Literal["none", "layer_norm"]) == "none"
    assert check_type("x", None, str | None) is None
    with pytest.raises(UsageError):
        check_type("x", None, int)
