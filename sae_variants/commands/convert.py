"""Command `convert`: save an SAE of any layout that is known in SAELens' layout."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.cli.options import Parser, parse_number
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.common.files import new_folder
from sae_variants.formats.source import load_unfolded, save
from sae_variants.registry.build import load

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

INPUTS = 256
"""Random inputs on which the reconstructions are compared."""
HOOK = re.compile(r"([a-z0-9_]+\.)*hook_[a-z0-9_]+")
"""Names of TransformerLens' hooks."""
ASKED = {
    "model_name": ("the language model", "--model-name"),
    "hook_name": ("the hook", "--hook-name"),
    "prepend_bos": ("whether contexts begin with BOS", "--prepend-bos"),
}
"""Metadata that SAELens needs -> what it is, and the option that supplies it."""


def make_parser() -> Parser:
    """Return the parser of `python -m sae_variants convert`."""
    parser = Parser(
        prog="python -m sae_variants convert",
        description="Save an SAE in SAELens' layout. Sources are a folder of SAELens 3 to 6, dictionary_learning,"
        " sparsify or Gemma Scope, user/repo@revision:path on the Hub, or RELEASE:SAE_ID of SAELens' registry.",
    )
    parser.add_argument("source", metavar="SOURCE", help="The SAE.")
    parser.add_argument("folder", metavar="FOLDER", help="Where to save it; must be empty or absent.")
    parser.add_argument("--model-name", metavar="NAME", help="Language model, where the source does not name it.")
    parser.add_argument("--hook-name", metavar="HOOK", help="Hook, such as blocks.8.hook_resid_post.")
    parser.add_argument(
        "--prepend-bos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Whether contexts begin with BOS, where the source does not say.",
    )
    parser.add_argument("--fold-norms", action="store_true", help="Give the decoder rows unit norm.")
    parser.add_argument(
        "--norm-scaling-factor",
        type=parse_number,
        metavar="X",
        help="Factor that inputs were multiplied with in training; it is folded into the weights.",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="Data type of the weights (default: the source's)."
    )
    return parser


def main(argv: list[str]) -> int:
    """Convert an SAE and print how much its reconstruction of random inputs differs from the source's."""
    args = make_parser().parse_args(argv)
    hide_host_warnings()
    folder = Path(args.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty: give another FOLDER")
    if args.hook_name is not None and not HOOK.fullmatch(args.hook_name):
        raise UsageError(f"--hook-name must be a hook's name, such as blocks.8.hook_resid_post, not {args.hook_name!r}")
    sae = load_unfolded(args.source, args.norm_scaling_factor)
    _complete(sae, args)
    inputs_ND = _random_inputs(sae)
    before_ND = _reconstruct(sae, inputs_ND)
    _check_finite(sae, before_ND, args.source)
    if args.fold_norms:
        try:
            sae.fold_W_dec_norm()
        except NotImplementedError as error:
            raise UsageError(f"--fold-norms would change {args.source}: {error}") from error
    if args.dtype:
        import torch

        sae = sae.to(dtype=getattr(torch, args.dtype))
    _check_finite(sae, _reconstruct(sae, inputs_ND), f"{args.source} with these options")
    with new_folder(folder, "FOLDER") as partial:
        save(sae, partial)
    difference = (_reconstruct(load(folder), inputs_ND) - before_ND).abs().max().item()
    cfg, metadata = sae.cfg, sae.cfg.metadata
    print(f"{folder}: {cfg.architecture()}, {cfg.d_in} to {cfg.d_sae}, {metadata.model_name}, {metadata.hook_name}")
    print(
        f"largest difference of the reconstruction on {INPUTS} random inputs: {difference:.2g}"
        f" (largest value: {before_ND.abs().max().item():.2g})"
    )
    return 0


def _complete(sae: SAE[Any], args: argparse.Namespace) -> None:
    """Fill in the metadata from the options.

    Raises:
        UsageError: The source and the options leave something open, or contradict each other.
    """
    metadata = sae.cfg.metadata
    for name, (what, option) in ASKED.items():
        stated, given = metadata[name], getattr(args, name)
        if given is not None and stated not in (None, given):
            raise UsageError(f"{args.source} states {what}: {stated}; leave out {option} {given}")
        metadata[name] = stated if given is None else given
    if missing := [ASKED[name] for name in ASKED if metadata[name] is None]:
        what = ", ".join(what for what, _ in missing)
        raise UsageError(f"{args.source} does not state {what}: give {', '.join(option for _, option in missing)}")


def _check_finite(sae: SAE[Any], outputs_ND: Tensor, what: str) -> None:
    """Check the reconstruction of random inputs.

    Raises:
        UsageError: It holds NaN or infinite values; the message names the tensors that do.
    """
    if outputs_ND.isfinite().all():
        return
    why = [f"{name} holds such values" for name, values in sae.named_parameters() if not values.isfinite().all()]
    if n_zero := int((sae.W_dec == 0).all(-1).sum()):
        why.append(f"{n_zero} rows of W_dec are zero")
    because = f": {', '.join(why)}" if why else ""
    raise UsageError(f"{what} reconstructs random inputs as NaN or infinite values{because}")


def _random_inputs(sae: SAE[Any]) -> Tensor:
    import torch

    return torch.randn(INPUTS, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))


def _reconstruct(sae: SAE[Any], inputs_ND: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return sae(inputs_ND).float()
