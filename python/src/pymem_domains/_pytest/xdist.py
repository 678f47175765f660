"""Under pytest-xdist, whose workers inherit the library and are replaced by xdist when they die."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

#: The folder in which each worker has a file that gets its stderr.
_FOLDER = "PYMEM_PYTEST_FOLDER"


def is_worker() -> bool:
    """Whether this process is a worker, as early as that can be told."""
    return "PYTEST_XDIST_WORKER" in os.environ


def keep_stderr(config: pytest.Config) -> None:
    """Leaves stderr itself alone in a worker: pytest's own file for it is gone with the process. Python's streams are still
    each test's own."""
    options = config.known_args_namespace
    if getattr(options, "capture", None) == "fd":
        options.capture = "sys"


class Controller:
    """Starts workers such that what one says when it dies is kept, and adds that to the report of the test that it had."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="pymem-")
        os.environ[_FOLDER] = self.folder.name
        # The library takes this out of the environment of each process that counts.
        os.environ["PYMEM_LIMIT"] = "none"

    def pytest_unconfigure(self) -> None:
        self.folder.cleanup()

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, report: Any) -> None:
        path = Path(self.folder.name, f"{report.node.gateway.id}.stderr")
        text = path.read_text(errors="replace") if path.exists() else ""
        if text:
            report.sections.append(("Captured stderr call", text))


class Worker:
    """Sends this worker's stderr to its file."""

    def __init__(self, config: pytest.Config) -> None:
        folder = os.environ.get(_FOLDER)
        if folder is None:
            return
        worker = config.workerinput["workerid"]  # type: ignore[attr-defined]
        file = os.open(Path(folder, f"{worker}.stderr"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(file, 2)
        os.close(file)
