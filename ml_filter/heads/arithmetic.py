"""Make matrix products independent of the number of threads."""

import os


def steady_arithmetic() -> None:
    """Make MKL return the same bits with any number of threads, in this process and in those it starts.

    MKL reads the variable when it is first used, so call this before a model is loaded. In its strict mode each element
    is summed in one order (Intel oneMKL Developer Guide, Conditional Numerical Reproducibility), at no measurable cost.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
