{{ config(meta={'dagster': {'ref': {'name': 'fact_sales'}}}) }}

-- No line of the window's drops is in the fact twice: its id holds the drop, so no line of another
-- drop can have it.
select
    sale_line_id,
    count(*) as row_count
from {{ ref('fact_sales') }}
where {{ in_window('drop_date', 'coffee_chain_window') }}
group by sale_line_id
having count(*) > 1
