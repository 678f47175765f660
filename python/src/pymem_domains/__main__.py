"""`python -m pymem_domains`: the command."""

import sys

from pymem_domains._command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
