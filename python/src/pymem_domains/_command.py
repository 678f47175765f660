"""The command `pymem-domains`: finds the subcommand, and makes a refusal one line and a status."""

import sys

from ._errors import USAGE, PymemError, Refusal


def main(arguments: list[str]) -> int:
    """Runs the command with the words after its name; gives its exit status."""
    try:
        if arguments[:1] == ["run"]:
            from ._run import run

            return run(arguments[1:])
        from ._subcommands import main as others

        return others(arguments)
    except PymemError as error:
        print(f"pymem-domains: {error}", file=sys.stderr)
        return error.status if isinstance(error, Refusal) else USAGE
