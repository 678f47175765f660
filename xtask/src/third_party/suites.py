"""Runs CPython's tests of the named modules and prints the outcome of each, for `cargo xtask rustpython`."""

import sys
import time
import unittest

# Without end, or the end of the process, in RustPython 0.4, whatever its allocator.
ENDLESS = {
    "test_equal_operator_modifying_operand",
    "test_free_after_iterating",
    "test_list_resize_overflow",
}


class Outcomes(unittest.TestResult):
    """Prints a line for each test."""

    def startTest(self, test):
        super().startTest(test)
        self.outcome = "ok"

    def addError(self, test, err):
        self.outcome = f"error {err[0].__name__}"

    def addFailure(self, test, err):
        self.outcome = f"failure {err[0].__name__}"

    def addSkip(self, test, reason):
        self.outcome = "skipped"

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.outcome = f"in a part: {err[0].__name__}"

    def stopTest(self, test):
        print("outcome", test.id(), self.outcome, flush=True)


def tests(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests(test)
        elif test.id().rsplit(".", 1)[-1] not in ENDLESS:
            yield test


start = time.process_time()
for name in sys.argv[1:]:
    result = Outcomes()
    for test in tests(unittest.defaultTestLoader.loadTestsFromName(name)):
        test.run(result)
print("seconds", time.process_time() - start)
with open("/proc/self/status") as status:
    print("peak", next(line.split()[1] for line in status if line.startswith("VmHWM")))
