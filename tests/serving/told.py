"""`ml-filter serve`, whose head does as a document says: `hold FILE` waits until the file is there, `break` raises.

Run as `python told.py HEAD [OPTION...]`. With HOLD_LOADING set to a file, the head is loaded when the file is there.
"""

import os
import sys
import time
from pathlib import Path

from ml_filter.cli import main
from ml_filter.serving import server

load = server.load_engine


def hold(file):
    while not Path(file).exists():
        time.sleep(0.01)


def load_told(*arguments):
    hold(os.environ.get("HOLD_LOADING", "/"))
    engine = load(*arguments)
    score = engine.score

    def told(texts):
        for what, _, file in (text.partition(" ") for text in texts):
            if what == "hold":
                hold(file)
            if what == "break":
                raise RuntimeError(" ".join(texts))
        return score(texts)

    engine.score = told
    return engine


if __name__ == "__main__":
    server.load_engine = load_told
    sys.argv = ["ml-filter", "serve", *sys.argv[1:]]
    sys.exit(main())
