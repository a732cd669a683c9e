"""python -m eval_runners case-study: single latents of an SAE as one HTML page that opens from disk.

Of each latent: contexts in which it fires most, and some in which it fires less, tokens shaded by activation; how often
it fires, and where in a context; the words whose logits it raises and lowers; patterns of tokens that tell it (n2g);
the decoder rows nearest to its own; what changes without it. Of an upper latent of two levels also its children, and
what their firing tells of its own.

--latents best:12 takes those without which the squared error would rise most per token on which they fire, of those
that fire in ten contexts; random:20 draws among the same; 3,17,40 are numbers.

Shapes: C contexts, T tokens of a context without BOS, D = d_in, V words, S = d_sae.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eval_runners.harness.options import TRAIN_PREFIX
from eval_runners.harness.score import check_context, check_fits, model_loader
from eval_runners.measures.latent_sheet import describe_latents, parse_latents
from eval_runners.views.page import render_page
from sae_variants.cli.options import (
    Parser,
    add_target_options,
    device_from,
    parse_extra_options,
    parse_positive,
    parse_whole,
    split_unknown_options,
    target_from,
)
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, write_atomically

if TYPE_CHECKING:
    pass


def main(argv: list[str]) -> int:
    from eval_runners.harness.find_sae import resolve_requests, train_missing

    parser = Parser(prog="python -m eval_runners case-study", description=__doc__)
    parser.add_argument(
        "--sae",
        required=True,
        action="append",
        metavar="NAME",
        help="a variant, stock:ARCHITECTURE, a folder, or user/repo:sae_id",
    )
    parser.add_argument("--latents", default="best:12", help="best:N, random:N or numbers (default: %(default)s)")
    parser.add_argument("--output", default="case-study.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument(
        "--n-contexts", type=parse_positive, default=256, help="held-out contexts (default: %(default)s)"
    )
    parser.add_argument("--context-size", type=parse_positive, default=128, help="of tokens (default: %(default)s)")
    parser.add_argument("--seed", type=parse_whole, default=0, help="of a variant, and of what is drawn (default: 0)")
    add_target_options(parser)
    parser.epilog = "A variant that is not trained yet is trained first; --train.FIELD VALUE sets with what."
    words, extra = split_unknown_options(parser, argv)
    args = parser.parse_args(words)
    overrides = parse_extra_options(extra, prefix=TRAIN_PREFIX)
    if len(args.sae) > 1:
        raise UsageError("--sae is given once: a page shows one SAE")
    parse_latents(args.latents)
    check_file_writable(Path(args.output), "--output")
    hide_host_warnings()
    target, device = target_from(args), device_from(args)
    found, failures = train_missing(
        resolve_requests(args.sae, target, overrides, [{}], [args.seed], args.trained), [], device
    )
    if failures:
        raise UsageError(failures[0])
    model = model_loader(target, device)()
    sae = found[0].load(device)
    check_fits(sae, found[0].label, target, model)
    check_context(args.context_size, target, model)
    data = describe_latents(sae, target, model, args.latents, args.n_contexts, args.context_size, args.seed)
    data["about"]["sae"] = found[0].label + ("" if found[0].seed is None else f", seed {found[0].seed}")
    text = render_page("case_study.html", data)
    write_atomically(Path(args.output), text, "--output")
    print(f"{args.output}: {len(data['latents'])} latents, {len(text.encode()) / 2**20:.1f} MiB")
    return 0
