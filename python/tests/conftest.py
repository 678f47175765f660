"""What the tests start: programs through the command, as people do, from the installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

#: Variables that change what is served.
FOREIGN = ("PYTHON", "PYMEM_", "PYTEST_", "LD_PRELOAD")


class Run(Protocol):
    """Starts `python -m pymem_domains` with these words."""

    def __call__(
        self, *words: str, env: dict[str, str] | None = None, stdin: str = "", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]: ...


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without what changes what is served, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**kept, **more}


def start(
    *words: str, env: dict[str, str] | None = None, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `words` to their end."""
    return subprocess.run(
        words,
        check=False,
        capture_output=True,
        text=True,
        env=clean_environment(**(env or {})),
        input=stdin,
        cwd=cwd,
        timeout=300,
    )


@pytest.fixture
def command() -> Run:
    """The command, in a process of its own."""

    def run(
        *words: str, env: dict[str, str] | None = None, stdin: str = "", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return start(sys.executable, "-m", "pymem_domains", *words, env=env, stdin=stdin, cwd=cwd)

    return run


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with a bug in each function."""
    source = Path(__file__).with_name("planted.c")
    library = tmp_path_factory.mktemp("planted") / "planted.so"
    subprocess.run(["cc", "-g", "-O0", "-shared", "-fPIC", source, "-o", library], check=True)
    return library


#: Resident memory of a server's processes in KiB, by test.
_NOTES = pytest.StashKey[dict[str, int]]()


class Note(Protocol):
    """Keeps a number for the end of the session."""

    def __call__(self, kibibytes: int) -> None: ...


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_NOTES] = {}


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Keeps the test's number."""

    def keep(kibibytes: int) -> None:
        request.config.stash[_NOTES][request.node.name] = kibibytes

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    notes = config.stash[_NOTES]
    if notes:
        terminalreporter.section("resident memory of a server's process")
        for name, kibibytes in notes.items():
            terminalreporter.line(f"{kibibytes:>8} KiB  {name}")
