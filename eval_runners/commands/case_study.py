"""python -m eval_runners case-study: single latents of an SAE as one HTML page that opens from disk.

For each latent the page shows the contexts in which it fires most and some in which it fires less, its firing rate and
its rate by position, the tokens whose logits it raises and lowers, token patterns that predict it (n2g), the decoder
rows nearest to its decoder row, and what ablating it changes. For an upper latent of two levels it adds the children,
and how much their firing tells about their parent's.

`--latents best:12` takes the latents whose removal raises the squared error most, per token on which they fire, among
those that fire in ten contexts. `random:20` samples from the same latents. `3,17,40` are latent numbers.
"""

from __future__ import annotations

from pathlib import Path

from eval_runners.harness.find_sae import locate_all, resolve_requests
from eval_runners.harness.fit import load_for_target
from eval_runners.harness.options import parse_with_overrides
from eval_runners.harness.target_model import model_loader, require_source
from eval_runners.measures.latent_choice import LatentChoice
from eval_runners.views.page import render_page
from sae_variants.cli.options import (
    Parser,
    add_target_options,
    device_from,
    parse_positive,
    parse_whole,
    target_from,
)
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, write_atomically


def main(argv: list[str]) -> int:
    """Write the page.

    Raises:
        UsageError: anything that cannot work, before any SAE is trained where it can be known.
    """
    from eval_runners.measures.latent_sheet import describe_latents

    args, overrides = parse_with_overrides(_parser(), argv)
    if len(args.sae) > 1:
        raise UsageError("--sae is given once: a page shows one SAE")
    output = Path(args.output)
    check_file_writable(output, "--output")
    hide_host_warnings()
    target, device = target_from(args), device_from(args)
    require_source("case-study", target)
    requests = resolve_requests(args.sae, target, overrides, seeds=[args.seed], trained=args.trained)
    (located,) = locate_all(requests, device)
    model = model_loader(target, device)()
    sae = load_for_target(located, target, model, device, args.context_size)
    data = describe_latents(sae, target, model, args.latents, args.n_contexts, args.context_size, args.seed)
    data["about"]["sae"] = located.label if located.seed is None else f"{located.label}, seed {located.seed}"
    text = render_page("case_study.html", data)
    write_atomically(output, text, "--output")
    print(f"{output}: {len(data['latents'])} latents, {len(text.encode()) / 2**20:.1f} MiB")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m eval_runners case-study", description=__doc__)
    parser.add_argument(
        "--sae",
        required=True,
        action="append",
        metavar="NAME",
        help="A variant, stock:ARCHITECTURE, a folder, or user/repo:sae_id on the Hub.",
    )
    parser.add_argument(
        "--latents",
        type=LatentChoice.parse,
        default="best:12",
        metavar="CHOICE",
        help="Latents to show: best:N, random:N, or numbers (default: %(default)s).",
    )
    parser.add_argument("--output", default="case-study.html", metavar="FILE", help="The page (default: %(default)s).")
    parser.add_argument(
        "--n-contexts", type=parse_positive, default=256, help="Held-out contexts that are read (default: %(default)s)."
    )
    parser.add_argument(
        "--context-size", type=parse_positive, default=128, help="Tokens in a context (default: %(default)s)."
    )
    parser.add_argument(
        "--seed", type=parse_whole, default=0, help="Seed of a variant and of all random draws (default: 0)."
    )
    add_target_options(parser)
    parser.epilog = "A variant that is not trained yet is trained first; --train.FIELD VALUE sets its config fields."
    return parser
