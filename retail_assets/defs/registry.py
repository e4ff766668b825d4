"""Which domains there are: each folder of defs that has a feed.py, whose FEED is one.

Here also: the commands that a domain brings, COMMANDS of its commands.py. Not here: what a domain
does (its feed.py, which imports nothing heavy: the command line asks here for the names).
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from retail_assets.domain import Domain
from retail_assets.errors import PermanentError

_FOLDER = Path(__file__).parent


class UnknownDomainError(PermanentError):
    """No domain has that name; the message says which there are."""


def _folders(file: str) -> list[str]:
    # By folder rather than by Dagster's loader: that one imports every installed plugin, the
    # Google clients among them.
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{file}"))


@cache
def domains() -> tuple[Domain, ...]:
    """Every domain, by name."""
    return tuple(load_domain(name) for name in _folders("feed.py"))


def load_domain(name: str) -> Domain:
    """The domain called ``name``.

    Raises:
        UnknownDomainError: there is none.
    """
    names = _folders("feed.py")
    if name not in names:
        raise UnknownDomainError(f"{name!r} is no domain; one of: {', '.join(names)}")
    feed: Domain = import_module(f"retail_assets.defs.{name}.feed").FEED
    return feed


@cache
def load_commands() -> Mapping[str, Mapping[str, Callable[..., None]]]:
    """By domain, the commands that it brings, by name. The first call imports them."""
    return {
        name: import_module(f"retail_assets.defs.{name}.commands").COMMANDS
        for name in _folders("commands.py")
    }
