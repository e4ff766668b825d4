"""A made-up workbook of online retail, as UCI publishes it: deterministic, small, with its dirt.

Here: what the demo and the tests run on. Not here: real data (RETAIL_ONLINE_RETAIL_SOURCE).
"""

import random
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

Row = tuple[str, str, str | None, int, datetime, Decimal, int | None, str]

HEADER = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
_COUNTRIES = ("United Kingdom", "Germany", "France", "EIRE", "Spain", "Netherlands", "Belgium")
_COUNTRY_WEIGHTS = (90, 3, 3, 2, 1, 1, 1)
_ADJECTIVES = ("RED", "BLUE", "VINTAGE", "SMALL", "LARGE", "WOODEN", "PAPER", "RETROSPOT", "IVORY")
_NOUNS = ("LANTERN", "CAKE STAND", "BUNTING", "MUG", "T-LIGHT HOLDER", "LUNCH BAG", "CLOCK", "SIGN")
_FEES = (("POST", "POSTAGE", "18.00"), ("DOT", "DOTCOM POSTAGE", "75.50"), ("M", "Manual", "1.25"))
_FIRST_DAY = date(2010, 12, 1)


def sample_rows(days: int = 120, lines_a_day: int = 150, seed: int = 7) -> Iterator[Row]:
    """Invoice lines of ``days`` days from 2010-12-01, closed on Saturdays; the same for a seed.

    With the real file's dirt: exact duplicates, returns, stock adjustments, gifts, bad debts,
    postage, missing descriptions and customers, names that change over time.
    """
    rng = random.Random(seed)
    products = [
        (
            f"{10000 + 37 * n}{rng.choice(['', '', 'A', 'B'])}",
            f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}" + (" " if n % 11 == 0 else ""),
            Decimal(rng.randrange(29, 1995)) / 100,
        )
        for n in range(200)
    ]
    # Some products are renamed half-way: their latest name is the one that a dimension shows.
    renamed = {code: f"SET OF 2 {name}" for code, name, _ in products[::13]}
    customers = [(12346 + 3 * n, rng.choices(_COUNTRIES, _COUNTRY_WEIGHTS)[0]) for n in range(150)]
    invoice = 536365
    for number in range(days):
        day = _FIRST_DAY + timedelta(days=number)
        if day.weekday() == 5:
            continue
        lines = 0
        while lines < lines_a_day:
            invoice += rng.randrange(1, 4)
            at = datetime.combine(day, time(8 + rng.randrange(11), rng.randrange(60)))
            kind = rng.random()
            customer: int | None
            customer, country = rng.choice(customers)
            if rng.random() < 0.2:
                customer = None
            if kind < 0.02:
                code, name, price = rng.choice(products)
                yield f"C{invoice}", code, name, -rng.randrange(1, 12), at, price, customer, country
                lines += 1
                continue
            if kind < 0.03:
                code = rng.choice(products)[0]
                note = rng.choice(["damages", "?", None])
                quantity = -rng.randrange(1, 200)
                yield str(invoice), code, note, quantity, at, Decimal(0), None, "United Kingdom"
                lines += 1
                continue
            for _ in range(rng.randrange(1, 18)):
                code, name, price = rng.choice(products)
                if number >= days // 2:
                    name = renamed.get(code, name)
                if rng.random() < 0.003:
                    price, customer = Decimal(0), customer
                row: Row = (
                    str(invoice),
                    code,
                    None if rng.random() < 0.003 else name,
                    rng.choice([1, 1, 2, 3, 4, 6, 12, 24, 48]),
                    at,
                    price,
                    customer,
                    country,
                )
                yield row
                lines += 1
                if rng.random() < 0.01:
                    yield row
                    lines += 1
            if rng.random() < 0.1:
                code, name, fee = rng.choice(_FEES)
                yield str(invoice), code, name, 1, at, Decimal(fee), customer, country
                lines += 1
        if number % 60 == 30:
            at = datetime.combine(day, time(14, 50))
            debt = Decimal("11062.06")
            yield f"A{invoice}", "B", "Adjust bad debt", 1, at, debt, None, "United Kingdom"
            yield f"A{invoice}", "B", "Adjust bad debt", 1, at, -debt, None, "United Kingdom"


def write_sample(path: Path, days: int = 120, lines_a_day: int = 150, seed: int = 7) -> int:
    """Write the sample as one .xlsx sheet, typed as UCI's is; returns its rows.

    The file's bytes are the same for the same arguments.
    """
    import xlsxwriter

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    rows = 0
    with xlsxwriter.Workbook(str(partial), {"constant_memory": True}) as workbook:
        workbook.set_properties({"created": datetime(2015, 11, 6)})
        sheet = workbook.add_worksheet("Online Retail")
        when = workbook.add_format({"num_format": "m/d/yy h:mm"})
        sheet.write_row(0, 0, HEADER)
        for rows, row in enumerate(sample_rows(days, lines_a_day, seed), start=1):
            for column, value in enumerate(row):
                if value is None:
                    continue
                if isinstance(value, datetime):
                    sheet.write_datetime(rows, column, value, when)
                elif isinstance(value, str) and not value.isdigit():
                    sheet.write_string(rows, column, value)
                else:  # UCI's sheet holds codes and invoices of digits alone as numbers
                    sheet.write_number(rows, column, float(value))
    partial.replace(path)
    return rows
