"""The library inside this process, through its C interface."""

from __future__ import annotations

import ctypes
import functools
import json
import os
from typing import TYPE_CHECKING, Any

from ._errors import NotCountedError, NotServedError
from ._preload import library_path

if TYPE_CHECKING:
    from ._stats import Stats

_HOW = "start the program with `python -m pymem_domains run`, or with the variables that `pymem-domains env` prints"

#: What `pymem_profile_unrecorded` calls.
WORK = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)

#: What `pymem_profile_traceback` calls: with data, a function, a file and a line.
CALL = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)

#: No limit.
_UNLIMITED = ctypes.c_size_t(-1).value

#: The levels of `release`, least thorough first.
LEVELS = ("arenas", "pools", "pages")


def library() -> str:
    """The path of the library, for `LD_PRELOAD`.

    >>> library().endswith(".so")
    True
    """
    return library_path()


def include() -> str:
    """The folder with `pymem.h`, for programs that embed Python."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "include")


class _Functions:
    """The functions of `pymem.h`. Their caller holds the GIL, as `PyDLL` leaves it."""

    def __init__(self) -> None:
        process = ctypes.PyDLL(None)
        try:
            self.stats_json = process.pymem_stats_json
        except AttributeError:
            raise NotServedError(f"the library is not loaded in this process; {_HOW}") from None
        self.release = process.pymem_release
        self.counts = process.pymem_counts
        self.limit = process.pymem_limit
        self.reset_peak = process.pymem_reset_peak
        self.verify = process.pymem_verify
        self.heap_map = process.pymem_heap_map
        self.profile_start = process.pymem_profile_start
        self.profile_stop = process.pymem_profile_stop
        self.profile_write = process.pymem_profile_write
        self.profile_unrecorded = process.pymem_profile_unrecorded
        self.profile_traceback = process.pymem_profile_traceback
        self.stats_json.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
        self.stats_json.restype = ctypes.c_int
        self.release.argtypes = (ctypes.c_int,)
        self.release.restype = ctypes.c_size_t
        self.counts.argtypes = (ctypes.POINTER(ctypes.c_size_t),) * 3
        self.counts.restype = ctypes.c_int
        self.limit.argtypes = (ctypes.c_size_t,)
        self.limit.restype = ctypes.c_int
        self.reset_peak.argtypes = ()
        self.reset_peak.restype = None
        self.verify.argtypes = ()
        self.verify.restype = None
        self.heap_map.argtypes = (ctypes.c_char_p,)
        self.heap_map.restype = ctypes.c_int
        self.profile_start.argtypes = (ctypes.c_char_p,)
        self.profile_start.restype = ctypes.c_int
        self.profile_stop.argtypes = ()
        self.profile_stop.restype = ctypes.c_int
        self.profile_write.argtypes = (ctypes.c_char_p,)
        self.profile_write.restype = ctypes.c_int
        self.profile_unrecorded.argtypes = (WORK, ctypes.c_void_p)
        self.profile_unrecorded.restype = ctypes.c_int
        self.profile_traceback.argtypes = (ctypes.c_void_p, CALL, ctypes.c_void_p)
        self.profile_traceback.restype = ctypes.c_int

    def report(self) -> dict[str, Any]:
        """Everything that the library tells."""
        # The text may grow between the question for its length and the answer.
        room = self.stats_json(None, 0) + 1024
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = self.stats_json(buffer, room)
            if length < 0:
                raise NotServedError("the library could not make its report, for want of memory")
            if length < room:
                report: dict[str, Any] = json.loads(buffer.value)
                return report
            room = length + 1024


@functools.cache
def functions() -> _Functions:
    """The functions of the library that serves this process; `NotServedError` where none does."""
    found = _Functions()
    if not found.report()["installed"]:
        raise NotServedError(
            "the library is loaded and serves nothing: it stepped aside for the interpreter's own debug hooks (-X dev, "
            "PYTHONDEVMODE), or was loaded after the start; start the program without them, by `python -m pymem_domains run`"
        )
    return found


def active() -> bool:
    """Whether the library serves this process.

    >>> active() in (True, False)
    True
    """
    try:
        functions()
    except NotServedError:
        return False
    return True


def row() -> str:
    """The name of the row that serves, as `PYTHONMALLOC` takes it: `pymalloc`, `mimalloc_debug`.

    >>> row() if active() else "not served"  # doctest: +ELLIPSIS
    '...'
    """
    return stats().row


def stats() -> Stats:
    """What is served, and how much of it. Two answers can be subtracted.

    Counts of calls and of live bytes by domain are there in a process that counts (`run --stats` or `run --limit`).

    >>> if active():
    ...     grown = stats() - stats()
    """
    from ._stats import Stats

    return Stats.from_report(functions().report())


def release(level: str = "pages") -> int:
    """Gives memory that holds no live block back to the system; returns how many bytes.

    `level` says where to look: `arenas` that are empty, also `pools`, also `pages` within them. Each takes longer than the
    one before. For an idle moment, such as between two requests.

    >>> release("arenas") >= 0 if active() else True
    True
    """
    if level not in LEVELS:
        raise ValueError(f"`{level}` is no level; choose one of {', '.join(LEVELS)}")
    given: int = functions().release(LEVELS.index(level))
    return given


def limit(maximum: int | None) -> None:
    """Lets an allocation fail (`MemoryError`) that would bring the live blocks of the three domains above `maximum` bytes.

    `None` takes the limit away. Needs a process that counts: `run --limit 2GiB`; `--limit 0` counts, and sets none yet.
    What C libraries take from `malloc` themselves is not counted.
    """
    if maximum is not None and maximum <= 0:
        raise ValueError(f"a limit of {maximum} bytes cannot be kept; give a positive number, or None for no limit")
    if maximum is not None and maximum >= _UNLIMITED:
        raise ValueError(f"a limit of {maximum} bytes is more than can be counted; give None for no limit")
    if functions().limit(_UNLIMITED if maximum is None else maximum) != 0:
        raise _not_counted()


def heap_map(path: str | os.PathLike[str]) -> None:
    """Draws the heap of mem and obj into the SVG file at `path`, now.

    The rows of pymalloc can be drawn in every process with the GIL. Those of mimalloc need one that was started with
    `run --heap-map FILE`, whose threads wait for each other in their heaps.
    """
    status = functions().heap_map(os.fsencode(path))
    if status == -1:
        raise NotCountedError(
            f"the heap of {row()} cannot be drawn in this process; take a row of pymalloc, or one of mimalloc started with "
            "`python -m pymem_domains run --heap-map FILE`, and an interpreter with the GIL"
        )
    if status != 0:
        raise OSError(f"{os.fspath(path)} cannot be written; name a file in a folder that can be")


def _not_counted() -> NotCountedError:
    return NotCountedError(
        "this process does not count its blocks; start it with `python -m pymem_domains run --limit 0`, which counts "
        "and sets no limit yet"
    )


class Counts:
    """What is live in the three domains together, as `pymem_counts` tells it."""

    def __init__(self) -> None:
        self._numbers = (ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_size_t())
        self._arguments = tuple(map(ctypes.byref, self._numbers))
        self._function = functions().counts

    def take(self) -> None:
        """Stores the numbers of now. Nothing that is made for it outlives the call, so that two takings can be compared."""
        if self._function(*self._arguments) != 0:
            raise _not_counted()

    @property
    def blocks(self) -> int:
        return self._numbers[0].value

    @property
    def bytes(self) -> int:
        return self._numbers[1].value

    @property
    def peak_bytes(self) -> int:
        return self._numbers[2].value


def reset_peak() -> None:
    """Lets the peak begin anew, from what is live now."""
    functions().reset_peak()


def verify() -> None:
    """Looks for writes to the freed blocks that a quarantine holds; one ends the process with its report."""
    functions().verify()
