"""What the tables of the supply chain look like, and the messages that they come from.

Columns, types, keys, personal data, the source's header, names of topic and places. Not here: how
a message becomes a row (messages.py), how rows become the star (transforms.py).
"""

import re
from dataclasses import dataclass

from retail_assets.dataset import MISSING_WORDS, Column, Dataset

DOMAIN = "supply_chain"
TOPIC = "supply_chain_data"
# The consumer group in whose name what has landed is committed.
GROUP = "retail_assets"
# The schema of the operational database, and the first folder of the topic's files in the lake.
STREAMING = "raw_streaming"
TRANSFORMED = "transformed_data"
MONEY = "decimal(18,2)"
RATIO = "decimal(12,9)"
# A text that is a number of digits where it has a meaning to us, such as a zip code.
CODE = "code"


@dataclass(frozen=True)
class SourceColumn:
    """A column of the source: its header there and in a message, its name and type with us.

    ``type`` is what its text must be readable as: a Dataset's type, or CODE. Where ``required``, it
    is a key, a date, a quantity or an amount: without it the message is a dead letter.
    """

    header: str
    name: str
    type: str = "string"
    required: bool = False

    @property
    def is_side(self) -> bool:
        """Whether a text that cannot be read is left out of the star, and its row stays."""
        return self.type != "string" and not self.required


# The one column that never leaves the producer.
WITHHELD_HEADER = "Customer Password"
KEY_HEADER = "Order Id"

SOURCE_COLUMNS = (
    SourceColumn("Type", "payment_type"),
    SourceColumn("Days for shipping (real)", "days_for_shipping_real", "int32", True),
    SourceColumn("Days for shipment (scheduled)", "days_for_shipment_scheduled", "int32", True),
    SourceColumn("Benefit per order", "benefit_per_order", MONEY, True),
    SourceColumn("Sales per customer", "sales_per_customer", MONEY, True),
    SourceColumn("Delivery Status", "delivery_status"),
    SourceColumn("Late_delivery_risk", "late_delivery_risk", "int32"),
    SourceColumn("Category Id", "category_id", "int32"),
    SourceColumn("Category Name", "category_name"),
    SourceColumn("Customer City", "customer_city"),
    SourceColumn("Customer Country", "customer_country"),
    SourceColumn("Customer Email", "customer_email"),
    SourceColumn("Customer Fname", "customer_fname"),
    SourceColumn("Customer Id", "customer_id", "int64", True),
    SourceColumn("Customer Lname", "customer_lname"),
    SourceColumn("Customer Segment", "customer_segment"),
    SourceColumn("Customer State", "customer_state"),
    SourceColumn("Customer Street", "customer_street"),
    SourceColumn("Customer Zipcode", "customer_zipcode", CODE),
    SourceColumn("Department Id", "department_id", "int32", True),
    SourceColumn("Department Name", "department_name"),
    SourceColumn("Latitude", "latitude", RATIO),
    SourceColumn("Longitude", "longitude", RATIO),
    SourceColumn("Market", "market"),
    SourceColumn("Order City", "order_city"),
    SourceColumn("Order Country", "order_country"),
    SourceColumn("Order Customer Id", "order_customer_id", "int64"),
    SourceColumn("order date (DateOrders)", "order_date", "timestamp", True),
    SourceColumn(KEY_HEADER, "order_id", "int64", True),
    SourceColumn("Order Item Cardprod Id", "order_item_cardprod_id", "int64"),
    SourceColumn("Order Item Discount", "order_item_discount", MONEY, True),
    SourceColumn("Order Item Discount Rate", "order_item_discount_rate", RATIO),
    SourceColumn("Order Item Id", "order_item_id", "int64", True),
    SourceColumn("Order Item Product Price", "order_item_product_price", MONEY, True),
    SourceColumn("Order Item Profit Ratio", "order_item_profit_ratio", RATIO),
    SourceColumn("Order Item Quantity", "order_item_quantity", "int32", True),
    SourceColumn("Sales", "sales", MONEY, True),
    SourceColumn("Order Item Total", "order_item_total", MONEY, True),
    SourceColumn("Order Profit Per Order", "order_profit_per_order", MONEY, True),
    SourceColumn("Order Region", "order_region"),
    SourceColumn("Order State", "order_state"),
    SourceColumn("Order Status", "order_status"),
    SourceColumn("Order Zipcode", "order_zipcode", CODE),
    SourceColumn("Product Card Id", "product_card_id", "int64", True),
    SourceColumn("Product Category Id", "product_category_id", "int32"),
    SourceColumn("Product Description", "product_description"),
    SourceColumn("Product Image", "product_image"),
    SourceColumn("Product Name", "product_name"),
    SourceColumn("Product Price", "product_price", MONEY, True),
    SourceColumn("Product Status", "product_status", "int32"),
    SourceColumn("shipping date (DateOrders)", "shipping_date", "timestamp", True),
    SourceColumn("Shipping Mode", "shipping_mode"),
)
# The source's header, in order; a message has all of it but WITHHELD_HEADER.
CSV_HEADER = (
    *(c.header for c in SOURCE_COLUMNS[:15]),
    WITHHELD_HEADER,
    *(c.header for c in SOURCE_COLUMNS[15:]),
)

