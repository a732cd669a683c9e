"""python -m eval_runners serve: the report and other pages on this machine, reloaded when results arrive.

/              the report of the results, as `python -m eval_runners report` writes it
/pages         case studies, human studies and other HTML pages of --pages

The server listens on loopback, so that only this machine sees it. With another --host it asks for a token, which it
prints with the address.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import secrets
from argparse import Namespace
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from eval_runners.commands.report import render_report
from eval_runners.leaderboard.select import add_filters, add_result_folders, find_boards, folders_of
from eval_runners.store.logs import read_logs
from eval_runners.views.page import render_page
from sae_variants.cli.options import Parser, parse_whole
from sae_variants.common.errors import UsageError, describe_error
from sae_variants.common.hashing import hash_value
from sae_variants.training.plan import trained_root

if TYPE_CHECKING:
    from aiohttp import web

PAGES = Path("results/examples")
COOKIE = "sae_variants_token"
RELOAD = """
<nav style="padding:0 16px 16px"><a href="pages" style="color:var(--mark)">Case studies and other pages</a></nav>
<script>
setInterval(async () => {
  const answer = await fetch("version").catch(() => null);
  if (answer && answer.ok && (await answer.text()) !== "VERSION") location.reload();
}, 2000);
</script>
</body>"""
"""What is added to the page of `report`: a link, and the question whether there are new results."""


def main(argv: list[str]) -> int:
    """Serve until the command is interrupted."""
    parser = Parser(prog="python -m eval_runners serve", description=__doc__)
    add_result_folders(parser)
    add_filters(parser)
    parser.add_argument("--trained", metavar="FOLDER", help="Root of trained SAEs, for the logs of their trainings.")
    parser.add_argument("--pages", metavar="FOLDER", help=f"Folder of pages to list and serve (default: {PAGES}).")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen at (default: %(default)s).")
    parser.add_argument("--port", type=parse_whole, default=8000, help="Port; 0 takes a free one (default: 8000).")
    args = parser.parse_args(argv)
    pages = Path(args.pages) if args.pages else PAGES
    if args.pages and not pages.is_dir():
        raise UsageError(f"--pages {args.pages} is not a folder")
    if args.port > 65535:
        raise UsageError(f"--port must be at most 65535, not {args.port}")
    find_boards(args)  # refuses what cannot work
    token = "" if _is_loopback(args.host) else secrets.token_urlsafe(16)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(args, pages, token))
    return 0


def make_app(args: Namespace, pages: Path, token: str) -> web.Application:
    """Make the server.

    Args:
        args: options that choose results.
        pages: folder of further pages; none are served if it is missing.
        token: what every visitor must give once, as `?token=`; "" for none.
    """
    from aiohttp import web

    rendered: dict[str, str] = {}

    async def report(_: web.Request) -> web.Response:
        version = version_of(args)
        if version not in rendered:
            rendered.clear()
            try:
                rendered[version] = await asyncio.to_thread(_render, args, version)
            except UsageError as error:  # results that were there are gone
                return web.Response(status=503, text=f"{error}\n")
        return web.Response(text=rendered[version], content_type="text/html")

    async def version(_: web.Request) -> web.Response:
        return web.Response(text=version_of(args), headers={"Cache-Control": "no-store"})

    async def listing(_: web.Request) -> web.Response:
        return web.Response(text=_list_pages(pages), content_type="text/html")

    @web.middleware
    async def ask_for_token(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.query.get("token", request.cookies.get(COOKIE, ""))
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            return web.Response(status=401, text="open the address that the command printed, with its token\n")
        answer = await handler(request)
        if token and not answer.prepared:
            answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
        return answer

    app = web.Application(middlewares=[ask_for_token])
    app.router.add_get("/", report)
    app.router.add_get("/version", version)
    if pages.is_dir():
        app.router.add_get("/pages", listing)
        app.router.add_get("/pages/", listing)
        app.router.add_static("/pages", pages)
    return app


def _list_pages(folder: Path) -> str:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    return render_page(
        "pages.html", None, pages=[{"name": f, "address": f"/pages/{quote(f)}"} for f in found], folder=folder
    )


def version_of(args: Namespace) -> str:
    """Return what changes when a result is added, changed or removed."""
    files = sorted(path for folder in folders_of(args) for path in folder.rglob("*.json"))
    return hash_value([(str(path), path.stat().st_mtime_ns) for path in files])


def _render(args: Namespace, version: str) -> str:
    boards, broken = find_boards(args)
    page = render_report(boards, broken, read_logs(trained_root(args.trained)))
    head, _, tail = page.rpartition("</body>")
    return head + RELOAD.replace("VERSION", version) + tail


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _serve(args: Namespace, pages: Path, token: str) -> None:
    from aiohttp import web

    runner = web.AppRunner(make_app(args, pages, token))
    await runner.setup()
    try:
        await web.TCPSite(runner, args.host, args.port).start()
    except OSError as error:
        await runner.cleanup()
        raise UsageError(
            f"cannot listen at {args.host}, port {args.port} ({describe_error(error)}): give another --port or --host"
        ) from error
    host = f"[{args.host}]" if ":" in args.host else args.host
    port = runner.addresses[0][1]
    print(f"http://{host}:{port}/{f'?token={token}' if token else ''}  (Ctrl-C ends it)", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
