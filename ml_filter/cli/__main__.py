"""`python -m ml_filter.cli`."""

from ml_filter.cli import main

if __name__ == "__main__":
    main()
