"""A head that tests control by the texts they send: `hold FILE` waits until the file exists, `break ...` raises.

With HOLD_LOADING set to a file, loading waits until the file exists. `python controlled_head.py HEAD [OPTION...]` runs
`ml-filter serve` with such a head.
"""

import os
import sys
import time
from pathlib import Path

from ml_filter.cli import main
from ml_filter.heads.kinds import load_head
from ml_filter.serving import server


def wait_for(file):
    while not Path(file).exists():
        time.sleep(0.005)


def load_controlled(*arguments):
    wait_for(os.environ.get("HOLD_LOADING", "/"))
    engine = load_head(*arguments)
    score = engine.score

    def controlled(texts):
        for word, _, rest in (text.partition(" ") for text in texts):
            if word == "hold":
                wait_for(rest)
            if word == "break":
                raise RuntimeError(" ".join(texts))
        return score(texts)

    engine.score = controlled
    return engine


if __name__ == "__main__":
    server.load_head = load_controlled
    sys.exit(main(["serve", *sys.argv[1:]]))
