"""Tables in files: CSV and xlsx in any container, as streams of text columns.

Here: containers (.gz, .zip), other formats by name, encodings, sheets, headers, field counts; every
value comes out as the text that stood in the file, with its row number. A large CSV file is made
fit for another engine (``scan_csv``). Not here: what the text means (each domain's transforms.py),
where the file came from (http/).
"""

from retail_assets.resources.tabular.delimited import find_unpaired_quote
from retail_assets.resources.tabular.files import Opened, open_strict_csv, open_tables
from retail_assets.resources.tabular.formats import HEAD_BYTES, refuse_other_formats, utf16_of
from retail_assets.resources.tabular.scan import ScannedCsv, scan_csv
from retail_assets.resources.tabular.tables import (
    ROW,
    NoTableError,
    RejectedRow,
    TextTable,
    UnreadableFileError,
    clean_name,
)
from retail_assets.resources.tabular.workbook_xml import NO_VALUE_MARK
from retail_assets.resources.tabular.workbooks import CELL_MARKS

__all__ = [
    "CELL_MARKS",
    "HEAD_BYTES",
    "NO_VALUE_MARK",
    "ROW",
    "NoTableError",
    "Opened",
    "RejectedRow",
    "ScannedCsv",
    "TextTable",
    "UnreadableFileError",
    "clean_name",
    "find_unpaired_quote",
    "open_strict_csv",
    "open_tables",
    "refuse_other_formats",
    "scan_csv",
    "utf16_of",
]
