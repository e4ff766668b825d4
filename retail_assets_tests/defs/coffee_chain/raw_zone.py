"""Raw files of the coffee chain with a few lines each, delivered to a lake as others would."""

import os
from dataclasses import dataclass
from pathlib import Path

from retail_assets.defs.coffee_chain.contract import (
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    RawFiles,
)
from retail_assets.resources.lake.folder import LocalLake

D1, D2, D3 = "2018-06-30", "2018-12-31", "2019-06-30"


def sale(
    index: int = 1,
    at: str = "2018-03-01 10:00:00",
    customer: str = "c1",
    outlet: str = "MY001",
    product: str = "PD001",
    quantity: object = 1,
) -> str:
    """A line of sales; its invoice is the index."""
    return f"{index},I{index},{at},{customer},{outlet},{product},{quantity}"


def person(index: int = 1, customer: str = "c1", birthday: str = "1990-01-02") -> str:
    """A row of customers."""
    return f"{index},{customer},Siti,Tan,F,{birthday},{customer}@example.com,+60 12-345"


@dataclass
class RawZone:
    """Where others deliver to. Every delivery has a later time than the one before."""

    root: Path
    clock: int = 1_600_000_000

    @property
    def lake(self) -> LocalLake:
        """The lake of which it is a part."""
        return LocalLake(root=str(self.root))

    def deliver(self, kind: RawFiles, date: str, *lines: str, header: str | None = None) -> Path:
        """Write a file of that kind, whole, with the usual header or another."""
        first = ",".join(kind.header) if header is None else header
        return self.deliver_bytes(kind.name(date), "\n".join([first, *lines, ""]).encode())

    def deliver_bytes(self, name: str, content: bytes) -> Path:
        """Write a file of any name."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.touch(path)
        return path

    def touch(self, path: Path) -> None:
        """Give a file a later time."""
        self.clock += 1
        os.utime(path, (self.clock, self.clock))

    def sales(self, date: str, *lines: str) -> Path:
        """Deliver the sales of a drop."""
        return self.deliver(RAW_SALES, date, *lines)

    def customers(self, date: str, *rows: str) -> Path:
        """Deliver the customers of a drop."""
        return self.deliver(RAW_CUSTOMER, date, *rows)

    def outlets(self, *rows: str) -> Path:
        """Deliver the outlets."""
        return self.deliver(
            RAW_OUTLET, "", *(rows or ("MY001,KLCC,1 Jalan Ampang,Selangor,1000,",))
        )

    def products(self, *rows: str) -> Path:
        """Deliver the products."""
        return self.deliver(RAW_PRODUCT, "", *(rows or ["1,PD001,Latte,RM 9.90"]))
