"""A made-up CSV of the supply chain, shaped as DataCo's, with its dirt and its invariants.

Here: what the demo, the tests and the benchmarks run on, each line a function of the seed and of
its place alone. Not here: the header (contract.py), reading the file (stream.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import IntEnum, auto
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.defs.supply_chain.contract import CSV_HEADER

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Raw = NDArray[np.uint64]
    Whole = NDArray[np.int64]

FIRST_DAY = date(2015, 1, 1)
LAST_DAY = date(2018, 1, 31)
ENCODING = "cp1252"
_DAYS = (LAST_DAY - FIRST_DAY).days + 1
_MOST_DAYS_OF_SHIPPING = 6
# Of DataCo's file; a sample of so many orders has so many items and customers.
_REAL_ORDERS, _REAL_ITEMS, _REAL_CUSTOMERS = 65_752, 180_519, 20_652
_MOST_ORDERS = 10_000_000
_CHUNK_ORDERS = 5_000
# Once in so many orders, or in all if they are fewer: a line of one of the last orders comes again
# as it was, and in the middle between two of these, one comes again with other values.
_REPEAT_EVERY = 40
_REPEAT_WITHIN = 1_000
# Once in so many customers: without a zip code; moves to another place after half of the orders.
_NO_ZIPCODE_EVERY, _MOVES_EVERY = 200, 16
# Once in so many items, the total is a cent off, as the original's are.
_CENT_OFF_EVERY = 32
_MASKED = "XXXXXXXXX"

_STATUSES = (
    # name, lines of it in DataCo's file, how it was paid
    ("COMPLETE", 59_491, "DEBIT"),
    ("PENDING_PAYMENT", 39_832, "PAYMENT"),
    ("PROCESSING", 21_902, "TRANSFER"),
    ("PENDING", 20_227, "TRANSFER"),
    ("CLOSED", 19_616, "CASH"),
    ("ON_HOLD", 9_804, "DEBIT"),
    ("SUSPECTED_FRAUD", 4_062, "TRANSFER"),
    ("CANCELED", 3_692, "TRANSFER"),
    ("PAYMENT_REVIEW", 1_893, "PAYMENT"),
)
_STOPPED = ("SUSPECTED_FRAUD", "CANCELED")
_LATE = "Late delivery"
_MODES = (
    # name, lines of it, days planned, days that it may take
    ("Standard Class", 107_752, 4, (2, 3, 4, 5, 6)),
    ("Second Class", 35_216, 2, (2, 3, 4, 5, 6)),
    ("First Class", 27_814, 1, (2, 2, 2, 2, 2, 2, 2, 2, 1)),
    ("Same Day", 9_737, 0, (0, 1)),
)
_SEGMENTS = (("Consumer", 93_504), ("Corporate", 54_789), ("Home Office", 32_226))

_US = "Estados Unidos"
_REGIONS = (
    # market, region, lines of it, places: city/state/country, in the original's Spanish
    (
        "LATAM",
        "Central America",
        28_341,
        "Mexico City/Distrito Federal/México; León/Guanajuato/México; "
        "Mérida/Yucatán/México; San Salvador/San Salvador/El Salvador; "
        "Managua/Managua/Nicaragua; Ciudad de Panamá/Panamá/Panamá",
    ),
    (
        "LATAM",
        "South America",
        14_935,
        "Bogotá/Bogotá/Colombia; Medellín/Antioquia/Colombia; "
        "São Paulo/São Paulo/Brasil; Maceió/Alagoas/Brasil; Tucumán/Tucumán/Argentina; "
        "Valparaíso/Valparaíso/Chile",
    ),
    (
        "LATAM",
        "Caribbean",
        8_318,
        "Santo Domingo/Santo Domingo/República Dominicana; Camagüey/Camagüey/Cuba; "
        "Port-au-Prince/Oeste/Haití",
    ),
    (
        "Europe",
        "Western Europe",
        27_109,
        "Paris/Isla de Francia/Francia; Besançon/Borgoña-Franco Condado/Francia; "
        "München/Baviera/Alemania; Köln/Renania del Norte-Westfalia/Alemania; "
        "Liège/Valonia/Bélgica; Zürich/Zúrich/Suiza",
    ),
    (
        "Europe",
        "Northern Europe",
        9_792,
        "London/Inglaterra/Reino Unido; Malmö/Escania/Suecia; "
        "Århus/Jutlandia Central/Dinamarca; Tromsø/Troms og Finnmark/Noruega; "
        "Reykjavík/Höfuðborgarsvæðið/Islandia",
    ),
    (
        "Europe",
        "Southern Europe",
        9_431,
        "A Coruña/Galicia/España; L\u2019Aquila/Abruzos/Italia; "
        "Setúbal/Setúbal/Portugal; Niš/Nišava/Serbia",
    ),
    (
        "Europe",
        "Eastern Europe",
        3_920,
        "Žilina/Žilina/Eslovaquia; Košice/Košice/Eslovaquia; "
        "Kraków/Pequeña Polonia/Polonia; Pécs/Baranya/Hungría",
    ),
    (
        "Pacific Asia",
        "Oceania",
        10_148,
        "Sydney/Nueva Gales del Sur/Australia; Toowoomba/Queensland/Australia; "
        "Nuku\u2018alofa/Tongatapu/Tonga; Auckland/Auckland/Nueva Zelanda",
    ),
    (
        "Pacific Asia",
        "Southeast Asia",
        9_539,
        "Bekasi/Java Occidental/Indonesia; Manila/Gran Manila/Filipinas; "
        "Singapore/Singapur/Singapur; Ipoh/Perak/Malasia",
    ),
    (
        "Pacific Asia",
        "South Asia",
        7_731,
        "Bikaner/Rajastán/India; Delhi/Delhi/India; Khulna/Khulna/Bangladés; "
        "Peshawar/Khyber Pakhtunkhwa/Pakistán",
    ),
    (
        "Pacific Asia",
        "Eastern Asia",
        7_280,
        "Guangzhou/Guangdong/China; Ürümqi/Sinkiang/China; Tokio/Tokio/Japón; "
        "Seoul/Seúl/Corea del Sur",
    ),
    (
        "Pacific Asia",
        "West Asia",
        6_009,
        "Kütahya/Kütahya/Turquía; Çorum/Çorum/Turquía; Riyadh/Riad/Arabia Saudí",
    ),
    ("Pacific Asia", "Central Asia", 553, "Tashkent/Taskent/Uzbekistán; Almaty/Almatý/Kazajistán"),
    (
        "USCA",
        "West of USA ",
        7_993,
        "Los Angeles/California/Estados Unidos; San José/California/Estados Unidos",
    ),
    (
        "USCA",
        "East of USA",
        6_915,
        "New York City/Nueva York/Estados Unidos; Columbus/Ohio/Estados Unidos",
    ),
    ("USCA", "US Center ", 5_887, "Houston/Texas/Estados Unidos; Chicago/Illinois/Estados Unidos"),
    (
        "USCA",
        "South of  USA ",
        4_045,
        "Jacksonville/Carolina del Norte/Estados Unidos; Miami/Florida/Estados Unidos",
    ),
    ("USCA", "Canada", 959, "Montréal/Québec/Canada; Trois-Rivières/Québec/Canada"),
    ("Africa", "West Africa", 3_696, "Lagos/Lagos/Nigeria; Abiyán/Lagunes/Costa de Marfil"),
    ("Africa", "North Africa", 3_232, "Fès/Fez-Bulmán/Marruecos; Cairo/El Cairo/Egipto"),
    ("Africa", "East Africa", 1_852, "Nairobi/Nairobi/Kenia; Dar es Salaam/Dar es Salaam/Tanzania"),
    (
        "Africa",
        "Central Africa",
        1_677,
        "Kinshasa/Kinsasa/República Democrática del Congo; Yaoundé/Centro/Camerún",
    ),
    ("Africa", "Southern Africa", 1_157, "Johannesburg/Gauteng/Sudáfrica; Luanda/Luanda/Angola"),
)

_DEPARTMENTS = (
    # id, name, categories: id|name|what is sold
    (2, "Fitness", "3|Baseball & Softball|Batting Glove; 4|Basketball|Game Ball"),
    (
        3,
        "Footwear",
        "9|Cardio Equipment|Exercise Bike 5000; 10|Strength Training|Kettle Bell 16 kg; "
        "11|Fitness Accessories|Foam Roller; 12|Boxing & MMA|Training Gloves; "
        "13|Electronics|Heart-Rate Watch; 16|As Seen on  TV!|Ab Wheel",
    ),
    (
        4,
        "Apparel",
        "17|Cleats|Perfect Fitness Cleat™; 18|Men's Footwear|Men's Free Running Shoe; "
        "24|Women's Apparel|Women\u2019s Tempo Shorts; "
        "26|Girls' Apparel|Girls\u2019 Leggings; 29|Shop By Sport|Adult Jersey; "
        "71|Children's Clothing|Rain Coat; 75|Women's Clothing|Linen Blouse",
    ),
    (
        5,
        "Golf",
        "31|Women's Golf Clubs|Women\u2019s Complete Set; 32|Golf Apparel|Polo; "
        "33|Golf Shoes|Spikeless Shoe; 34|Golf Bags & Carts|Cart Bag; "
        '35|Golf Gloves|All-Weather Glove; 36|Golf Balls|Tour Balls, "Soft", Dozen',
    ),
    (
        6,
        "Outdoors",
        "37|Electronics|Rangefinder 600; 38|Kids' Golf Clubs|Kids\u2019 Starter Set; "
        "40|Accessories|Bottle \u2013 1 Litre; 41|Trade-In|Voucher 50 €; "
        "30|Men's Golf Clubs|Driver 10.5°; "
        "43|Camping & Hiking|Tent for 4",
    ),
    (
        7,
        "Fan Shop",
        "44|Hunting & Shooting|Gun Safe; 45|Fishing|Sportsman Rod & Reel; "
        "46|Indoor/Outdoor Games|O'Malley Dart Board; "
        "48|Water Sports|Kayak 10'; 73|Sporting Goods|Canopy; "
        "6|Tennis & Racquet|Racquet; 5|Lacrosse|Stick; 2|Soccer|Match Ball Nº 5",
    ),
    (8, "Book Shop", "59|Books|Atlas of the Sea"),
    (
        9,
        "Discs Shop",
        "69|Music|Fados e Canções; 60|CDs|Concert in Münster; "
        "61|DVDs|The Señor\u2019s Garden; 62|Video Games|Kart Cup",
    ),
    (
        10,
        "Technology",
        '64|Computers|Notebook 14"; 63|Cameras|Compact Camera; '
        '65|Consumer Electronics|Television 32"; 66|Crafts|Sewing Machine; '
        "67|Garden|Hose 25 m; 68|Hockey|Hockey Stick",
    ),
    (11, "Pet Shop", "70|Pet Supplies|Dog Bed"),
    (
        12,
        "Health and Beauty",
        "72|Baby|Crèche Monitor; 74|Health and Beauty|Crème 50 ml; "
        "76|Men's Clothing|Rugby Shirt; 77|Toys|20\" Kids' Bike, Blue",
    ),
)
_PRODUCTS = 118
_BRANDS = ("Northfell", "Verano", "Åkerby")
_COLOURS = ("Ash Grey", "Sky Blue", "Coral Red", "Fir Green")
_PRICES = (
    *(999, 1999, 2200, 2499, 2998, 3199, 3999, 4999, 5000, 5999, 7999, 9999, 11999, 12999),
    *(15499, 19999, 24997, 29998, 32775, 39998, 39999, 45175, 59999, 149900, 199999),
)
# In hundredths: discounts of sales, profits of totals.
_RATES = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 13, 15, 16, 17, 18, 20, 25)
_MARGINS = (
    *(50, 49, 48, 47, 46, 45, 42, 40, 36, 35, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 20, 18, 16),
    *(15, 12, 11, 10, 8, 7, 5, 4, 2, 1, 0, -2, -8, -15, -22, -47, -80, -103, -150, -270),
)

_GIVEN = ("Mary", "José", "Zoë", "James", "Inés", "René", "Anna", "Omar", "Li", "Björn", "Ruth")
_FAMILY = ("Smith", "Núñez", "Müller", "Garcia", "O'Neil", "Šimek", "Chen", "Brown", "Lefèvre", "")
_STORES = (
    # city, state, country, zip code, latitude and longitude in millionths
    ("Caguas", "PR", "Puerto Rico", "00725", 18_251_453, -66_037_056),
    ("Caguas", "PR", "Puerto Rico", "00725", 18_294_541, -66_370_613),
    ("Mayagüez", "PR", "Puerto Rico", "00680", 18_201_345, -67_139_627),
    ("Chicago", "IL", "EE. UU.", "60652", 41_778_591, -87_666_115),
    ("Los Angeles", "CA", "EE. UU.", "90033", 34_049_080, -118_213_570),
    ("Brooklyn", "NY", "EE. UU.", "11207", 40_672_009, -73_894_028),
    ("San José", "CA", "EE. UU.", "95125", 37_292_233, -121_881_279),
    ("Cañon City", "CO", "EE. UU.", "81212", 38_449_066, -105_221_969),
    ("Houston", "TX", "EE. UU.", "77083", 29_693_151, -95_645_195),
)
_STREET_STARTS = ("Noble", "Crystal", "Quaking", "Silent", "Emerald", "Dewy", "Cotton", "Honey")
_STREET_MIDDLES = ("Nectar", "River", "Zephyr", "Fawn", "Autumn", "Pony", "Cañada", "Île")
_STREET_ENDS = ("Island", "Point", "Manor", "Corners", "Bend", "Heath", "Parade", "Grove")


@dataclass(frozen=True)
class SampleCounts:
    """What ``write_sample`` wrote."""

    lines: int
    """Lines but for the header: those of the items, and those that come again."""
    orders: int
    items: int
    """Distinct Order Item Ids."""
    customers: int
    replayed: int
    """Lines that equal the first of their item."""
    corrected: int
    """Later lines of an item, with other values than its first."""


def write_sample(
    file: Path,
    *,
    orders: int = 2_000,
    seed: int = 7,
    repeats: bool = True,
    progress: Callable[[int], None] | None = None,
) -> SampleCounts:
    """Write orders of 2015-01-01 to 2018-01-31, in the order of time, in Windows-1252.

    The bytes depend on the arguments alone. The file appears under its name when it is whole. So
    many orders have items and customers in DataCo's shares: 65,752 have 180,519 and 20,652.

    Args:
        file: The CSV file; one of that name is replaced.
        orders: Orders of 1 to 5 items.
        seed: Zero or more; another seed gives other bytes.
        repeats: Whether some lines come again later, as they were or corrected.
        progress: Called with the orders written since its last call.

    Raises:
        ValueError: When a number is out of range; the message names it.
    """
    for name, number, least, most in (
        ("orders", orders, 1, _MOST_ORDERS),
        ("seed", seed, 0, 2**32 - 1),
    ):
        if not least <= number <= most:
            raise ValueError(
                f"{name}: expected {least} to {most}, found {number}: give a number within these"
            )
    text = _Text(orders, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.part")
    lines = replayed = corrected = 0
    try:
        with partial.open("wb") as out:
            out.write((",".join(CSV_HEADER) + "\n").encode(ENCODING))
            for start in range(0, orders, _CHUNK_ORDERS):
                chunk = range(start, min(start + _CHUNK_ORDERS, orders))
                chosen = _chosen_lines(chunk, orders, seed, repeats=repeats)
                out.write(text.of(chosen).encode(ENCODING))
                lines += len(chosen.item)
                replayed += chosen.replayed
                corrected += int(chosen.corrected.sum())
                if progress is not None:
                    progress(len(chunk))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    items = _items_before(orders)
    return SampleCounts(lines, orders, items, _customers(orders), replayed, corrected)


class _Draw(IntEnum):
    """The independent sequences of random numbers; a new one goes to the end."""

    SIZE = 0
    REPEAT = auto()
    BUYER = auto()
    CUSTOMER = auto()
    ADDRESS = auto()
    STATUS = auto()
    MODE = auto()
    DAYS = auto()
    REGION = auto()
    PLACE = auto()
    TIME = auto()
    PRODUCT = auto()
    MONEY = auto()


def _draw(seed: int, draw: _Draw, numbers: Whole) -> Raw:
    """The 64-bit numbers of a sequence at these places: SplitMix64, which can start anywhere."""
    import numpy as np

    step = 0x9E3779B97F4A7C15
    start = _mixed(_mixed(seed + step) + int(draw) * step)
    state = np.uint64(start) + (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(step)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Raw = state ^ (state >> np.uint64(31))
    return mixed


def _mixed(number: int) -> int:
    """One step of SplitMix64, of a number of Python's."""
    mask = 2**64 - 1
    number &= mask
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & mask
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & mask
    return number ^ (number >> 31)


