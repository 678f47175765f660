"""A recorded program again, on one row after another: what each takes in time and memory."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from ._errors import USAGE, Refusal
from ._preload import library_path

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Replayed(NamedTuple):
    """`PymemReplay` of `pymem.h`, whose fields are words."""

    calls: int
    threads: int
    dropped: int
    unknown_blocks: int
    unseen_frees: int
    nanoseconds: int
    peak_bytes: int
    end_bytes: int


_Words = ctypes.c_size_t * len(_Replayed._fields)


def replay(path: str, rows: Sequence[str]) -> int:
    """Prints what the recording is, and a line for each row; gives the command's status.

    What is wrong with a file or a row, the library says in one line on stderr.
    """
    bar = _Bar(len(rows))
    for at, row in enumerate(rows):
        found = _in_child(path, row, bar)
        if found is None:
            return USAGE
        if at == 0:
            print(f"{path}: {_told(found)}")
            print(f"{'row':<16}{'time':>10}{'a call':>10}{'peak memory':>14}{'at the end':>14}")
        seconds, each = found.nanoseconds / 1e9, found.nanoseconds / max(found.calls, 1)
        memory = f"{found.peak_bytes / 2**20:>10.1f} MiB{found.end_bytes / 2**20:>10.1f} MiB"
        print(f"{row:<16}{seconds:>8.3f} s{each:>7.1f} ns{memory}", flush=True)
    return 0


class _Bar:
    """A bar on a terminal, of rows that take about as long as one another."""

    _WIDTH = 30
    #: What takes less, in seconds, needs no bar.
    _SHORT = 1.0

    def __init__(self, rows: int) -> None:
        self._rows, self._done = rows, 0
        self._began = self._row_began = time.monotonic()
        self._shown = sys.stderr.isatty()

    def wait(self, row: str, answer: int) -> None:
        """Draws until there is something to read in `answer`, which ends the row."""
        while not select.select([answer], [], [], 0.1)[0]:
            if self._shown and time.monotonic() - self._began > self._SHORT:
                self._draw(row)
        if self._shown:
            print(end="\r\x1b[K", file=sys.stderr, flush=True)
        self._done += 1
        self._row_began = time.monotonic()

    def _draw(self, row: str) -> None:
        now = time.monotonic()
        # Of the first row nobody knows how long it takes.
        each = (self._row_began - self._began) / self._done if self._done else 0.0
        part = min((now - self._row_began) / each, 0.9) if each else 0.0
        full = int(self._WIDTH * (self._done + part) / self._rows)
        bar = "#" * full + "-" * (self._WIDTH - full)
        told = f"{self._done + 1} of {self._rows}: {row}, {now - self._row_began:.0f} s"
        print(end=f"\r[{bar}] {told}\x1b[K", file=sys.stderr, flush=True)


def _in_child(path: str, row: str, bar: _Bar) -> _Replayed | None:
    """The row's figures, from a process that has replayed nothing before; None when there are none."""
    try:
        function = ctypes.CDLL(library_path()).pymem_replay
    except OSError as error:
        raise Refusal(USAGE, f"the library cannot be loaded: {error}") from None
    function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Words))
    function.restype = ctypes.c_int
    receive, send = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            found = _Words()
            status = function(os.fsencode(path), os.fsencode(row), ctypes.byref(found))
            if status == 0:
                os.write(send, bytes(found))
        finally:
            os._exit(0)
    try:
        os.close(send)
        bar.wait(row, receive)
        with os.fdopen(receive, "rb") as answer:
            told = answer.read()
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if status != 0:
        raise Refusal(USAGE, f"the replay on {row} ended early, by signal {os.WTERMSIG(status)}: was there enough memory?")
    return _Replayed(*_Words.from_buffer_copy(told)) if told else None


def _told(found: _Replayed) -> str:
    """How many calls there are, and what is missing."""
    parts = [f"{found.calls} calls" + (f" of {found.threads} threads, on one" if found.threads > 1 else "")]
    if found.dropped:
        parts.append(f"the last {found.dropped} were dropped: the log was at its limit (--trace-limit), or its disk was full")
    if found.unknown_blocks:
        parts.append(f"{found.unknown_blocks} on blocks of unknown origin left out")
    if found.unseen_frees:
        parts.append(f"{found.unseen_frees} frees that were not seen put in")
    return "; ".join(parts)
