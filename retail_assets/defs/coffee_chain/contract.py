"""What the tables of the coffee chain look like, and the raw files that they come from.

Columns, types, keys, personal data, the raw files' names and headers. Not here: how rows get that
shape (transforms.py).
"""

from dataclasses import dataclass

from retail_assets.dataset import Column, Dataset

DOMAIN = "coffee_chain"
WAREHOUSE = "malaysian_coffee_chain"
UNKNOWN = "UNKNOWN"
USUAL_QUANTITY = (1, 4)


@dataclass(frozen=True)
class RawFiles:
    """A kind of raw file: where it lies in the lake, and its header in order.

    ``path`` is one file's, or holds ``{date}`` where a drop is one dated file. The header of a
    drop begins with a column that has no name, the index of the row.
    """

    path: str
    header: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """What the names of these files begin with."""
        return self.path.partition("{date}")[0]

    def name(self, date: str = "") -> str:
        """Where the file, or the drop of that date, lies in the lake."""
        return self.path.format(date=date)


RAW_OUTLET = RawFiles(
    f"raw/{DOMAIN}/outlets/outlet.csv",
    ("outlet_id", "outlet_name", "outlet_address", "outlet_state", "postcode", "district"),
)
RAW_PRODUCT = RawFiles(
    f"raw/{DOMAIN}/products/product.csv", ("no", "product_id", "product_name", "product_price")
)
RAW_CUSTOMER = RawFiles(
    f"raw/{DOMAIN}/customers/customer_data_{{date}}.csv",
    (
        "",
        "customer_id",
        "first_name",
        "last_name",
        "gender",
        "birthday",
        "email",
        "phone_no",
    ),
)
RAW_SALES = RawFiles(
    f"raw/{DOMAIN}/sales/sales_data_{{date}}.csv",
    ("", "invoice_no", "date_time", "customer_id", "outlet", "product", "quantity"),
)

OUTLET = Dataset(
    schema=WAREHOUSE,
    domain=DOMAIN,
    name="outlet",
    description="One row an outlet.",
    columns=(
        Column("outlet_id", "string", "Outlet, such as MY001.", key=True),
        Column("outlet_name", "string", "Name of the outlet.", nullable=True),
        Column("outlet_address", "string", "Street address.", nullable=True),
        Column("outlet_state", "string", "State of Malaysia.", nullable=True),
        Column(
            "postcode", "string", "Five digits, leading zeros kept; null for none.", nullable=True
        ),
        Column("district", "string", "District of the state.", nullable=True),
    ),
)
PRODUCT = Dataset(
    schema=WAREHOUSE,
    domain=DOMAIN,
    name="product",
    description="One row a product; a name may stand for several products.",
    columns=(
        Column("no", "int32", "Number in the price list.", nullable=True),
        Column("product_id", "string", "Product, such as PD001.", key=True),
        Column("product_name", "string", "Name, its encoding repaired.", nullable=True),
        Column("product_price", "decimal(8,2)", "Price of one, ringgit."),
    ),
)
CUSTOMER = Dataset(
    schema=WAREHOUSE,
    domain=DOMAIN,
    name="customer",
    description="One row a customer and drop, as delivered; the latest drop is valid.",
    partition_by="drop_date",
    columns=(
        Column("customer_id", "string", "Customer, a UUID."),
        Column("first_name", "string", "Given name.", nullable=True, pii=True),
        Column("last_name", "string", "Family name.", nullable=True, pii=True),
        Column("gender", "string", "Gender as the customer gave it.", nullable=True),
        Column("birthday", "date", "Day of birth; null for none.", nullable=True, pii=True),
        Column("email", "string", "E-mail address.", nullable=True, pii=True),
        Column("phone_no", "string", "Telephone number, such as +60 ...", nullable=True, pii=True),
        Column("drop_date", "date", "Date of the drop that delivered the row; the partition."),
    ),
)
SALES = Dataset(
    schema=WAREHOUSE,
    domain=DOMAIN,
    name="sales",
    description="One row a sales line and drop; exact duplicates within a drop removed.",
    partition_by="drop_date",
    cluster_by=("outlet_id",),
    ordered=False,  # Spark's group-by leaves none
    columns=(
        Column(
            "sale_line_id",
            "string",
            "First 32 hex digits of SHA-256 over drop_date and the delivered columns but the"
            " index; the row's identity.",
            key=True,
        ),
        Column("drop_date", "date", "Date of the drop that delivered the line; the partition."),
        Column("invoice_no", "string", "Invoice; numbers repeat over time.", nullable=True),
        Column("date_time", "timestamp", "Time of the sale, local business time."),
        Column("sale_date", "date", "Day of the sale."),
        Column("sale_year", "int32", "Calendar year of the sale."),
        Column("customer_id", "string", "Customer as delivered, known or not.", nullable=True),
        Column("outlet_id", "string", "Outlet as delivered, known or not.", nullable=True),
        Column("product_id", "string", "Product as delivered, known or not.", nullable=True),
        Column("quantity", "int32", "Units; 1 to 4 as a rule."),
    ),
)
LANDED = (OUTLET, PRODUCT, CUSTOMER, SALES)
