"""Bytes of text files: decompression, and the encoding, which is detected and never the locale's."""

from __future__ import annotations

import codecs
import gzip
import io
import re
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
CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\v\f\r\x1b\x1c\x1d\x1e\x1f")
"""Bytes that text has hardly any of; those from 0x1b on separate fields and colour terminals."""
PDF = b"%PDF-"
OTHERS = re.compile(r"[^\x00-\x7f]+")
ODD = re.compile(
    r"[^\x00-\x7f\xa0«»“”‘’…–—]{4,}|[\x80-\x9f]"
    r"|(?<=[a-z])[^\x00-\x7fß-öø-ÿœšžª·º‘’…–—´\xa0\xad](?=[a-z])"
    r"|(?<=[a-zß-öø-ÿ])[¡-©¬¯-±³¶¸¹¼-¿×÷]"
)
"""What Western European text has hardly any of: long runs beyond ASCII, but for quotes and dashes, and controls;
capitals and signs within a word of small letters, but for apostrophes and dashes; signs right after a small letter."""
MOST_ODD = 0.05
"""Share of odd characters beyond which a file is refused."""
MEND = "convert it by `iconv -f ENCODING -t UTF-8`, where ENCODING is its own"


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
    """Return the encoding of a file: that of its byte order mark, UTF-8, UTF-16 or UTF-32 without mark, or cp1252.

    Raises:
        UsageError: The file is in none of them or binary; most of it is UTF-8, but not all of it; or it is cut off.
    """
    if path.suffix.lower() == ".zst":
        _check_complete(path)
    with _open_bytes(path) as file:
        start = file.read(4096)
        for mark, encoding in BOMS:
            if start.startswith(mark):
                return encoding
        if encoding := _wide_encoding(start):
            _note(f"{path} is read as {encoding.upper()}: it has no byte order mark")
            return encoding
        good, bad, position, n_controls = 0, 0, -1, 0
        decoder, read = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape"), 0
        block = start
        while True:
            n_controls += len(block) - len(block.translate(None, CONTROLS))
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
    if n_controls > MOST_ODD * read or start.startswith(PDF):
        raise UsageError(f"cannot read {path}: it is no text, or in an unknown encoding: {MEND}")
    if not bad:
        return "utf-8"
    if good >= bad:
        raise UsageError(f"cannot read {path}: it is UTF-8, but for {bad} bytes, the first of them byte {position + 1}")
    encoding = _western_encoding(path)
    _note(f"{path} is not UTF-8: it is read as {encoding}, which is right for Western European text; otherwise {MEND}")
    return encoding


def _wide_encoding(start: bytes) -> str | None:
    """Return UTF-16 or UTF-32 for the start of a file whose bytes are zero where these have zeros, else None."""
    if len(start) < 8 or not any(start):
        return None
    # A character of UTF-32 is below 0x110000: its highest byte is zero, and the next one nearly always.
    for encoding, high, next_high in (("utf-32-be", 0, 1), ("utf-32-le", 3, 2)):
        if not any(start[high::4]) and start[next_high::4].count(0) > 0.9 * len(start) / 4:
            return encoding
    for encoding, high in (("utf-16-be", 0), ("utf-16-le", 1)):
        zeros, others = start[high::2].count(0), start[1 - high :: 2].count(0)
        if zeros > 0.4 * len(start) / 2 and others < 0.1 * zeros:
            return encoding
    return None


def _western_encoding(path: Path) -> str:
    """Return cp1252, or latin-1 where a byte has no meaning in it, for a file that reads as Western European text.

    Raises:
        UsageError: Much of what is not ASCII is odd there, so that the file is in another encoding.
    """
    for encoding in ("cp1252", "latin-1"):
        n_odd = n_others = 0
        try:
            with io.TextIOWrapper(_open_bytes(path), encoding=encoding) as file:
                while text := file.read(BLOCK):
                    n_others += sum(map(len, OTHERS.findall(text)))
                    n_odd += sum(map(len, ODD.findall(text)))
        except UnicodeDecodeError:
            continue
        if n_odd <= MOST_ODD * n_others:
            return encoding
        break
    raise UsageError(f"cannot read {path}: it is neither UTF-8 nor Western European text: {MEND}")


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
