"""A server that writes, evolves, rates, answers and compares as a good model would, and sometimes as a bad one."""

from tests.annotation.conftest import serve  # noqa: F401 - the fixture of the annotation tests
from tests.publishing.conftest import hub  # noqa: F401
