{{ config(meta={'dagster': {'ref': {'name': 'fact_sales'}}}) }}

-- A line's total is its quantity times the price, and null exactly where the product is unknown.
select
    sale_line_id,
    product_id,
    quantity,
    product_price,
    total_price
from {{ ref('fact_sales') }}
where
    {{ in_window('drop_date', 'coffee_chain_window') }}
    and (
        (product_id = 'UNKNOWN' and (product_price is not null or total_price is not null))
        or (product_id <> 'UNKNOWN' and (product_price is null or total_price is null))
        or total_price <> quantity * product_price
    )
