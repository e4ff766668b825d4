{{
    config(
        severity='warn',
        fail_calc='coalesce(sum(line_count), 0)',
        meta={'dagster': {'ref': {'name': 'fact_sales'}}},
    )
}}

-- Counts the window's lines of a well-formed quantity outside 1 to 4, and names the quantities.
select
    drop_date,
    quantity,
    count(*) as line_count
from {{ ref('fact_sales') }}
where
    {{ in_window('drop_date', 'coffee_chain_window') }}
    and quantity not between 1 and 4
group by drop_date, quantity
