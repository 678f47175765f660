"""The markers `limit_memory` and `limit_leaks`, and the list of the largest tests."""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.logging import LogCaptureHandler

from .. import _library
from .._errors import Refusal
from .._request import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_PEAK = pytest.StashKey[int]()

#: Calls of a test whose leaks are limited, after the warmups, and how many of the rounds decide: what one leaves for ever, a
#: cache say, the next does not leave again, and another thread may take or give a block in any.
_ROUNDS = (10, 20, 40)
_MAJORITY = 2


class Limits:
    """Measures the body of every test, and holds it to its markers."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.peaks: dict[str, int] = {}

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        result = yield
        # While it is this test's time, and its stderr is kept: what was written to a freed block would be found in the time of
        # another.
        _library.verify()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        at_most = _memory(item)
        leak_limit, warmups = _leaks(item)
        body = _Body(item)
        with body:
            result = yield
        item.stash[_PEAK] = body.peak
        if at_most is not None and body.peak > at_most:
            pytest.fail(f"limit_memory: {body.peak} bytes were live at a time, and {at_most} are the limit", pytrace=False)
        if leak_limit is not None:
            self._hold_to(item, leak_limit, warmups)
        return result

    def _hold_to(self, item: pytest.Item, at_most: int, warmups: int) -> None:
        # The call that pytest made was the first.
        for _ in range(warmups - 1):
            _call_again(item)
        before, after = _library.Counts(), _library.Counts()
        verdicts: list[str | None] = []
        for calls in _ROUNDS:
            gc.collect()
            before.take()
            for _ in range(calls):
                _call_again(item)
            gc.collect()
            after.take()
            grown = after.bytes - before.bytes
            blocks = after.blocks - before.blocks
            text = f"{calls} calls left {grown} bytes in {blocks} blocks, {grown / calls:.1f} bytes a call"
            verdicts.append(text if grown > at_most * calls else None)
            if verdicts.count(None) == _MAJORITY:
                return
        pytest.fail(f"limit_leaks: {verdicts[-1] or verdicts[-2]}, and {at_most} are the limit", pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call" and _PEAK in item.stash:
            # Goes with the report from a process to the one that prints.
            report.__dict__["pymem_peak"] = item.stash[_PEAK]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        peak = getattr(report, "pymem_peak", None)
        if peak is not None:
            self.peaks[report.nodeid] = peak

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        largest = sorted(self.peaks.items(), key=lambda test: -test[1])[: self.largest]
        if largest:
            served = _library.stats()
            terminalreporter.section(f"largest tests, on {served.row}")
            for nodeid, peak in largest:
                terminalreporter.line(f"{peak:>14} bytes  {nodeid}")


def _call_again(item: pytest.Item) -> None:
    """Calls a test that pytest has called, and has pytest keep nothing of it: no log, no warning, no patch."""
    fixtures = getattr(item, "funcargs", {}).values()
    patches = [fixture for fixture in fixtures if isinstance(fixture, pytest.MonkeyPatch)]
    records = [fixture for fixture in fixtures if isinstance(fixture, pytest.WarningsRecorder)]
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, LogCaptureHandler)]
    kept = [(owner, dict(vars(owner))) for owner in (*patches, *handlers)]
    for patch in patches:
        vars(patch).update(vars(pytest.MonkeyPatch()))
    for handler in handlers:
        handler.reset()
    for record in records:
        record.clear()
    try:
        # A test that looks at its warnings has them from its own fixture, and each that it has seen again.
        with warnings.catch_warnings(record=not records):
            item.runtest()
    finally:
        for patch in patches:
            patch.undo()
        for owner, attributes in kept:
            vars(owner).update(attributes)


class _Body:
    """Measures a test: its function alone where it has a plain one, so that what pytest takes for the call does not count."""

    def __init__(self, item: pytest.Item) -> None:
        self.item = item
        self.function: Any = getattr(item, "obj", None)
        self.before, self.after = _library.Counts(), _library.Counts()
        self.is_plain = callable(self.function) and not (
            inspect.iscoroutinefunction(self.function) or inspect.isasyncgenfunction(self.function)
        )

    @property
    def peak(self) -> int:
        """The most bytes that were live at a time beyond those from before."""
        return max(self.after.peak_bytes - self.before.bytes, 0)

    def __enter__(self) -> None:
        if self.is_plain:
            self.item.obj = self._measured(self.function)  # type: ignore[attr-defined]
        self._begin()

    def __exit__(self, *_exception: object) -> None:
        if self.is_plain:
            self.item.obj = self.function  # type: ignore[attr-defined]
        else:
            self.after.take()

    def _begin(self) -> None:
        _library.reset_peak()
        self.before.take()

    def _measured(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*arguments: Any, **keywords: Any) -> Any:
            self._begin()
            try:
                return function(*arguments, **keywords)
            finally:
                self.after.take()

        return measured


class UncheckedLimits:
    """Says at the end that limits were not checked, in a session that counts nothing."""

    def __init__(self) -> None:
        self.count = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        names = ("limit_memory", "limit_leaks")
        self.count = sum(any(item.get_closest_marker(name) for name in names) for item in items)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.count:
            terminalreporter.line(f"pymem: the limits of {self.count} tests were not checked; add --pymem=pymalloc")


def _amount(item: pytest.Item, name: str) -> int | None:
    marker = item.get_closest_marker(name)
    if marker is None:
        return None
    if len(marker.args) != 1 or not isinstance(marker.args[0], str):
        pytest.fail(f'{name} needs an amount, such as "100 MB", and nothing after it', pytrace=False)
    fault = ""
    try:
        return parse_bytes(marker.args[0])
    except Refusal as refusal:
        fault = str(refusal)
    pytest.fail(f"{name}: {fault}", pytrace=False)


def _memory(item: pytest.Item) -> int | None:
    marker = item.get_closest_marker("limit_memory")
    if marker is not None and marker.kwargs:
        pytest.fail(f"limit_memory takes an amount alone; leave out {', '.join(marker.kwargs)}", pytrace=False)
    return _amount(item, "limit_memory")


def _leaks(item: pytest.Item) -> tuple[int | None, int]:
    amount = _amount(item, "limit_leaks")
    marker = item.get_closest_marker("limit_leaks")
    keywords: dict[str, Any] = dict(marker.kwargs) if marker else {}
    warmups = keywords.pop("warmups", 2)
    if keywords or not isinstance(warmups, int) or warmups < 1:
        pytest.fail("limit_leaks takes an amount and warmups, a number from 1 on", pytrace=False)
    return amount, warmups
