"""What raw files of the coffee chain come to, computed apart from the package.

Here: bare DuckDB over the files as text, Python's csv and datetime, and the rules as the tables'
descriptions have them. Not here: any code that is tested, but for the raw files' names.
"""

import csv
import io
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa

from retail_assets.defs.coffee_chain.contract import (
    RAW_CUSTOMER,
    RAW_OUTLET,
    RAW_PRODUCT,
    RAW_SALES,
    RawFiles,
)


def read_odd(path: Path) -> list[list[str]]:
    """Rows of a CSV file in UTF-8, with or without a mark, or in Windows-1252."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252")
    return list(csv.reader(io.StringIO(text, newline="")))[1:]


def repaired(name: str) -> str:
    """A product's name, where it was encoded twice."""
    try:
        return name.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return name


def age_on(day: date, birthday: date | None) -> int | None:
    """Completed years; none before birth."""
    if birthday is None or birthday > day:
        return None
    return day.year - birthday.year - ((day.month, day.day) < (birthday.month, birthday.day))


def band_of(age: int | None) -> str:
    """The band of an age."""
    if age is None:
        return "UNKNOWN"
    if age < 21:
        return "under 21"
    if age > 50:
        return "over 50"
    start = (age - 21) // 5 * 5 + 21
    return f"{start}-{start + 4}"


