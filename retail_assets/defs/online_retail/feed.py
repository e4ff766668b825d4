"""Online retail's data: one source, UCI's workbook(s), that is the whole truth for its days."""

from datetime import date
from pathlib import Path

from retail_assets.defs.online_retail.contract import DOMAIN, ONLINE_RETAIL_DATA, SOURCE_COLUMNS
from retail_assets.feeds.snapshot import RowTyping, SnapshotFeed
from retail_assets.settings import SAMPLE_SOURCE


def _typing() -> RowTyping:
    from retail_assets.defs.online_retail import transforms

    return RowTyping(
        version=transforms.TYPING_VERSION,
        type_files=transforms.type_files,
        columns=transforms.COLUMNS,
        identity="transaction_id",
        text=transforms.TEXT,
        moment="invoice_datetime",
        fields=tuple(SOURCE_COLUMNS),
    )


def _write_sample(path: Path) -> None:
    from retail_assets.defs.online_retail.sample import write_sample

    write_sample(path)


FEED = SnapshotFeed(
    DOMAIN,
    ONLINE_RETAIL_DATA,
    first_day=date(2009, 12, 1),
    last_day=date(2011, 12, 31),
    source=(SAMPLE_SOURCE,),
    typing=_typing,
    sums={"revenue": "total_price"},
    write_sample=_write_sample,
)