def _pick(raw: Raw, below: int | Whole) -> Whole:
    """Whole numbers from 0 to ``below``, exclusive and under 2**31, from the upper 32 bits."""
    import numpy as np

    return ((raw >> np.uint64(32)) * np.asarray(below, np.uint64) >> np.uint64(32)).astype(np.int64)


def _pick_low(raw: Raw, below: int | Whole) -> Whole:
    """As ``_pick``, from the lower 32 bits."""
    import numpy as np

    return _pick(raw << np.uint64(32), below)


def _pick_weighted(raw: Raw, weights: Sequence[int]) -> Whole:
    """Places in ``weights``, each as often as it weighs."""
    import numpy as np

    ends = np.array(list(accumulate(weights)), dtype=np.int64)
    return np.searchsorted(ends, _pick(raw, int(ends[-1])), side="right").astype(np.int64)


def _items_before(order: int) -> int:
    """Items of the orders before one that begins a pair, or of all."""
    return order * _REAL_ITEMS // _REAL_ORDERS


def _customers(orders: int) -> int:
    """Customers of so many orders; each of them buys."""
    return max(1, orders * _REAL_CUSTOMERS // _REAL_ORDERS)


def _sizes(numbers: Whole, orders: int, seed: int) -> tuple[Whole, Whole]:
    """The first item of each order, from 0, and how many it has.

    Two orders share five or six items, as many as keep the whole file at DataCo's share; how they
    share them is drawn. A last order without a second has the items that are left.
    """
    import numpy as np

    pair = numbers // 2 * 2
    first = pair * _REAL_ITEMS // _REAL_ORDERS
    both = np.minimum(pair + 2, orders) * _REAL_ITEMS // _REAL_ORDERS - first
    alone = pair + 1 == orders
    # A lone first order would have two.
    one = 1 + _pick(_draw(seed, _Draw.SIZE, pair), np.maximum(both - 1, 1))
    one = np.where(alone, both, one)
    second = numbers != pair
    return np.where(second, first + one, first), np.where(second, both - one, one)


@dataclass(frozen=True)
class _Lines:
    """Some lines: the order and the item of each, and whether it is a corrected one."""

    order: Whole
    item: Whole
    corrected: NDArray[np.bool_]
    replayed: int


def _chosen_lines(chunk: range, orders: int, seed: int, *, repeats: bool) -> _Lines:
    """The lines of some orders, with the earlier ones that come again among them."""
    import numpy as np

    numbers = np.arange(chunk.start, chunk.stop, dtype=np.int64)
    firsts, sizes = _sizes(numbers, orders, seed)
    order = np.repeat(numbers, sizes)
    item = np.arange(firsts[0], firsts[0] + len(order), dtype=np.int64)
    every = min(_REPEAT_EVERY, orders)
    within = numbers % every
    again, corrects = numbers[within == every - 1], numbers[within == every // 2]
    if not repeats:
        again, corrects = again[:0], corrects[:0]
    at = np.concatenate([again, corrects])
    corrected = np.arange(len(at)) >= len(again)
    raw = _draw(seed, _Draw.REPEAT, at * 2 + corrected)
    repeated = at - _pick(raw, np.minimum(at + 1, _REPEAT_WITHIN))
    first, size = _sizes(repeated, orders, seed)
    # After the order, what comes again as it was before what is corrected.
    place = np.concatenate([order * 4, at * 4 + 1 + corrected]).argsort(kind="stable")
    return _Lines(
        np.concatenate([order, repeated])[place],
        np.concatenate([item, first + _pick_low(raw, size)])[place],
        np.concatenate([np.zeros(len(order), dtype=np.bool_), corrected])[place],
        len(again),
    )


class _Text:
    """The text of lines; what those of an order or a product share is put together once."""

    def __init__(self, orders: int, seed: int) -> None:
        self.orders = orders
        self.seed = seed
        self.products = _products()

    def of(self, lines: _Lines) -> str:
        """The lines, each with its end."""
        import numpy as np

        numbers, place = np.unique(lines.order, return_inverse=True)
        orders = self._orders(numbers)
        raw = _draw(self.seed, _Draw.MONEY, lines.item)
        changed = lines.corrected.astype(np.int64)
        # The square of an even draw: the first products sell more than the last.
        chosen = _draw(self.seed, _Draw.PRODUCT, lines.item)
        even = _pick(chosen, 1 << 20)
        product = even * even * _PRODUCTS >> 40
        price = np.array([p.cents for p in self.products], dtype=np.int64)[product]
        quantity = 1 + (_pick(raw, 5) + changed) % 5
        rate = (_bits(raw, 0) % len(_RATES) + changed) % len(_RATES)
        margin = _bits(raw, 16) % len(_MARGINS)
        sales = price * quantity
        discount = _percent(sales, np.array(_RATES)[rate])
        off = _bits(chosen, 0) % (2 * _CENT_OFF_EVERY)
        total = sales - discount + (off == 0) - (off == 1)
        profit = _percent(total, np.array(_MARGINS)[margin])
        rates, margins = ([_ratio_text(n) for n in all_] for all_ in (_RATES, _MARGINS))
        rows = []
        for of, sold, item, at_rate, at_margin, units, costs, brought, less, paid, gain in zip(
            place.tolist(),
            product.tolist(),
            (lines.item + 1).tolist(),
            rate.tolist(),
            margin.tolist(),
            quantity.tolist(),
            *(_money_texts(cents) for cents in (price, sales, discount, total, profit)),
            strict=True,
        ):
            a, b, c, d, e, f = orders[of]
            p = self.products[sold]
            rows.append(
                f"{a},{gain},{paid},{b},{p.category},{c},{p.department},{d},{p.card},{less},"
                f"{rates[at_rate]},{item},{costs},{margins[at_margin]},{units},{brought},{paid},"
                f"{gain},{e},{p.details},{f}\n"
            )
        return "".join(rows)

    def _orders(self, numbers: Whole) -> list[tuple[str, str, str, str, str, str]]:
        """What the lines of each order share: six stretches of columns."""
        import numpy as np

        def draw(sequence: _Draw) -> Raw:
            return _draw(self.seed, sequence, numbers)

        customers = self._buyers(numbers)
        moved = (customers % _MOVES_EVERY == 1) & (numbers >= self.orders // 2)
        people = _rows(
            customers,
            _draw(self.seed, _Draw.CUSTOMER, customers),
            _draw(self.seed, _Draw.ADDRESS, customers * 2 + moved),
        )
        statuses = _pick_weighted(draw(_Draw.STATUS), [s[1] for s in _STATUSES])
        modes = _pick_weighted(draw(_Draw.MODE), [m[1] for m in _MODES])
        regions = _pick_weighted(draw(_Draw.REGION), [a[2] for a in _areas()])
        jitter = draw(_Draw.TIME)
        minutes = ((numbers << 16) + _bits(jitter, 0)) * (_DAYS * 1440) // (self.orders << 16)
        times = _rows(*np.divmod(minutes, 1440), _bits(jitter, 16))
        rows = []
        for number, person, way, place, (day, minute, short) in zip(
            numbers.tolist(),
            people,
            _rows(statuses, modes, draw(_Draw.DAYS)),
            _rows(regions, draw(_Draw.PLACE)),
            times,
            strict=True,
        ):
            of_customer, latitude, longitude = _customer(*person)
            status, payment, mode, took, planned, delivery = _shipping(*way)
            market, region, city, state, country, zipcode = _place(*place)
            ordered, shipped = _dates(short=bool(short & 1)), _dates(short=bool(short & 2))
            time = f"{minute // 60}:{minute % 60:02}"
            rows.append(
                (
                    f"{payment},{took},{planned}",
                    f"{delivery},{int(delivery == _LATE)}",
                    of_customer,
                    f"{latitude},{longitude},{market},{city},{country},{person[0] + 1},"
                    f"{ordered[day]} {time},{number + 1}",
                    f"{region},{state},{status},{zipcode}",
                    f"{shipped[day + took]} {time},{mode}",
                )
            )
        return rows

    def _buyers(self, numbers: Whole) -> Whole:
        """The customer of each order, from 0: a new one, or one who has bought before."""
        import numpy as np

        count, orders = _customers(self.orders), self.orders
        known = -(-(numbers + 1) * count // orders)
        before = -(-numbers * count // orders)
        old = _pick(_draw(self.seed, _Draw.BUYER, numbers), known)
        return np.where(known > before, known - 1, old)


def _shipping(status: int, mode: int, raw: int) -> tuple[str, str, str, int, int, str]:
    """Order Status, Type, Shipping Mode, days taken, days planned and Delivery Status."""
    name, _, payment = _STATUSES[status]
    kind, _, planned, may_take = _MODES[mode]
    took = may_take[(raw >> 32) % len(may_take)]
    if name in _STOPPED:
        delivery = "Shipping canceled"
    elif took == planned:
        delivery = "Shipping on time"
    else:
        delivery = _LATE if took > planned else "Advance shipping"
    return name, payment, kind, took, planned, delivery


def _place(region: int, raw: int) -> tuple[str, str, str, str, str, str]:
    """Market, region, city, state, country and zip code that an order goes to."""
    market, area, _, cities = _areas()[region]
    city, state, country = cities[(raw & 0xFFFF) % len(cities)]
    zipcode = str(10_000 + (raw >> 16) % 89_000) if country == _US else ""
    return market, area, city, state, country, zipcode


def _customer(number: int, person: int, address: int) -> tuple[str, str, str]:
    """The columns of a customer, Customer City to Customer Zipcode, and the store's place."""
    given = _GIVEN[(person & 0xFFFF) % len(_GIVEN)]
    family = _FAMILY[(person >> 16 & 0xFFFF) % len(_FAMILY)]
    city, state, country, zipcode, latitude, longitude = _STORES[
        # The first store, as in the original, has most.
        max(0, (address & 0xFFFF) % (len(_STORES) + 4) - 4)
    ]
    street = " ".join(
        names[(address >> bits & 0xFF) % len(names)]
        for bits, names in ((16, _STREET_STARTS), (24, _STREET_MIDDLES), (32, _STREET_ENDS))
    )
    if number % _NO_ZIPCODE_EVERY == 0:
        zipcode = ""
    house = 1 + (address >> 40 & 0xFFFF) % 9999
    near = (address >> 56) * 100
    place = _float_text((latitude + near) / 1e6), _float_text((longitude + near) / 1e6)
    columns = (
        f"{city},{country},{_MASKED},{given},{number + 1},{family},{_MASKED},"
        f"{_SEGMENTS[_segment(person)][0]},{state},{house} {street},{zipcode}"
    )
    return columns, *place


def _segment(person: int) -> int:
    ends = list(accumulate(weight for _, weight in _SEGMENTS))
    return bisect_right(ends, (person >> 32) * ends[-1] >> 32)


@dataclass(frozen=True)
class _Product:
    """A product's price and its stretches of columns."""

    cents: int
    category: str
    department: str
    card: str
    details: str
    """Product Card Id to Product Status."""


def _products() -> list[_Product]:
    kinds: list[tuple[int, str, str, str, str]] = [
        (department, name, *_three(category, "|"))
        for department, name, categories in _DEPARTMENTS
        for category in categories.split("; ")
    ]
    # By a step that is prime to their number, so that no department has the best places.
    kinds = [kinds[7 * n % len(kinds)] for n in range(len(kinds))]
    made = []
    for number in range(_PRODUCTS):
        department, department_name, category, category_name, thing = kinds[number % len(kinds)]
        card = 19 + 11 * number
        cents = _PRICES[number * 7 % len(_PRICES)]
        name = f"{_BRANDS[number // len(kinds)]} {thing} {_COLOURS[number % len(_COLOURS)]}"
        words = "".join(c if c.isascii() and c.isalnum() else "+" for c in name)
        image = f"https://images.example.com/products/{words}"
        status = int(number == _PRODUCTS - 1)
        made.append(
            _Product(
                cents,
                f"{category},{_quoted(category_name)}",
                f"{department},{department_name}",
                str(card),
                f"{card},{category},,{image} ,{_quoted(name)},{_float_text(cents / 100)},{status}",
            )
        )
    return made


@cache
def _areas() -> list[tuple[str, str, int, list[tuple[str, str, str]]]]:
    """The regions, their places taken apart."""
    return [
        (market, region, lines, [_three(place, "/") for place in places.split("; ")])
        for market, region, lines, places in _REGIONS
    ]


def _three(text: str, sign: str) -> tuple[str, str, str]:
    first, second, third = text.split(sign)
    return first, second, third


def _rows(*columns: Raw | Whole) -> list[tuple[int, ...]]:
    """The rows that some columns make, of Python's numbers."""
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _quoted(text: str) -> str:
    """A text as it stands in a CSV file."""
    if "," not in text and '"' not in text:
        return text
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def _bits(raw: Raw, lowest: int) -> Whole:
    """Sixteen bits of each number, from ``lowest`` on."""
    import numpy as np

    return (raw >> np.uint64(lowest) & np.uint64(0xFFFF)).astype(np.int64)


def _percent(cents: Whole, hundredths: Whole) -> Whole:
    """A share of cents, rounded half up."""
    return (cents * hundredths * 2 + 100) // 200


def _money_texts(cents: Whole) -> list[str]:
    """Amounts as the original has them: what a number of 32 bits shows in ten digits."""
    import numpy as np

    return [f"{n:.10g}" for n in (cents / 100).astype(np.float32).astype(np.float64).tolist()]


def _float_text(number: float) -> str:
    import numpy as np

    return f"{float(np.float32(number)):.10g}"


def _ratio_text(hundredths: int) -> str:
    """A ratio as the original has it: up to nine places of a number of 32 bits."""
    import numpy as np

    text = f"{float(np.float32(hundredths / 100)):.9f}".rstrip("0").rstrip(".")
    return text


@cache
def _dates(*, short: bool) -> list[str]:
    """The days that the file may name, m/d/Y, the year ``short`` or whole."""
    days = [FIRST_DAY + timedelta(days=n) for n in range(_DAYS + _MOST_DAYS_OF_SHIPPING)]
    return [f"{d.month}/{d.day}/{d.year % 100 if short else d.year}" for d in days]
