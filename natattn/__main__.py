"""`python -m natattn` is the `natattn` command."""

import sys

from natattn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