# A row of a message in the lake: who and where it is, then its fields, their text unchanged.
MESSAGE_COLUMNS = (
    Column("incarnation", "string", "The topic's incarnation: offsets begin at 0 in each."),
    Column("topic", "string", "Topic."),
    Column("partition", "int32", "Partition of the topic."),
    Column("offset", "int64", "Offset in the partition."),
    Column("key", "string", "The message's key.", nullable=True),
    Column("time", "timestamp", "The message's time in the broker, UTC."),
    Column(
        "message_order",
        "string",
        "Orders messages as text: start of the incarnation, offset, partition.",
    ),
)
_LANDED_ON = Column("ingest_date", "date", "Day on which the message landed.")
MESSAGES = Dataset(
    schema=STREAMING,
    name=TOPIC,
    zone="",
    folder_by=_LANDED_ON,
    description="One row a message of the topic that has the columns and types it should have.",
    columns=(
        *MESSAGE_COLUMNS,
        *(
            Column(
                c.name,
                "string",
                f"{c.header}, as the message has it.",
                nullable=not c.required,
                pii=c.name
                in (
                    "customer_email",
                    "customer_fname",
                    "customer_lname",
                    "customer_street",
                    "customer_zipcode",
                ),
            )
            for c in SOURCE_COLUMNS
        ),
    ),
)
DEAD_LETTERS = Dataset(
    schema=STREAMING,
    domain=DOMAIN,
    name="dead_letters",
    zone="quarantine",
    folder_by=_LANDED_ON,
    description="One row a message that is not what it should be, or a value of one, and why.",
    columns=(
        *MESSAGE_COLUMNS,
        Column("reason", "string", "What was expected and what was found."),
        Column(
            "row_stays",
            "bool",
            "True where the row stands in the table without the value that the reason names.",
        ),
        Column(
            "text", "string", "The message as it came, but for what is withheld.", True, pii=True
        ),
    ),
)

_ORDER = Column(
    "message_order", "string", "Of the message that the row is of; a later one replaces it."
)
_INGEST_DATE = Column("ingest_date", "date", "Day on which the message landed; the partition.")

