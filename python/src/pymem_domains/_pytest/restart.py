"""Serves a session: the process starts again with the library preloaded, unless it has it already."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .._errors import PymemError
from .._library import active
from .._request import ROWS, Request
from .._run import served

#: Tells a process that it was started again, and with which words; its children do not see it.
_RESTARTED = "PYMEM_PYTEST_RESTARTED"


def request_of(words: str) -> Request:
    """`ROW[,WORDS]`, or words alone, which are checks."""
    request = Request()
    first, _, rest = words.partition(",")
    if first in ROWS:
        request.malloc, request.debug = first, rest or None
    else:
        request.debug = words
    request.limit = 0
    return request


def serve(config: pytest.Config, words: str) -> None:
    """Becomes this very process again, served by `words`; returns in a process that is."""
    if os.environ.pop(_RESTARTED, None) == words:
        if not active():
            raise pytest.UsageError(
                f"--pymem={words}: the interpreter was started with the library preloaded and is not served; "
                "`pymem-domains doctor` says why"
            )
        return
    line = [os.fsdecode(word) for word in Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]]
    arguments = [os.fspath(argument) for argument in config.invocation_params.args]
    if line[len(line) - len(arguments) :] != arguments:
        raise pytest.UsageError(
            "--pymem starts the process again, and this one was not started by pytest's command line; start it by "
            "`python -m pymem_domains run`"
        )
    try:
        variables = served(request_of(words), dict(os.environ))
    except PymemError as error:
        raise pytest.UsageError(f"--pymem={words}: {error}") from None
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, line, {**os.environ, **variables, _RESTARTED: words})  # noqa: S606
