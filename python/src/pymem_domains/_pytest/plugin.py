"""What pytest sees of the plugin: the option, the markers, and which parts are at work in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

#: The plugins of a session that is served.
_LIMITS, _LOOP, _WORKERS = "pymem-limits", "pymem-loop", "pymem-workers"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pymem", "memory domains")
    group.addoption(
        "--pymem",
        metavar="ROW[,WORDS]",
        help="run the tests on a row of pymem-domains (pymalloc, debug, ...), with checks such as strict or "
        "quarantine=16M; a test in whose time a violation is found fails, and the rest goes on in a fresh process",
    )
    group.addoption(
        "--pymem-largest",
        metavar="N",
        type=int,
        default=5,
        help="how many of the tests with the highest peak to list at the end (default: %(default)s)",
    )


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    # Before pytest redirects the streams: the process that takes this one's place needs them.
    words = getattr(early_config.known_args_namespace, "pymem", None)
    if words == "":
        raise pytest.UsageError("--pymem is empty; give a row or checks, such as --pymem=pymalloc or --pymem=strict")
    if words:
        from . import restart, xdist

        if xdist.is_worker():
            xdist.keep_stderr(early_config)
        else:
            restart.serve(early_config, words)
    yield


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "limit_memory(amount): with --pymem, fail when the test's own live bytes are above the amount at any time, such "
        'as "100 MB"; kB, MB and GB are thousands, KiB, MiB and GiB 1024s',
    )
    config.addinivalue_line(
        "markers",
        "limit_leaks(amount, warmups=2): with --pymem, run the test again and again, and fail when a call leaves more than the "
        "amount, on average, after the first ones",
    )
    from .limits import Limits, UncheckedLimits

    if not config.getoption("pymem"):
        config.pluginmanager.register(UncheckedLimits(), _LIMITS)
        return
    config.pluginmanager.register(Limits(config.getoption("pymem_largest")), _LIMITS)
    if hasattr(config, "workerinput"):
        from .xdist import Worker

        config.pluginmanager.register(Worker(config), _WORKERS)
    elif getattr(config.option, "dist", "no") != "no" and getattr(config.option, "tx", None):
        from .xdist import Controller

        config.pluginmanager.register(Controller(), _WORKERS)
    elif not config.getoption("collectonly"):
        from .loop import Loop

        config.pluginmanager.register(Loop(config), _LOOP)