DIM_CUSTOMER = Dataset(
    schema=DOMAIN,
    name="dim_customer",
    zone=TRANSFORMED,
    description="One row a customer, as the latest message that names it has it.",
    columns=(
        Column("customer_id", "int64", "Customer.", key=True),
        Column("email", "string", "E-mail address.", nullable=True, pii=True),
        Column("fname", "string", "Given name.", nullable=True, pii=True),
        Column("lname", "string", "Family name.", nullable=True, pii=True),
        Column("segment", "string", "Consumer, Corporate or Home Office.", nullable=True),
        Column("city", "string", "City of the store of the purchase.", nullable=True),
        Column("country", "string", "Country of the store.", nullable=True),
        Column("state", "string", "State of the store.", nullable=True),
        Column("street", "string", "Street.", nullable=True, pii=True),
        Column("zipcode", "string", "Zip code; null for none.", nullable=True, pii=True),
        _ORDER,
    ),
)
DIM_PRODUCT = Dataset(
    schema=DOMAIN,
    name="dim_product",
    zone=TRANSFORMED,
    description="One row a product, as the latest message that names it has it.",
    columns=(
        Column("product_card_id", "int64", "Product.", key=True),
        Column(
            "product_category_id", "int32", "Category; two ids may have one name.", nullable=True
        ),
        Column("category_name", "string", "Name of the category.", nullable=True),
        Column("product_description", "string", "Description; null for none.", nullable=True),
        Column("product_image", "string", "Link to a picture.", nullable=True),
        Column("product_name", "string", "Name.", nullable=True),
        Column("product_price", MONEY, "List price."),
        Column("product_status", "int32", "1 where it is not available.", nullable=True),
        _ORDER,
    ),
)
DIM_LOCATION = Dataset(
    schema=DOMAIN,
    name="dim_location",
    zone=TRANSFORMED,
    description="One row a place that orders went to.",
    columns=(
        Column(
            "location_id",
            "string",
            "First 32 hex digits of SHA-256 over the other columns.",
            key=True,
        ),
        Column("order_zipcode", "string", "Zip code; null for none.", nullable=True),
        Column("order_city", "string", "City.", nullable=True),
        Column("order_state", "string", "State.", nullable=True),
        Column("order_region", "string", "Region of the world.", nullable=True),
        Column("order_country", "string", "Country.", nullable=True),
        Column("latitude", RATIO, "Degrees north, of the store.", nullable=True),
        Column("longitude", RATIO, "Degrees east, of the store.", nullable=True),
    ),
)
DIM_SHIPPING = Dataset(
    schema=DOMAIN,
    name="dim_shipping",
    zone=TRANSFORMED,
    description="One row a way and time of shipping.",
    columns=(
        Column(
            "shipping_id",
            "string",
            "First 32 hex digits of SHA-256 over the other columns.",
            key=True,
        ),
        Column("shipping_date", "timestamp", "Time of shipping, local business time."),
        Column("days_for_shipping_real", "int32", "Days that it took."),
        Column("days_for_shipment_scheduled", "int32", "Days that were planned."),
        Column("shipping_mode", "string", "Such as Standard Class.", nullable=True),
        Column("delivery_status", "string", "Such as Late delivery.", nullable=True),
    ),
)
DIM_DEPARTMENT = Dataset(
    schema=DOMAIN,
    name="dim_department",
    zone=TRANSFORMED,
    description="One row a department, as the latest message that names it has it.",
    columns=(
        Column("department_id", "int32", "Department.", key=True),
        Column("department_name", "string", "Name.", nullable=True),
        _ORDER,
    ),
)
DIM_METADATA = Dataset(
    schema=DOMAIN,
    name="dim_metadata",
    zone=TRANSFORMED,
    description="One row a row of fact_order: the message that it is of.",
    partition_by="ingest_date",
    columns=(
        Column(
            "metadata_id",
            "string",
            "First 32 hex digits of SHA-256 over incarnation, topic, partition, offset.",
            key=True,
        ),
        Column("key", "string", "The message's key.", nullable=True),
        Column("offset", "int64", "Offset in the partition."),
        Column("partition", "int32", "Partition of the topic."),
        Column("time", "timestamp", "The message's time in the broker, UTC."),
        Column("topic", "string", "Topic."),
        _INGEST_DATE,
    ),
)
FACT_ORDER = Dataset(
    schema=DOMAIN,
    name="fact_order",
    zone=TRANSFORMED,
    description="One row an order item, as the latest message of it has it.",
    partition_by="ingest_date",
    columns=(
        Column("order_item_id", "int64", "Item of an order.", key=True),
        Column("order_id", "int64", "Order."),
        Column("customer_id", "int64", "Customer: dim_customer."),
        Column("product_card_id", "int64", "Product: dim_product."),
        Column("location_id", "string", "Where it went: dim_location."),
        Column("department_id", "int32", "Department: dim_department."),
        Column("shipping_id", "string", "How and when it was shipped: dim_shipping."),
        Column("metadata_id", "string", "The message: dim_metadata."),
        Column("market", "string", "Market, such as LATAM.", nullable=True),
        Column("order_date", "timestamp", "Time of the order, local business time."),
        Column("order_item_discount", MONEY, "Discount."),
        Column("order_item_discount_rate", RATIO, "Discount as a share of sales.", nullable=True),
        Column("order_item_product_price", MONEY, "Price of one, before the discount."),
        Column("order_item_profit_ratio", RATIO, "Profit as a share of the total.", nullable=True),
        Column("order_item_quantity", "int32", "Units."),
        Column("sales_per_customer", MONEY, "What the customer paid for it."),
        Column("sales", MONEY, "Price times quantity."),
        Column("order_item_total", MONEY, "Sales less the discount."),
        Column("order_profit_per_order", MONEY, "Profit; negative for a loss."),
        Column("order_status", "string", "Such as COMPLETE or CLOSED.", nullable=True),
        Column("payment_type", "string", "Such as DEBIT.", nullable=True),
        _ORDER,
        _INGEST_DATE,
    ),
)
LANDED = (
    DIM_CUSTOMER,
    DIM_PRODUCT,
    DIM_LOCATION,
    DIM_SHIPPING,
    DIM_DEPARTMENT,
    DIM_METADATA,
    FACT_ORDER,
)

# What the whole text of a typed column must match, in every engine's regular expressions, before
# its value is looked at: an int32, int64, also as spreadsheets and pandas write it; a decimal,
# which may have more digits than are kept, each rounded half up once; a time without a zone, as
# month/day/year, whose year of two digits is one of 20YY, or as ISO, which may be a day alone. Of
# four digits a year lies from OLDEST_YEAR to NEWEST_YEAR.
WHOLE_NUMBER = r"-?[0-9]{1,19}(\.0{1,9})?"
NUMBER = r"-?[0-9]{1,18}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?"
_CLOCK = r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?( ?[AaPp][Mm])?"
DATE_TIME = (
    rf"[0-9]{{1,2}}/[0-9]{{1,2}}/([0-9]{{4}}|[0-9]{{2}}) {_CLOCK}"
    rf"|[0-9]{{4}}-[0-9]{{1,2}}-[0-9]{{1,2}}([ T]{_CLOCK})?"
)
OLDEST_YEAR, NEWEST_YEAR = 1900, 2199
# A code that a spreadsheet wrote as a whole number; one of which it lost digits.
WHOLE_CODE = r"([0-9]+)\.0+"
LOST_CODE = r"-?[0-9]+(\.[0-9]*[1-9][0-9]*|(\.[0-9]+)?[eE]\+[0-9]{1,2})"
# Texts that mean none in a column that is no plain text.
MISSING = rf"[ \t]*({'|'.join(map(re.escape, MISSING_WORDS))})[ \t]*"
