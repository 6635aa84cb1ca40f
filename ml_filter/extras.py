"""Extras: packages that only some commands need, and that are not installed without being asked for."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from ml_filter.errors import ConfigError


def how_to_install(*extras: str) -> str:
    """What to do about missing extras, as the end of a sentence."""
    names = " ".join(extras)
    if len(extras) > 1:
        return f'install the extras {names} with `make setup EXTRAS="{names}"`'
    return f"install the extra {names} with `make setup EXTRAS={names}`"


def missing_packages(packages: Iterable[str]) -> list[str]:
    """Those packages that cannot be imported."""
    return [name for name in packages if find_spec(name) is None]


def require_extra(extra: str, what: str, *packages: str) -> None:
    """Check that the packages of an extra are installed.

    Args:
        what: needs them, for the error.
        packages: as they are imported.

    Raises:
        ConfigError: one is not.
    """
    if missing := missing_packages(packages):
        raise ConfigError(f"{what} needs {', '.join(missing)}; {how_to_install(extra)}")
