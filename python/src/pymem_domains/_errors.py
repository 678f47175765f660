"""What is raised, and the statuses with which the command ends."""

#: A command line that says nothing that can be done.
USAGE = 2
#: What `env`, `timeout` and `nohup` end with too: the command itself cannot do it, so the program was not started.
NOT_SERVED = 125
#: The program is there and cannot be started, or not with a library preloaded.
NOT_STARTED = 126
#: There is no such program.
NOT_FOUND = 127


class PymemError(Exception):
    """The base of what this package raises."""


class Refusal(PymemError):
    """One sentence that says what is wrong and what to do, and the status with which the command ends."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class NotServedError(PymemError, RuntimeError):
    """The library does not serve this process."""


class NotCountedError(PymemError, RuntimeError):
    """The process was started without the counts that the call needs."""


class NotProfiledError(PymemError, RuntimeError):
    """The process has no profile, or cannot have one."""