class Expected:
    """What the raw files below a lake come to, as tables of the same names.

    ``ragged`` has the texts of rows of a wrong field count by table and drop; ``bad_sales`` and
    ``bad_customer`` are tables of the rows that cannot be typed, ``odd_sales`` and ``odd_customer``
    of those of which a value is left out.
    """

    def __init__(self, lake: Path) -> None:
        self.db = duckdb.connect()
        self.ragged: dict[tuple[str, str], list[str]] = {}
        self.dates: dict[str, list[str]] = {}
        fields = "invoice_no, date_time, customer_id, outlet_id, product_id, quantity"
        self._read("sales", lake, RAW_SALES, ["i", *fields.split(", ")])
        people = "customer_id, first_name, last_name, gender, birthday, email, phone_no"
        self._read("customer", lake, RAW_CUSTOMER, ["i", *people.split(", ")])
        self._small(lake)
        id_text = ", ".join(f"coalesce({c}, chr(30))" for c in fields.split(", "))
        self.db.execute(
            f"""
            create table typed_sales as select *,
                case when regexp_full_match(date_time, '[0-9]{{4}}(-[0-9]{{2}}){{2}} [0-9:]{{8}}')
                    then try_strptime(date_time, '%Y-%m-%d %H:%M:%S') end as sold_at,
                case when regexp_full_match(quantity, '-?[0-9]+')
                    then try_cast(quantity as integer) end as units
            from raw_sales;
            create table bad_sales as select drop_date, concat_ws(',', coalesce(i, ''),
                {", ".join(f"coalesce({c}, '')" for c in fields.split(", "))}) as text
            from typed_sales where sold_at is null or units is null;
            create table good_sales as select drop_date, {fields}, sold_at, units,
                count(*) as copies
            from typed_sales where sold_at is not null and units is not null group by all;
            create table sales as select
                left(sha256(concat_ws(chr(31), drop_date::varchar, {id_text})), 32) as sale_line_id,
                drop_date, invoice_no, sold_at as date_time, sold_at::date as sale_date,
                year(sold_at)::integer as sale_year, customer_id, outlet_id, product_id,
                units as quantity
            from good_sales;

            create table typed_customer as select *,
                case when regexp_full_match(birthday, '[0-9]{{4}}(-[0-9]{{2}}){{2}}')
                    then try_strptime(birthday, '%Y-%m-%d')::date end as born
            from raw_customer;
            create table told_customer as select drop_date, concat_ws(',', coalesce(i, ''),
                {", ".join(f"coalesce({c}, '')" for c in people.split(", "))}) as text,
                customer_id, birthday, born
            from typed_customer;
            create table bad_customer as
            from told_customer select drop_date, text where customer_id is null;
            create table odd_customer as select distinct drop_date, text from told_customer
            where customer_id is not null and born is null
                and trim(coalesce(birthday, '')) not in ('', 'NULL', 'nan');
            create table odd_sales as from bad_sales where false;
            create table good_customer as select drop_date, {people}, born, count(*) as copies
            from typed_customer where customer_id is not null group by all;
            create table customer as select customer_id, first_name, last_name, gender,
                born as birthday, email, phone_no, drop_date
            from good_customer;

            create table dim_customer as
            from customer as one where drop_date =
                (select max(drop_date) from customer where customer_id = one.customer_id)
            union all select 'UNKNOWN', null, null, null, null, null, null, null;
            create table dim_outlet as from outlet
            union all select 'UNKNOWN', 'UNKNOWN', null, 'UNKNOWN', null, null;
            create table dim_product as from product
            union all select null, 'UNKNOWN', 'UNKNOWN', null;

            create table joined as select s.sale_line_id, s.invoice_no, s.date_time, s.sale_date,
                coalesce(c.customer_id, 'UNKNOWN') as customer_id,
                coalesce(o.outlet_id, 'UNKNOWN') as outlet_id,
                case when o.outlet_id is null then 'UNKNOWN' else o.outlet_state end
                    as outlet_state,
                coalesce(p.product_id, 'UNKNOWN') as product_id,
                case when p.product_id is null then 'UNKNOWN' else p.product_name end
                    as product_name,
                s.quantity, p.product_price,
                (s.quantity * p.product_price)::decimal(18, 2) as total_price,
                c.birthday, s.drop_date
            from sales as s
            left join dim_customer as c on c.customer_id = s.customer_id
            left join outlet as o on o.outlet_id = s.outlet_id
            left join product as p on p.product_id = s.product_id;
            """
        )
        pairs = self.db.execute("select distinct birthday, sale_date from joined").fetchall()
        found = [age_on(day, birthday) for birthday, day in pairs]
        ages = pa.table(
            {
                "birthday": pa.array([pair[0] for pair in pairs], pa.date32()),
                "sale_date": pa.array([pair[1] for pair in pairs], pa.date32()),
                "customer_age": pa.array(found, pa.int32()),
                "age_group": [band_of(age) for age in found],
            }
        )
        self.db.register("ages_found", ages)
        self.db.execute(
            """
            create table aged as select j.*, a.customer_age, a.age_group
            from joined as j join ages_found as a
                on a.sale_date = j.sale_date and a.birthday is not distinct from j.birthday;
            create table fact_sales as select sale_line_id, invoice_no, date_time, sale_date,
                customer_id, outlet_id, outlet_state, product_id, product_name, quantity,
                product_price, total_price, customer_age, drop_date
            from aged;
            create table state_revenue as
            select outlet_state, product_id, sum(quantity)::bigint as quantity,
                sum(total_price)::decimal(18, 2) as total_price from aged group by all;
            create table age_group_purchase as
            select age_group, product_id, sum(quantity)::bigint as quantity,
                sum(total_price)::decimal(18, 2) as total_price from aged group by all;
            """
        )

    def _read(self, table: str, lake: Path, kind: RawFiles, columns: list[str]) -> None:
        """Put every drop's rows into ``raw_<table>`` as text; an empty field is null."""
        self.db.execute(
            f"create table raw_{table} (drop_date date,"
            f" {', '.join(f'{column} varchar' for column in columns)})"
        )
        before, after = kind.path.split("{date}")
        found = self.dates.setdefault(table, [])
        for path in sorted((lake / before).parent.glob("*.csv")):
            day = str(path.relative_to(lake))[len(before) : -len(after)]
            found.append(day)
            plain = path.read_bytes().isascii() and b'"' not in path.read_bytes()
            rows = read_odd(path)
            self.ragged[table, day] = [",".join(r) for r in rows if len(r) != len(columns)]
            if plain and not self.ragged[table, day]:
                self.db.execute(
                    f"insert into raw_{table} select '{day}', * from read_csv('{path}',"
                    " all_varchar = true, header = true, delim = ',', nullstr = '')"
                )
                continue
            good = [row for row in rows if len(row) == len(columns)]
            texts = pa.table(
                {
                    column: pa.array([row[at] or None for row in good], pa.string())
                    for at, column in enumerate(columns)
                }
            )
            self.db.register("texts", texts)
            self.db.execute(f"insert into raw_{table} select '{day}', * from texts")
            self.db.unregister("texts")

    def _small(self, lake: Path) -> None:
        self.db.execute(
            f"""
            create table outlet as select outlet_id, outlet_name, outlet_address, outlet_state,
                lpad(postcode, 5, '0') as postcode, district
            from read_csv('{lake / RAW_OUTLET.name()}', all_varchar = true, header = true);
            create table raw_product as
            from read_csv('{lake / RAW_PRODUCT.name()}', all_varchar = true, header = true);
            """
        )
        names = self.db.execute("select distinct product_name from raw_product").fetchall()
        mended = pa.table({"came": [n for (n,) in names], "name": [repaired(n) for (n,) in names]})
        self.db.register("mended", mended)
        self.db.execute(
            """
            create table product as select no::integer as no, product_id, name as product_name,
                replace(product_price, 'RM ', '')::decimal(8, 2) as product_price
            from raw_product join mended on came = product_name
            """
        )

    def ledgers(self, table: str) -> dict[str, tuple[int, int, int, int]]:
        """Rows read, written, duplicates and quarantined, by drop."""
        good = {
            str(day): (written, copies - written)
            for day, written, copies in self.db.execute(
                f"select drop_date, count(*), sum(copies)::bigint from good_{table} group by all"
            ).fetchall()
        }
        found = {}
        for day in self.dates[table]:
            written, duplicates = good.get(day, (0, 0))
            quarantined = len(self.quarantined(table, day))
            found[day] = (written + duplicates + quarantined, written, duplicates, quarantined)
        return found

    def left_out(self, table: str, day: str) -> list[str]:
        """Texts of the rows of which a value cannot be read and is left out, in order."""
        odd = self.db.execute(f"select text from odd_{table} where drop_date = ?", [day])
        return sorted(text for (text,) in odd.fetchall())

    def quarantined(self, table: str, day: str) -> list[str]:
        """Texts of the rows that cannot be typed, in order."""
        bad = self.db.execute(f"select text from bad_{table} where drop_date = ?", [day])
        return sorted(self.ragged[table, day] + [text for (text,) in bad.fetchall()])
