"""`pymem-domains run`: becomes the program, served.

It imports nothing that the interpreter has not imported by itself: what it costs is what a start takes longer.
"""

import os
import sys

from . import _preload
from ._errors import NOT_FOUND, NOT_STARTED, USAGE, Refusal
from ._request import Request, parse_bytes

USAGE_LINE = (
    "usage: pymem-domains run [--malloc NAME] [--debug WORDS] [--limit BYTES] [--stats] [--profile FILE] "
    "[--heap-map FILE] [--trace FILE] [--trace-limit BYTES] [--] (SCRIPT.py | -m MODULE | -c CODE | PROGRAM) [ARGUMENT ...]"
)

#: `off`: the program is started as if the command were not there.
SWITCH = "PYMEM_DOMAINS"

_PYTHON_FILES = (".py", ".pyw", ".pyc", ".pyz")


def run(arguments: list[str]) -> int:
    """Takes this process's place with the program; returns only a status, when there is nothing to be started."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(HELP)
        return 0
    request, command = parse(arguments)
    if request.trace_limit is not None and request.trace is None:
        raise Refusal(USAGE, "`--trace-limit` is of a log, and none is asked for; add --trace FILE")
    if not command:
        raise Refusal(USAGE, f"no program is named\n{USAGE_LINE}")
    argv = resolve(command)
    environment = dict(os.environ)
    if environment.get(SWITCH) != "off":
        environment.update(served(request, environment, is_ours=argv[0] == sys.executable))
        _preload.check_program(argv[0])
    try:
        # The program takes this process's place: its number, its signals and its status are the program's.
        os.execve(argv[0], _named(argv, command), environment)
    except OSError as error:
        raise Refusal(NOT_STARTED, f"{argv[0]} cannot be started: {error.strerror}") from None


def served(request: Request, environment: dict[str, str], *, is_ours: bool = True) -> dict[str, str]:
    """What `environment` needs beside what it has, for a process that is served as `request` says.

    `is_ours` says that this very interpreter is what is started.
    """
    _preload.check_platform()
    if is_ours:
        _preload.check_interpreter()
    library = _preload.library_path()
    _preload.check_library(library)
    request.choose_row(environment.get("PYTHONMALLOC") or environment.get("PYMEM_MALLOC"))
    preloads = _preload.preloads(library, environment.get("LD_PRELOAD"))
    return {**request.variables(), "LD_PRELOAD": preloads}


def parse(arguments: list[str]) -> tuple[Request, list[str]]:
    """The options before the program, and the program with its arguments."""
    request = Request()
    words = iter(range(len(arguments)))
    for at in words:
        word = arguments[at]
        if word == "--":
            return request, arguments[at + 1 :]
        if not word.startswith("--"):
            return request, arguments[at:]
        name, has_value, value = word.partition("=")
        if name == "--stats" and not has_value:
            request.stats = True
            continue
        if name not in _WITH_VALUE:
            raise Refusal(USAGE, f"`{word}` is no option\n{USAGE_LINE}")
        if not has_value:
            following = next(words, None)
            if following is None:
                raise Refusal(USAGE, f"`{name}` needs a value\n{USAGE_LINE}")
            value = arguments[following]
        if not value:
            raise Refusal(USAGE, f"`{name}` needs a value that is not empty; give one, or leave it out")
        setattr(request, name[2:].replace("-", "_"), parse_bytes(value) if name in _AMOUNTS else value)
    return request, []


_AMOUNTS = ("--limit", "--trace-limit")
#: Each is named as its field of `Request`.
_WITH_VALUE = ("--malloc", "--debug", "--profile", "--heap-map", "--trace", *_AMOUNTS)


def resolve(command: list[str]) -> list[str]:
    """The words with which the program is started: first the path of what is executed.

    Words that begin with `-` are the interpreter's own, and so is a file or folder that only it can run. Anything else is
    a program, found as a shell finds it.
    """
    program = command[0]
    if program.startswith("-"):
        return [sys.executable, *command]
    is_python = program.endswith(_PYTHON_FILES) or os.path.isfile(os.path.join(program, "__main__.py"))
    if is_python and os.path.exists(program):
        return [sys.executable, *command]
    if "/" in program:
        found = program if os.path.isfile(program) else None
    else:
        folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
        candidates = (os.path.join(folder or ".", program) for folder in folders)
        runs = (path for path in candidates if os.path.isfile(path) and os.access(path, os.X_OK))
        found = next(runs, program if os.path.isfile(program) else None)
    if found is None:
        raise Refusal(NOT_FOUND, f"there is no program `{program}`")
    if not os.access(found, os.X_OK):
        return [sys.executable, *command]
    return [found, *command[1:]]


def _named(argv: list[str], command: list[str]) -> list[str]:
    """The words as the program sees them: a program found on `PATH` is called by the name that it was asked for."""
    return argv if argv[0] == sys.executable else [command[0], *argv[1:]]


HELP = f"""{USAGE_LINE}

Becomes the program, with every raw, mem and obj allocation of its Python served. Its process id, signals, streams, sys.argv
and exit status are the program's own; its children are served too.

  --malloc NAME      the row: default, debug, malloc, pymalloc, mimalloc, or one of the last three with _debug
  --debug WORDS      checks beyond CPython's, such as strict or quarantine=16M,backtrace=8; the row is debug unless named.
                     guard=1/1000 goes with any row
  --limit BYTES      an allocation that would bring the live blocks above this fails with MemoryError: 512 MB, 2 GiB
  --stats            report on stderr at exit what was served
  --profile FILE     who holds the memory, at exit and on SIGUSR1: app.html is a page, app.json is for `report`. Options
                     follow after commas: sample=512K, frames=32, native
  --heap-map FILE    an SVG picture of the heap at exit, and on SIGUSR1
  --trace FILE       log every call of the three domains, 16 bytes each, for `replay`
  --trace-limit BYTES
                     the log stops growing at this, 4 GiB unless given; the rest is counted

Status: the program's own; 2 for a command line that says nothing, 125 where this platform or interpreter cannot be served,
126 for a program that cannot be started or preloaded into, 127 for none of that name. PYMEM_DOMAINS=off in the environment
starts the program as if the command were not there."""
