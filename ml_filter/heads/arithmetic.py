"""Matrix products that come out the same however many threads share them."""

import os


def steady_arithmetic() -> None:
    """Have matrix products come out the same whatever the number of threads, in processes that start from now on too.

    MKL reads this when it is first used, so it is said before any model is loaded: in its strict mode each element is
    summed in one order (Intel oneMKL Developer Guide, Conditional Numerical Reproducibility). It costs no time that
    could be measured.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
