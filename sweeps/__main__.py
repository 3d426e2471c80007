"""`python -m sweeps VERB ...`: the entry point on a cluster."""

import sys

from sweeps.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
