"""Runs the tests in a forked process, so that one which ends it ends no other.

The process that pytest was started as has collected the tests and prints what became of them, and runs none. Its child
runs them one by one, each when it is told to. When the child dies, the test that it had is reported as failed, with what
was written to stderr, and the rest goes on in the next child.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

#: What the parent says.
_RUN, _END = b"r", b"e"


class Loop:
    """The loop over the tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        # Every child puts its folders below one.
        factory = getattr(self.config, "_tmp_path_factory", None)
        if factory is not None:
            factory.getbasetemp()
        done = 0
        while done < len(session.items):
            child = Child(session, done)
            try:
                done = self._follow(session, child, done)
            except BaseException:
                child.stop()
                raise
            child.end()
        return True

    def _follow(self, session: pytest.Session, child: Child, done: int) -> int:
        """Has one test after another run by `child`; gives the number of the first that it has not done."""
        hook = self.config.hook
        while done < len(session.items):
            item = session.items[done]
            hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            start = time.time()
            answer = child.run()
            if isinstance(answer, Died):
                for report in _reports_of_death(item, answer, start, self.config):
                    hook.pytest_runtest_logreport(report=report)
            else:
                for data in answer["reports"]:
                    report = hook.pytest_report_from_serializable(config=self.config, data=data)
                    hook.pytest_runtest_logreport(report=report)
                for warning in answer["warnings"]:
                    hook.pytest_warning_recorded.call_historic(kwargs=warning)
            hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
            done += 1
            if not isinstance(answer, Died) and answer["exit"]:
                pytest.exit(*answer["exit"])
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            if isinstance(answer, Died):
                break
        return done


class Died:
    """A child that has ended before its answer."""

    def __init__(self, status: int) -> None:
        self.status = status

    def __str__(self) -> str:
        if os.WIFSIGNALED(self.status):
            return f"ended by {signal.Signals(os.WTERMSIG(self.status)).name}"
        return f"ended with status {os.WEXITSTATUS(self.status)}"


class Child:
    """A process that runs tests, from the test of number `first` on."""

    def __init__(self, session: pytest.Session, first: int) -> None:
        orders, self.orders = os.pipe()
        answers, self.child_answers = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        # From 3.12 on a warning about threads of the parent, which has collected tests and no more.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process = os.fork()
        if self.process == 0:
            os.close(self.orders)
            os.close(answers)
            with os.fdopen(orders, "rb", buffering=0) as told, os.fdopen(self.child_answers, "wb") as out:
                _work(session, first, told, out)
        os.close(orders)
        os.close(self.child_answers)
        self.answers: BinaryIO = os.fdopen(answers, "rb")

    def run(self) -> Any:
        """Has the next test run; gives what became of it, or `Died`."""
        try:
            os.write(self.orders, _RUN)
            return pickle.load(self.answers)  # noqa: S301
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            return Died(self._wait())

    def end(self) -> None:
        """Lets the child end by itself."""
        if self.process:
            self._wait()

    def stop(self) -> None:
        """Has the child take down what its tests have set up, and end; it has not much time."""
        if not self.process:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self.orders, _END)
        for _ in range(100):
            ended, _ = os.waitpid(self.process, os.WNOHANG)
            if ended:
                self.process = 0
                return
            time.sleep(0.05)
        os.kill(self.process, signal.SIGKILL)
        self._wait()

    def _wait(self) -> int:
        os.close(self.orders)
        status = os.waitpid(self.process, 0)[1]
        self.process = 0
        return status


class _Recorder:
    """Takes what a test's run tells, in place of those who print it."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}

    def begin(self) -> None:
        self.answer = {"reports": [], "warnings": [], "exit": None}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        from _pytest.runner import runtestprotocol

        for report in runtestprotocol(item, log=False, nextitem=nextitem):
            data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
            self.answer["reports"].append(data)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        told = {"when": when, "nodeid": nodeid, "location": location}
        self.answer["warnings"].append({"warning_message": _portable(warning_message), **told})


def _portable(message: warnings.WarningMessage) -> warnings.WarningMessage:
    """A warning of a class that the parent may not have becomes one of the nearest class that it has."""
    try:
        pickle.loads(pickle.dumps(message))  # noqa: S301
    except Exception:
        category = next(kind for kind in message.category.__mro__ if kind.__module__ == "builtins")
        text = category(f"{message.category.__name__}: {message.message}")
        return warnings.WarningMessage(text, category, message.filename, message.lineno)
    return message


def _work(session: pytest.Session, first: int, told: Any, out: BinaryIO) -> NoReturn:
    """Runs tests as the parent asks for them, and ends the process."""
    recorder = _Recorder()
    recorder.begin()
    session.config.pluginmanager.register(recorder, "pymem-recorder")
    _send_faults_to_capture()
    # A process that a test forks must not keep the parent waiting, nor answer it.
    for stream in (told, out):
        os.register_at_fork(after_in_child=stream.close)
    _disown_processes()
    items = session.items

    def run() -> None:
        for at in range(first, len(items)):
            if told.read(1) != _RUN:
                session._setupstate.teardown_exact(None)
                break
            recorder.begin()
            nextitem = items[at + 1] if at + 1 < len(items) else None
            try:
                session.config.hook.pytest_runtest_protocol(item=items[at], nextitem=nextitem)
            except pytest.exit.Exception as exit_:
                recorder.answer["exit"] = (exit_.msg, exit_.returncode)
            pickle.dump(recorder.answer, out)
            out.flush()

    did_all = [_does(run), _does(_end_processes)]
    sys.stdout.flush()
    sys.stderr.flush()
    # Not the interpreter's end, which is the parent's: its handlers, and files that are to be written once.
    os._exit(not all(did_all))


def _does(part: Callable[[], None]) -> bool:
    """Whether `part` comes to its end; what keeps it from that is printed."""
    try:
        part()
    except BaseException:
        import traceback

        traceback.print_exc()
        return False
    return True


def _disown_processes() -> None:
    """Leaves the processes of the parent to it."""
    multiprocessing: Any = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None:
        multiprocessing._children = set()


def _end_processes() -> None:
    """Ends what the tests have left of `multiprocessing` as the interpreter's end would."""
    multiprocessing: Any = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:
        # Threads first, which have the workers of pools end.
        threading._shutdown()  # type: ignore[attr-defined]
        multiprocessing._exit_function()


def _send_faults_to_capture() -> None:
    """Has faulthandler write where a test's stderr goes, so that a traceback is part of the test's report."""
    import faulthandler

    if faulthandler.is_enabled():
        faulthandler.enable(file=2)


def _reports_of_death(item: pytest.Item, died: Died, start: float, config: pytest.Config) -> list[pytest.TestReport]:
    """A failed call between a set-up and a take-down, as every reporter expects them."""
    output, errors = "", ""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None and capture.is_globally_capturing():
        # What the child has written is in the files that it shares with this process.
        output, errors = capture.read_global_capture()
    text = f"pymem: the process of this test {died}, and the rest goes on in a fresh one"
    reports = []
    for when, outcome, longrepr in (("setup", "passed", None), ("call", "failed", text), ("teardown", "passed", None)):
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome=outcome,  # type: ignore[arg-type]
            longrepr=longrepr,
            when=when,  # type: ignore[arg-type]
            duration=time.time() - start if when == "call" else 0,
            start=start,
            stop=time.time(),
        )
        if when == "call":
            texts = (("Captured stdout call", output), ("Captured stderr call", errors))
            report.sections.extend((name, text) for name, text in texts if text)
        reports.append(report)
    return reports
