"""`python -m ml_filter.cli`."""

import sys

from ml_filter.cli import main

if __name__ == "__main__":
    sys.exit(main())
