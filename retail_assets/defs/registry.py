"""Which domains there are.

Here: one line a domain. Not here: what a domain does (its domain.py, which imports nothing heavy:
the command line asks here for the names).
"""

from retail_assets.defs.coffee_chain.domain import CoffeeChain
from retail_assets.defs.online_retail.domain import OnlineRetail
from retail_assets.defs.supply_chain.domain import SupplyChain
from retail_assets.domain import Domain

_DOMAINS: tuple[Domain, ...] = (OnlineRetail(), CoffeeChain(), SupplyChain())


class UnknownDomainError(LookupError):
    """No domain has that name; the message says which there are."""


def domains() -> tuple[Domain, ...]:
    """Every domain, in the order in which commands show them."""
    return _DOMAINS


def load_domain(name: str) -> Domain:
    """The domain called ``name``.

    Raises:
        UnknownDomainError: there is none.
    """
    for domain in _DOMAINS:
        if domain.name == name:
            return domain
    names = ", ".join(domain.name for domain in _DOMAINS)
    raise UnknownDomainError(f"{name!r} is no domain; one of: {names}")
