"""xlsx: which sheets are read, and what their cells are where the reader of workbooks cannot say.

The reader (fastexcel) takes a formula whose value was never stored for an empty cell, and knows
only some number formats of dates. Both stand in the workbook's XML, and are mended in a copy of the
workbook that the reader is then given: workbook_xml.py.
"""

import re
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.resources.tabular.formats import telling_breakage
from retail_assets.resources.tabular.tables import (
    HEADER_WITHIN,
    FoundTable,
    IsHeader,
    NoTableError,
    TextTable,
    UnreadableFileError,
    blank_rows,
    clean_name,
    shown,
)
from retail_assets.resources.tabular.workbook_xml import (
    NO_VALUE_MARK,
    find_sheets,
    find_valueless,
    with_known_dates,
    with_marks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import fastexcel
    import pyarrow as pa

_ERROR = re.compile(r"Error\((\w+)\)")
_ERRORS = {
    "Div0": "#DIV/0!",
    "NA": "#N/A",
    "Name": "#NAME?",
    "Null": "#NULL!",
    "Num": "#NUM!",
    "Ref": "#REF!",
    "Value": "#VALUE!",
    "GettingData": "#GETTING_DATA",
}
_OTHER_ERROR = "#ERROR"
# The texts of cells that hold no value, whatever stands in them.
CELL_MARKS = frozenset({NO_VALUE_MARK, _OTHER_ERROR, *_ERRORS.values()})


def read_workbook(
    path: Path, label: str, folder: Path, is_header: IsHeader | None, skipped: list[str]
) -> list[FoundTable]:
    """A table for every visible sheet that is not empty; ``skipped`` is told of the hidden ones.

    ``folder`` is where a mended copy of the workbook may be put.

    Raises:
        NoTableError: no visible sheet has a row.
        UnreadableFileError: it is no workbook that can be read.
    """
    import fastexcel

    with telling_breakage(label):
        sheets = find_sheets(path, label)
        hidden = [name for name, sheet in sheets.items() if sheet.is_hidden]
        readable = _renamed(with_known_dates(path, folder), folder)
    members = [sheet.member for sheet in sheets.values() if not sheet.is_hidden and sheet.member]
    found = []
    try:
        # Beside the reader, which leaves the interpreter to others meanwhile.
        with ThreadPoolExecutor(1) as beside:
            looked = beside.submit(find_valueless, path, members)
            workbook = fastexcel.read_excel(readable)
            names = [name for name in workbook.sheet_names if name not in hidden]
            loaded = {name: _load(workbook, name) for name in names}
            with telling_breakage(label):
                valueless = looked.result()
        if valueless:
            with telling_breakage(label):
                workbook = fastexcel.read_excel(with_marks(readable, folder, valueless))
        for name in names:
            has_marks = name in sheets and sheets[name].member in valueless
            cells, has_errors = _load(workbook, name) if has_marks else loaded[name]
            table = _find_table(cells, label, name, is_header)
            if table is not None:
                table.table.has_marked_cells = has_marks or has_errors
                found.append(table)
    except fastexcel.FastExcelError as error:
        raise UnreadableFileError(
            f"{label} is not a readable xlsx workbook ({shown(str(error).splitlines()[0])}). Fetch"
            " it again, or save it anew as .xlsx."
        ) from error
    if not found:
        also = f"; hidden sheets ({', '.join(map(shown, hidden))}) are not read" if hidden else ""
        raise NoTableError(
            f"{label} has no sheet with a header{also}. Replace it at its origin"
            f"{', or show the sheet that is meant' if hidden else ''}."
        )
    skipped += [f"{label}[{shown(name)}]: the sheet is hidden" for name in hidden]
    return found


def _renamed(path: Path, folder: Path) -> Path:
    """The same file under a name that the reader does not take for another format's."""
    if path.suffix.lower() in ("", ".xlsx", ".xlsm"):
        return path
    name = folder / f"{secrets.token_hex(8)}.xlsx"
    name.symlink_to(path.absolute())
    return name


def _load(workbook: "fastexcel.ExcelReader", name: str) -> "tuple[pa.RecordBatch, bool]":
    """A sheet's cells as text from its first row on, and whether some are errors."""
    # All of it, once: reading the header alone would parse the sheet twice.
    loaded = workbook.load_sheet(name, header_row=None, skip_rows=0, dtypes="string")
    sheet, errors = loaded.to_arrow_with_errors()
    return (sheet, False) if errors is None else (_with_error_cells(sheet, errors), True)


def _with_error_cells(sheet: "pa.RecordBatch", errors: "fastexcel.CellErrors") -> "pa.RecordBatch":
    """Put the texts of error cells (#N/A, ...) where the reader left nulls.

    As a null, an error in a customer's number would pass for a row without a customer.
    """
    import pyarrow as pa

    columns = {}
    for error in errors.errors:
        row, column = error.offset_position
        found = _ERROR.search(error.detail)
        if column not in columns:
            columns[column] = sheet.column(column).to_pylist()
        columns[column][row] = _ERRORS.get(found[1], _OTHER_ERROR) if found else _OTHER_ERROR
    return pa.RecordBatch.from_arrays(
        [
            pa.array(columns[i], pa.string()) if i in columns else column
            for i, column in enumerate(sheet.columns)
        ],
        names=sheet.schema.names,
    )


def _find_table(
    sheet: "pa.RecordBatch", file: str, name: str, is_header: IsHeader | None
) -> FoundTable | None:
    """The table below the wanted header, or else below the first row that is not blank."""
    import pyarrow as pa

    columns = [_with_nulls(column.cast(pa.string())) for column in sheet.columns]
    is_blank = blank_rows(columns)
    filled = _first_filled(sheet.num_rows, is_blank)
    if not columns or not filled:
        return None
    rows = {at: [clean_name(column[at].as_py() or "") for column in columns] for at in filled}
    wanted = next((at for at in filled if is_header is not None and is_header(rows[at])), None)
    at = filled[0] if wanted is None else wanted
    table = TextTable(f"{file}[{shown(name)}]", rows[at], iter(()), file=file)
    table.batches = _sheet_batches(columns, is_blank, at + 1, table)
    return FoundTable(table, wanted is not None, filled.index(at))


def _with_nulls(column: "pa.Array") -> "pa.Array":
    """Null for an empty text, which formulas may give: as in CSV, it is a missing value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_empty = pc.equal(column, "")
    if not pc.any(is_empty).as_py():
        return column
    return pc.if_else(is_empty, pa.scalar(None, pa.string()), column)


def _first_filled(rows: int, is_blank: "pa.BooleanArray | None") -> Sequence[int]:
    if is_blank is None:
        return range(min(rows, HEADER_WITHIN))
    import pyarrow.compute as pc

    found: list[int] = pc.indices_nonzero(pc.invert(is_blank))[:HEADER_WITHIN].to_pylist()
    return found


def _sheet_batches(
    columns: "Iterable[pa.Array]", is_blank: "pa.BooleanArray | None", first: int, table: TextTable
) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [column.slice(first) for column in columns]
    numbers = pa.arange(first + 1, first + 1 + len(columns[0]))
    batch = pa.RecordBatch.from_arrays([numbers, *columns], schema=table.schema)
    if is_blank is not None:
        batch = batch.filter(pc.invert(is_blank.slice(first)))
    table.rows = batch.num_rows
    yield batch
