"""What the tables of online retail look like: columns, types, keys, personal data.

The source's columns and the spellings they circulate under are declared here too. Not here:
how rows get that shape (transforms.py).
"""

from retail_assets.dataset import Column, Dataset

DOMAIN = "online_retail"

LINE_TYPES = ("return", "bad_debt", "adjustment", "gift", "sale")

# Name in our text frame -> the spellings of UCI's Online Retail and Online Retail II.
SOURCE_COLUMNS: dict[str, tuple[str, ...]] = {
    "invoice_no": ("InvoiceNo", "Invoice"),
    "stock_code": ("StockCode",),
    "description": ("Description",),
    "quantity": ("Quantity",),
    "invoice_datetime": ("InvoiceDate",),
    "unit_price": ("UnitPrice", "Price"),
    "customer_id": ("CustomerID", "Customer ID"),
    "country": ("Country",),
}

ONLINE_RETAIL_DATA = Dataset(
    schema=DOMAIN,
    name="online_retail_data",
    description="One row an invoice line, as sold, returned or adjusted; exact duplicates removed.",
    partition_by="invoice_date",
    cluster_by=("customer_id",),
    columns=(
        Column(
            "transaction_id",
            "string",
            "First 32 hex digits of SHA-256 over the typed source columns; the row's identity.",
            key=True,
        ),
        Column("invoice_no", "string", "Invoice number; C... is a return, A... a bad debt."),
        Column(
            "stock_code", "string", "Product code; letters alone are postage, fees and the like."
        ),
        Column("description", "string", "Product name, lower-cased; Unknown where there is none."),
        Column("quantity", "int64", "Units; negative on returns and adjustments."),
        Column("unit_price", "decimal(12,3)", "Price a unit, pounds sterling."),
        Column("total_price", "decimal(18,3)", "quantity * unit_price, pounds sterling."),
        Column("customer_id", "int64", "Customer; 0 where the line names none.", pii=True),
        Column("country", "string", "Country of the customer."),
        Column("invoice_datetime", "timestamp", "Time of the invoice, local business time."),
        Column("invoice_date", "date", "Day of the invoice; the partition."),
        Column("time", "string", "Time of day, HH:MM:SS."),
        Column("month", "string", "Name of the month."),
        Column("day", "string", "Name of the weekday."),
        Column("year", "int32", "Calendar year."),
        Column("line_type", "string", "return, bad_debt, adjustment, gift or sale."),
        Column("is_product", "bool", "True where the stock code begins with five digits."),
    ),
)
