"""python -m eval_runners case-study: single latents of an SAE as one HTML page that opens from disk.

For each latent the page shows the contexts in which it fires most and some in which it fires less, a histogram of its
activations, its firing rate and its rate by position, the tokens on which it fires, the tokens whose logits it raises
and lowers, token patterns that predict it (n2g), the latents that lie nearest to it, correlate with it and fire
together with it, and what ablating it changes. For an upper latent of two levels it adds the children, and how much
their firing tells about their parent's.

`--latents best:12` takes the latents whose removal raises the squared error most, per token on which they fire, among
those that fire in ten contexts. `random:20` samples from the same latents. `3,17,40` are latent numbers.

`--sae A --sae B` shows latents of A, each beside the latent of B that matches it by decoder direction. `--folder DIR`
keeps a page of many latents small: each latent has a file of its own there, which is read when it is chosen.

With `--target synthetic` there is no text. Each latent is shown beside the true feature that is nearest to it: cosine,
precision and recall of its firing, and the features that are there where it fires; children with the true tree.

`--picture FILE` draws the first latent in the size of a README, for light pages as FILE and for dark ones beside it:
latent-dark.png beside latent.png. With `--page PAGE` it is a latent of a page that was written before, and nothing is
measured: `case-study --page PAGE --latents 111 --picture FILE`.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.harness.find_sae import check_requests, known_width, locate_all, resolve_requests
from eval_runners.harness.fit import load_for_target
from eval_runners.harness.options import parse_with_overrides
from eval_runners.harness.target_model import model_loader, require_source
from eval_runners.measures.latent_choice import LatentChoice
from eval_runners.views.case_pages import PAGE, case_page, check_case_folder, write_case_folder
from eval_runners.views.figures import check_pictures, write_pictures
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

if TYPE_CHECKING:
    from eval_runners.contract.located import LocatedSAE
    from sae_variants.language_model.target import Target

LATENTS, OUTPUT = "best:12", "case-study.html"
"""Defaults of `--latents` and `--output`."""


def main(argv: list[str]) -> int:
    """Write the page.

    Raises:
        UsageError: anything that cannot work, before any SAE is trained where it can be known.
    """
    parser = _parser()
    args, overrides = parse_with_overrides(parser, argv)
    if args.picture:
        check_pictures(Path(args.picture), (".png",), "--picture")
    if args.page:
        return _draw_from_page(args)
    if not args.sae:
        raise UsageError("--sae is missing: name the SAE whose latents are shown, or a page of them with --page")
    if len(args.sae) > 2:
        raise UsageError("--sae is given once, or twice to show matched latents of two SAEs side by side")
    if len(set(args.sae)) < len(args.sae):
        raise UsageError(f"--sae {args.sae[0]} is given twice: give two SAEs, or the folders of two seeds")
    if args.folder is None:
        check_file_writable(Path(args.output or OUTPUT), "--output")
    elif args.output:
        raise UsageError("--folder writes files in place of the page that --output writes: give one of the two")
    else:
        check_case_folder(Path(args.folder), "--folder")
    hide_host_warnings()
    target = target_from(args)
    require_source("case-study", target, needs_truth=None)
    if target.synthetic and args.picture:
        raise UsageError(f"--picture draws a latent on text, and {target.name} is synthetic: leave it out")
    if target.synthetic and len(args.sae) > 1:
        raise UsageError(
            f"--sae twice shows SAEs on text, and {target.name} is synthetic: give one, and a page for each"
        )
    check_requests(args.sae, target, overrides, seeds=[args.seed])
    device = device_from(args)
    requests = resolve_requests(args.sae, target, overrides, seeds=[args.seed], trained=args.trained)
    choice = args.latents or LatentChoice.parse(LATENTS)
    if width := known_width(requests[0]):
        choice.check_exist(width)
    _write(args, _describe(args, choice, target, device, locate_all(requests, device)))
    return 0


def _describe(
    args: Namespace, choice: LatentChoice, target: Target, device: str, located: list[LocatedSAE]
) -> dict[str, Any]:
    """Measure the latents of one SAE, or matched latents of two."""
    from eval_runners.measures.latent_sheet import describe_latents
    from eval_runners.measures.matched_latents import describe_matched_latents
    from eval_runners.measures.true_features import Sample
    from eval_runners.measures.true_sheet import describe_true_latents

    model = model_loader(target, device)()
    saes = [load_for_target(each, target, model, device, args.context_size) for each in located]
    text = choice, args.n_contexts, args.context_size, args.seed
    if target.synthetic:
        sample = Sample(args.n_contexts, args.context_size, args.seed)
        data = describe_true_latents(saes[0], target, model, choice, sample)
    elif len(saes) == 1:
        data = describe_latents(saes[0], target, model, *text)
    else:
        data = describe_matched_latents((saes[0], saes[1]), target, model, *text)
        data["about"]["other"]["sae"] = _name(located[1])
    data["about"]["sae"] = _name(located[0])
    return data


def _name(located: LocatedSAE) -> str:
    return located.label if located.seed is None else f"{located.label}, seed {located.seed}"


def _draw_from_page(args: Namespace) -> int:
    """Draw a latent of a page that was written before."""
    from eval_runners.views.latent_picture import read_page

    if args.sae or not args.picture:
        raise UsageError("--page goes with --picture, and without --sae: it draws a latent of that page")
    choice = args.latents
    if choice and (choice.how != "numbers" or len(choice.numbers) > 1):
        raise UsageError(f"--latents {choice.text}: with --page, give the number of the one latent that is drawn")
    data = read_page(Path(args.page))
    if choice:
        known = {row["latent"]: row for row in data["latents"]}
        if choice.numbers[0] not in known:
            raise UsageError(f"--latents {choice.text} is not on {args.page}: it has {', '.join(map(str, known))}")
        data["latents"] = [known[choice.numbers[0]]]
    _draw(args, data)
    return 0


def _draw(args: Namespace, data: dict[str, Any]) -> None:
    from eval_runners.views.latent_picture import draw_latent

    row, sae = data["latents"][0], data["about"]["sae"]
    write_pictures(Path(args.picture), lambda page: draw_latent(row, sae, page), "--picture")


def _write(args: Namespace, data: dict[str, Any]) -> None:
    """Write the page or the folder, print its size, and draw the picture, which a latent may not have."""
    count = len(data["latents"])
    if args.folder is not None:
        folder = Path(args.folder)
        size = write_case_folder(data, folder, "--folder")
        print(f"{folder / PAGE}: {count} latents in files of their own, {size / 2**20:.1f} MiB together")
    else:
        text, file = case_page(data), args.output or OUTPUT
        write_atomically(Path(file), text, "--output")
        print(f"{file}: {count} latents, {len(text.encode()) / 2**20:.1f} MiB")
    if args.picture:
        _draw(args, data)


def _parser() -> Parser:
    parser = Parser(prog="python -m eval_runners case-study", description=__doc__)
    parser.add_argument(
        "--sae",
        action="append",
        default=[],
        metavar="NAME",
        help="A variant, stock:ARCHITECTURE, a folder, or user/repo:sae_id on the Hub. Twice for matched latents.",
    )
    parser.add_argument(
        "--latents",
        type=LatentChoice.parse,
        metavar="CHOICE",
        help=f"Latents to show: best:N, random:N, or numbers (default: {LATENTS}).",
    )
    parser.add_argument("--output", metavar="FILE", help=f"The page (default: {OUTPUT}).")
    parser.add_argument("--folder", metavar="DIR", help="Folder to write in place of one page, for many latents.")
    parser.add_argument("--picture", metavar="FILE", help="Draw the first latent, too.")
    parser.add_argument("--page", metavar="PAGE", help="Page written before, from which --picture draws a latent.")
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
