"""Who holds the memory: profiles of this process, and the drawing of their files."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import USAGE, NotProfiledError, Refusal
from ._library import CALL, WORK, functions
from ._preload import library_path

if TYPE_CHECKING:
    from types import TracebackType

#: The status of `pymem_profile_start` for a request that is none.
_NO_REQUEST = -1
#: The same for a profile that is recorded already.
_WAS_RECORDING = 1
#: The same for other options than those of the profile that goes on.
_OTHER_OPTIONS = -3
#: The status of the functions below for a process without a profile.
_NO_PROFILE = -1


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the program, and what it holds of mem and obj: the blocks that it allocated and nobody freed.

    What was allocated while no Python code ran, as at the start, is one line of its own, without a file.
    """

    function: str
    file: str
    number: int
    bytes: int
    blocks: int


@dataclasses.dataclass(frozen=True)
class Frame:
    """A call that had not returned when an object was made: `str` of one is as the lines of a traceback."""

    function: str
    file: str
    number: int

    def __str__(self) -> str:
        return f'File "{self.file}", line {self.number}, in {self.function}'


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What every line holds, the largest first. Two of them can be subtracted.

    >>> earlier = Snapshot((Line("serve", "app.py", 7, 100, 2),))
    >>> later = Snapshot((Line("serve", "app.py", 7, 164, 3),))
    >>> later - earlier
    Snapshot(lines=(Line(function='serve', file='app.py', number=7, bytes=64, blocks=1),))
    """

    lines: tuple[Line, ...]

    @property
    def bytes(self) -> int:
        """What all lines hold together."""
        return sum(line.bytes for line in self.lines)

    def __sub__(self, earlier: Snapshot) -> Snapshot:
        """By how much each line holds more; lines that hold as much as before are left out."""
        held = {_place(line): (line.bytes, line.blocks) for line in self.lines}
        for line in earlier.lines:
            now = held.get(_place(line), (0, 0))
            held[_place(line)] = (now[0] - line.bytes, now[1] - line.blocks)
        return _ordered({place: amount for place, amount in held.items() if amount != (0, 0)})


def _place(line: Line) -> tuple[str, str, int]:
    return (line.function, line.file, line.number)


def _ordered(held: dict[tuple[str, str, int], tuple[int, int]]) -> Snapshot:
    lines = (Line(*place, *amount) for place, amount in held.items())
    return Snapshot(tuple(sorted(lines, key=lambda line: -line.bytes)))


class _Bodies:
    """Those of `with profile(...)` that run now, in all threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        #: The threads that began them.
        self.running: list[int] = []
        #: Whether one of them started what is recorded, so that the last one stops it.
        self.started_it = False

    def end(self) -> None:
        """Stops what is recorded if none of them is left."""
        if self.started_it and not self.running:
            self.started_it = False
            functions().profile_stop()

    def after_fork(self) -> None:
        """Forgets those of the threads that the child has not."""
        self.running = [thread for thread in self.running if thread == threading.get_ident()]
        self.end()
        self.lock.release()


_bodies = _Bodies()
os.register_at_fork(before=_bodies.lock.acquire, after_in_parent=_bodies.lock.release, after_in_child=_bodies.after_fork)


class profile:  # noqa: N801 - used as a function
    """Records who holds the memory of mem and obj while the body of `with` runs, and writes that into the file at `path`.

    The file's name tells the format: `.html` is a page, `.txt` a table, `.collapsed` and `.speedscope.json` are for other
    tools, anything else is a profile that `pymem-domains report` draws. `sample` is the number of bytes for each block that
    is recorded, or None for every block; `frames` is the greatest depth of a stack. A process has one profile: where one
    runs already, as under `run --profile` or in another thread's body, it goes on with its own `sample` and `frames`, and does
    not end with this body. A later one needs the first one's `sample` and `frames`, and is refused with others. Each has a peak
    of its own; what the ones before recorded is in it as far as it is live, and in its totals. The file of a process's first
    profile is written again when the process ends. Needs an interpreter with the GIL, 3.9 to 3.15.

    >>> from pymem_domains import active
    >>> if active():
    ...     with profile("app.json"):
    ...         kept = [bytes(100) for _ in range(1000)]
    """

    def __init__(self, path: str | os.PathLike[str], *, sample: int | None = None, frames: int = 32) -> None:
        self._named = os.fsencode(path)
        if b"," in self._named:
            raise ValueError(f"{os.fspath(path)} has a comma, which ends a file's name in a request; name a file without one")
        options = [self._named, b"frames=%d" % frames]
        if sample is not None:
            options.append(b"sample=%d" % sample)
        self._request = b",".join(options)

    def __enter__(self) -> None:
        # The body may change the folder.
        self._path = os.fsencode(Path(os.fsdecode(self._named)).absolute())
        with _bodies.lock:
            self._start()
            self._thread = threading.get_ident()
            _bodies.running.append(self._thread)

    def _start(self) -> None:
        status: int = functions().profile_start(self._request)
        if status == _WAS_RECORDING:
            return
        if status == _NO_REQUEST:
            raise ValueError(f"`{os.fsdecode(self._request)}` cannot be profiled; sample is above 0, frames is 1 to 128")
        if status == _OTHER_OPTIONS:
            raise ValueError("a process has one profile, and the first had another sample or frames; give the same again")
        if status != 0:
            raise NotProfiledError(
                f"no profile can be started: {os.fsdecode(self._path)} cannot be written, or this interpreter is not one "
                "of 3.9 to 3.15 with the GIL, or `tracemalloc` traces, whose end would be the profile's"
            )
        _bodies.started_it = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with _bodies.lock:
            # That of a thread that a child has not is forgotten.
            if self._thread in _bodies.running:
                _bodies.running.remove(self._thread)
            _bodies.end()
        _write(self._path)


