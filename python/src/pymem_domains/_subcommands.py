"""The subcommands other than `run`, and the help of all of them."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from . import __version__
from ._errors import USAGE, Refusal
from ._request import ROWS, Request
from ._run import served

_DESCRIPTION = "CPython's memory domains on other allocators, with checks, limits and pictures."

#: The rows that `replay` compares where none is named.
COMPARED = ("malloc", "pymalloc", "mimalloc")


def main(arguments: list[str]) -> int:
    """Runs one of them; gives its exit status."""
    parser = argparse.ArgumentParser(prog="pymem-domains", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"pymem-domains {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("run", help="become a program, served; `run --help` has its options", add_help=False)
    env = commands.add_parser(
        "env",
        help="print what a shell, a Dockerfile or a systemd unit needs",
        description="Prints the variables with which a process is served, and its children.",
    )
    env.add_argument(
        "--malloc", metavar="NAME", choices=ROWS, help="the row; without it, what PYTHONMALLOC or PYMEM_MALLOC says"
    )
    env.add_argument("--debug", metavar="WORDS", help="checks beyond CPython's")
    env.add_argument(
        "--format", choices=("shell", "docker", "systemd"), default="shell", help="for whom (default: %(default)s)"
    )
    env.set_defaults(run=print_environment)
    report = commands.add_parser(
        "report",
        help="draw a profile",
        description="Draws what `run --profile FILE.json` wrote: who holds the memory, by line.",
    )
    report.add_argument("file", metavar="FILE", help="a profile")
    formats = "json, table, collapsed, speedscope, html, lines or pprof; else as --out is named"
    report.add_argument("--format", metavar="NAME", help=formats)
    report.add_argument("--out", metavar="FILE", help="the file that gets it; else the standard output gets a table")
    report.add_argument("--before", metavar="FILE", help="an older profile: only what grew since is drawn")
    report.set_defaults(run=print_report)
    map_ = commands.add_parser(
        "map",
        help="tell what a heap map shows",
        description="Tells in text what the SVG picture of a heap shows.",
    )
    map_.add_argument("file", metavar="FILE", help="what `run --heap-map` or `heap_map()` wrote")
    map_.set_defaults(run=print_map)
    replay = commands.add_parser(
        "replay",
        help="make a recorded program's calls again, row by row",
        description="Makes the calls that `run --trace FILE` logged again, on one row after another, each in a process of its "
        "own. Tells the time of the fastest of three passes, and by how much resident memory grew in the first.",
    )
    replay.add_argument("file", metavar="FILE", help="a log of calls, or a trace")
    replay.add_argument(
        "--malloc", metavar="NAME", choices=ROWS, action="append", help=f"a row, more than once; else {', '.join(COMPARED)}"
    )
    replay.set_defaults(run=print_replay)
    doctor = commands.add_parser(
        "doctor",
        help="tell what runs, what serves, and what to change",
        description="Tells what runs here, whether it can be served, what serves it now, and what to change.",
    )
    doctor.set_defaults(run=print_diagnosis)
    chosen = parser.parse_args(arguments)
    status: int = chosen.run(chosen)
    return status


def print_environment(chosen: argparse.Namespace) -> int:
    """`env`: the variables, in the form of who reads them."""
    request = Request()
    request.malloc, request.debug = chosen.malloc, chosen.debug
    # What is preloaded already is kept by the shell when it reads the line, and is not this process's to know elsewhere.
    inherited = {"LD_PRELOAD": os.environ.get("LD_PRELOAD", "")} if chosen.format == "shell" else {}
    variables = served(request, inherited)
    if request.debug:
        _check(variables)
    if chosen.format == "docker":
        print("\n".join(f'ENV {name}="{value}"' for name, value in variables.items()))
    elif chosen.format == "systemd":
        print("\n".join(f'Environment="{name}={value}"' for name, value in variables.items()))
    else:
        import shlex

        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))
    return 0


def _check(variables: dict[str, str]) -> None:
    """Has the library read its words, in an interpreter that does nothing."""
    words = [sys.executable, "-I", "-S", "-c", "pass"]
    tried = subprocess.run(words, check=False, capture_output=True, text=True, env={**os.environ, **variables})
    said = tried.stderr.strip().removeprefix("pymem-preload: ")
    # Anything else, as a file that is missing here, may be otherwise where the words are used.
    if said.startswith("PYMEM_DEBUG: "):
        raise Refusal(USAGE, said)


def print_report(chosen: argparse.Namespace) -> int:
    """`report`: a profile in another format."""
    from ._profile import report

    return report(chosen.file, chosen.format, chosen.out, chosen.before)


def print_replay(chosen: argparse.Namespace) -> int:
    """`replay`: a recorded program on several rows."""
    from ._replay import replay

    return replay(chosen.file, chosen.malloc or COMPARED)


def print_map(chosen: argparse.Namespace) -> int:
    """`map`: the title and the totals of a picture."""
    try:
        text = Path(chosen.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(USAGE, f"{chosen.file} cannot be read: {error}") from None
    words = dict(re.findall(r'<text class="([bm])"[^>]*>([^<]+)</text>', text))
    if "<svg" not in text or words.keys() != {"b", "m"}:
        raise Refusal(USAGE, f"{chosen.file} is no heap map; name a file that `run --heap-map` wrote")
    print(f"{words['b']}\n{words['m']}")
    return 0


def print_diagnosis(_chosen: argparse.Namespace) -> int:
    """`doctor`: facts, one a line, and advice."""
    from ._doctor import diagnosis

    lines, status = diagnosis()
    print("\n".join(lines))
    return status
