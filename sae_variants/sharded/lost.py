"""What the processes of a torchrun say when one of them is lost: one line, which names it and tells how to go on.

torchrun ends the others by SIGTERM once one is dead. They may wait in a collective then, which no signal handler of
Python interrupts; so a thread waits for the signal, of which Python's own handler writes the number to a pipe.

What all of them refuse is one line, too: the first one says it and ends, whereupon torchrun ends the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sae_variants.common.errors import UsageError
from sae_variants.common.files import backup_of
from sae_variants.sharded.ranks import LOCAL_RANK, Ranks, is_torchrun

GRACE_SECONDS = 2.0
"""How long a process that was told to end stays, so that it is not taken for the lost one; torchrun waits for 30 s."""
SIGNAL_SECONDS = 10.0
"""How long a process that lost another one in a collective waits for torchrun's signal."""
REFUSAL_SECONDS = 30.0
"""How long a process that refuses waits for the first one of its host to refuse, too."""
OF_COLLECTIVES = ("gloo", "NCCL", "peer", "Timed out")
"""Words of the errors of a collective that lost a process."""


@dataclass(frozen=True)
class _Others:
    rank: int
    processes: Sequence[tuple[str, int]]
    """Host and process of every rank."""
    checkpoint: Path

    def end(self) -> NoReturn:
        """End this process as torchrun wants; the first one of this host that is left says why."""
        here = [rank for rank, (host, _) in enumerate(self.processes) if host == self.processes[self.rank][0]]
        lost = [rank for rank in here if not _is_there(self.processes[rank][1])]
        if self.rank == min(set(here) - set(lost)):
            ranks = f"rank{'s' if lost[1:] else ''} {', '.join(map(str, lost))} {'were' if lost[1:] else 'was'} lost"
            reason = ranks if lost else "torchrun was told to end, or a process of another host was lost"
            self.say(f"{reason}, so the others were ended")
        time.sleep(GRACE_SECONDS)
        os._exit(1)  # the others cannot be waited for

    def say(self, reason: str) -> None:
        is_saved = self.checkpoint.exists() or backup_of(self.checkpoint).exists()
        then = f"continues from {self.checkpoint}" if is_saved else "starts anew, because there is no checkpoint yet"
        sys.stderr.write(f"\n{reason}; the same command {then}\n")  # below the progress bar
        sys.stderr.flush()


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def refused_once() -> Iterator[None]:
    """Let the first process of a host alone say what all of them refuse; another one says what the first does not."""
    try:
        yield
    except UsageError:
        if is_torchrun() and os.environ[LOCAL_RANK] != "0":
            time.sleep(REFUSAL_SECONDS)  # torchrun ends this process meanwhile, unless the first one goes on
        raise


def has_lost_another(error: BaseException) -> bool:
    """Return whether an error is that of a collective that lost a process."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in OF_COLLECTIVES)


@contextlib.contextmanager
def told_in_one_line(ranks: Ranks, checkpoint: Path) -> Iterator[None]:
    """End this process with one line if another one is lost meanwhile.

    Args:
        ranks: This process among the others.
        checkpoint: Where the same command continues from.
    """
    others = _Others(ranks.rank, ranks.of_all((socket.gethostname(), os.getpid())), checkpoint)
    with _on_sigterm(others.end):
        try:
            yield
        except RuntimeError as error:
            if not has_lost_another(error):
                raise
            time.sleep(SIGNAL_SECONDS)  # torchrun ends this process meanwhile, unless the lost one is of another host
            others.say(f"rank {ranks.rank} lost another process: {str(error).splitlines()[0]}")
            os._exit(1)


@contextlib.contextmanager
def _on_sigterm(end: Any) -> Iterator[None]:
    read, write = os.pipe()
    os.set_blocking(write, False)

    def wait() -> None:
        while number := os.read(read, 1):
            if number[0] == signal.SIGTERM:
                end()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    pipe, handler = signal.set_wakeup_fd(write), signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(pipe)
        os.close(write)
        thread.join()
        os.close(read)