def snapshot() -> Snapshot:
    """What every line holds now, of what was allocated while a profile ran.

    Needs a process that is profiled: inside of `with profile(...)`, or started with `run --profile FILE`.

    >>> from pymem_domains import NotServedError
    >>> try:
    ...     lines = snapshot().lines
    ... except (NotProfiledError, NotServedError) as error:
    ...     lines = ()
    """
    found = functions()
    taken: Snapshot | None = None
    failure: BaseException = RuntimeError("no snapshot was asked for")

    def take(_: object) -> None:
        nonlocal taken, failure
        try:
            # Its own folder: nothing of another process is in the way, and nothing stays.
            with tempfile.TemporaryDirectory(prefix="pymem-") as folder:
                path = Path(folder, "snapshot.lines.json")
                _write(os.fsencode(path), found)
                taken = Snapshot(tuple(Line(*line) for line in json.loads(path.read_bytes())))
        except BaseException as error:
            failure = error

    # A snapshot that found itself would be the first line of a difference.
    found.profile_unrecorded(WORK(take), None)
    if taken is None:
        raise failure
    return taken


def get_object_traceback(thing: object) -> tuple[Frame, ...] | None:
    """Where `thing` was made, the most recent call last, as `tracemalloc.get_object_traceback` tells it.

    Empty for what was made while no Python code ran. None for what the profile does not know: an object that was made before
    the profile began, that is no block (`None`, small numbers, classes that are C code), that a sampled profile did not choose,
    or in a row without pools that was profiled from its start. An object that was made anew from the memory of an older one, as
    the interpreter does with lists and floats, has the calls of the older one. Needs a process that is profiled, as `snapshot`
    does.

    >>> from pymem_domains import NotServedError
    >>> try:
    ...     frames = get_object_traceback(bytes(1000))
    ... except (NotProfiledError, NotServedError) as error:
    ...     frames = None
    """
    # A collector's header, and a dictionary's place, come before what `id` tells; `getsizeof` alone counts them.
    before = sys.getsizeof(thing) - type(thing).__sizeof__(thing)
    frames: list[Frame] = []

    def told(_: object, function: bytes, file: bytes, number: int) -> None:
        frames.append(Frame(function.decode(), os.fsdecode(file), number))

    status: int = functions().profile_traceback(id(thing) - before, CALL(told), None)
    if status == _NO_PROFILE:
        raise _not_profiled()
    return None if status < 0 else tuple(reversed(frames))


def _not_profiled() -> NotProfiledError:
    return NotProfiledError(
        "this process is not profiled; start it with `python -m pymem_domains run --profile FILE`, or use "
        "`with pymem_domains.profile(FILE)`"
    )


def _write(path: bytes, found: Any = None) -> None:
    status: int = (found or functions()).profile_write(path)
    if status == _NO_PROFILE:
        raise _not_profiled()
    if status != 0:
        raise OSError(f"{os.fsdecode(path)} cannot be written; name a file in a folder that can be")


def report(path: str, form: str | None, out: str | None, before: str | None) -> int:
    """Draws the profile in a file, as `pymem_report` does; gives the command's status. The process need not be served.

    What is wrong with a file, the library says in one line on stderr.
    """
    try:
        draw = ctypes.CDLL(library_path()).pymem_report
    except OSError as error:
        raise Refusal(USAGE, f"the library cannot be loaded: {error}") from None
    draw.argtypes = (ctypes.c_char_p,) * 4
    draw.restype = ctypes.c_int
    words = (None if word is None else os.fsencode(word) for word in (path, form, out, before))
    return 0 if draw(*words) == 0 else USAGE
