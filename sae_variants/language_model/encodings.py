"""Bytes of text files: decompression, and the encoding, which is detected and never the locale's."""

from __future__ import annotations

import codecs
import gzip
import io
import sys
from pathlib import Path
from typing import IO, Any

from sae_variants.common.errors import UsageError

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BLOCK = 1 << 24


def open_text(path: Path, newline: str | None) -> IO[str]:
    """Open a file, compressed or not, in the encoding that it has; the locale's never matters.

    Args:
        path: The file.
        newline: As in `open`.
    """
    encoding = _encoding_of(path)
    return io.TextIOWrapper(_open_bytes(path), encoding=encoding, newline=newline)


def _open_bytes(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    if path.suffix.lower() == ".zst":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True)
        return io.BufferedReader(reader)  # type: ignore[arg-type]
    return path.open("rb")


def _encoding_of(path: Path) -> str:
    """Return the encoding of a file: that of its byte order mark, UTF-8, UTF-16 without mark, or else Windows' Latin.

    Raises:
        UsageError: Most of the file is UTF-8, but not all of it; or it is cut off.
    """
    if path.suffix.lower() == ".zst":
        _check_complete(path)
    with _open_bytes(path) as file:
        start = file.read(4096)
        for mark, encoding in BOMS:
            if start.startswith(mark):
                return encoding
        for offset, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
            zeros, others = start[offset::2].count(0), start[1 - offset :: 2].count(0)
            if len(start) >= 8 and zeros > 0.4 * len(start) / 2 and others < 0.1 * zeros:
                _note(f"{path} is read as {encoding.upper()}: it has no byte order mark")
                return encoding
        good, bad, position = 0, 0, -1
        decoder, read = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape"), 0
        block = start
        while True:
            text = decoder.decode(block, final=not block)
            if not text.isascii():
                invalid = sum("\udc80" <= char <= "\udcff" for char in text) if not _is_utf8(text) else 0
                bad, good = bad + invalid, good + sum(char > "\x7f" for char in text) - invalid
                if invalid and position < 0:
                    first = next(i for i, char in enumerate(text) if "\udc80" <= char <= "\udcff")
                    position = read + len(text[:first].encode("utf-8"))
            read += len(text.encode("utf-8", "surrogateescape"))
            if not block:
                break
            block = file.read(BLOCK)
    if not bad:
        return "utf-8"
    if good >= bad:
        raise UsageError(f"cannot read {path}: it is UTF-8, but for {bad} bytes, the first of them byte {position + 1}")
    encoding = "cp1252"
    try:
        with io.TextIOWrapper(_open_bytes(path), encoding=encoding) as file:
            while file.read(BLOCK):
                pass
    except UnicodeDecodeError:
        encoding = "latin-1"
    _note(f"{path} is not UTF-8: it is read as {encoding}")
    return encoding


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_complete(path: Path) -> None:
    """Raise a UsageError for a .zst file that is cut off, of which zstandard returns the rest without an error."""
    import zstandard

    with path.open("rb") as file:
        decompressor, is_complete = zstandard.ZstdDecompressor().decompressobj(), False
        while block := file.read(BLOCK):
            while block:
                decompressor.decompress(block)
                is_complete, block = decompressor.eof, decompressor.unused_data
                if is_complete:
                    decompressor = zstandard.ZstdDecompressor().decompressobj()
    if not is_complete:
        raise UsageError(f"cannot read {path}: it is cut off")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
