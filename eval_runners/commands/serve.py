"""python -m eval_runners serve: the report and other pages on this machine, reloaded when results arrive.

/              the report of the results, as `python -m eval_runners report` writes it
/pages         case studies, human studies and other HTML pages below --pages, but no other files

The server listens on loopback, and answers only to the names of this machine. With another --host it asks for a token,
which it prints with the address.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import secrets
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from eval_runners.commands.report import render_report
from eval_runners.leaderboard.select import add_filters, add_result_folders, find_boards, folders_of
from eval_runners.store.logs import read_logs
from eval_runners.views.case_pages import LATENTS, PAGE
from eval_runners.views.page import render_page
from sae_variants.cli.options import Parser, parse_whole
from sae_variants.common.errors import UsageError, describe_error
from sae_variants.common.hashing import hash_value
from sae_variants.training.plan import trained_root

if TYPE_CHECKING:
    from aiohttp import web

PAGES = Path("results/examples")
COOKIE = "sae_variants_token"
LINK = '<nav style="padding:0 16px 16px"><a href="/pages" style="color:var(--mark)">Case studies and more</a></nav>'
RELOAD = """<script>
setInterval(async () => {
  const answer = await fetch("/version" + location.pathname).catch(() => null);
  if (answer && answer.ok && (await answer.text()) !== "VERSION") location.reload();
}, 2000);
</script>
"""
"""What is added to every page: the question whether the page, or what it was made from, has changed."""


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
    version = version_of(_results(args))
    rendered = {version: _render(args, version)}  # refuses what cannot work
    token = "" if _is_loopback(args.host) else secrets.token_urlsafe(16)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(args, pages, token, rendered))
    return 0


def make_app(args: Namespace, pages: Path, token: str, rendered: dict[str, str]) -> web.Application:
    """Make the server.

    Args:
        args: options that choose results.
        pages: folder of further pages; none are served if it is missing.
        token: what every visitor must give once, as `?token=`; "" for none, and for names of this machine only.
        rendered: version -> page of the report; may be empty.
    """
    from aiohttp import web

    async def report(_: web.Request) -> web.Response:
        version = await asyncio.to_thread(lambda: version_of(_results(args)))
        if version not in rendered:
            try:
                page = await asyncio.to_thread(_render, args, version)
            except UsageError as error:  # results that were there are gone
                return web.Response(status=503, text=f"{error}\n")
            rendered.clear()
            rendered[version] = page
        return web.Response(text=rendered[version], content_type="text/html")

    async def version(request: web.Request) -> web.Response:
        def read() -> str:
            path = request.match_info["path"].strip("/")
            below = path.removeprefix("pages").strip("/")
            return version_of(_results(args) if not path else _files_of(pages, below) if below else _pages(pages))

        return web.Response(text=await asyncio.to_thread(read))

    async def listing(_: web.Request) -> web.Response:
        return web.Response(text=await asyncio.to_thread(_list_pages, pages), content_type="text/html")

    async def page(request: web.Request) -> web.Response:
        path = request.match_info["path"]
        if not _is_page(pages, pages / path):
            raise web.HTTPNotFound
        if path.endswith(".js"):
            text = await asyncio.to_thread((pages / path).read_text, "utf-8")
            return web.Response(text=text, content_type="text/javascript")
        return web.Response(text=await asyncio.to_thread(_read_page, pages, path), content_type="text/html")

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.query.get("token", request.cookies.get(COOKIE, ""))
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            return web.Response(status=401, text="open the address that the command printed, with its token\n")
        if not token and not _is_loopback(_name_in(request.host)):  # a name that another site gave this machine
            return web.Response(status=403, text="open the address that the command printed\n")
        if token and "token" in request.query:  # so that it stays in no address that is copied
            answer: web.StreamResponse = web.Response(status=302, headers={"Location": f"/{request.path.lstrip('/')}"})
            answer.set_cookie(COOKIE, token, httponly=True, samesite="Lax")
            return answer
        answer = await handler(request)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    app = web.Application(middlewares=[check])
    app.router.add_get("/", report)
    app.router.add_get("/version{path:/.*}", version)
    if pages.is_dir():
        app.router.add_get("/pages", listing)
        app.router.add_get("/pages/", listing)
        app.router.add_get("/pages/{path:.+}", page)
    return app


def _is_page(folder: Path, path: Path) -> bool:
    """Whether a file below a folder, and no link out of it, is a page or a file of a case study's latent."""
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        return False
    is_latent = path.suffix == ".js" and path.parent.name == LATENTS and (path.parent.parent / PAGE).is_file()
    return is_latent or path.suffix == ".html"


def _pages(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.html") if _is_page(folder, path))


def _files_of(folder: Path, path: str) -> list[Path]:
    """A page, with the files of its latents."""
    files = [folder / path, *sorted((folder / path).parent.glob(f"{LATENTS}/*.js"))]
    return [file for file in files if _is_page(folder, file)]


def _results(args: Namespace) -> list[Path]:
    return sorted(path for folder in folders_of(args) for path in folder.rglob("*.json"))


def version_of(files: Sequence[Path]) -> str:
    """Return what changes when a file is added, changed or removed."""
    return hash_value([(str(path), path.stat().st_mtime_ns) for path in files])


def _list_pages(folder: Path) -> str:
    found = _pages(folder)
    names = [path.relative_to(folder).as_posix() for path in found]
    rows = [{"name": name, "address": f"/pages/{quote(name)}"} for name in names]
    return _reloading(render_page("pages.html", None, pages=rows, folder=folder), version_of(found))


def _read_page(folder: Path, path: str) -> str:
    version = version_of(_files_of(folder, path))  # before the text, which may change meanwhile
    return _reloading((folder / path).read_text("utf-8", "replace"), version)


def _render(args: Namespace, version: str) -> str:
    boards, broken = find_boards(args)
    return _reloading(render_report(boards, broken, read_logs(trained_root(args.trained))), version, LINK)


def _reloading(page: str, version: str, more: str = "") -> str:
    """A page that is loaded again when its version changes."""
    head, end, tail = page.rpartition("</body>")
    return (head or tail) + more + RELOAD.replace("VERSION", version) + (end + tail if end else "")


def _name_in(host: str) -> str:
    """The name or address in a `Host` header, without the port; empty for what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _serve(args: Namespace, pages: Path, token: str, rendered: dict[str, str]) -> None:
    from aiohttp import web

    runner = web.AppRunner(make_app(args, pages, token, rendered))
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
