{{
    config(
        severity='warn',
        fail_calc='coalesce(sum(line_count), 0)',
        meta={'dagster': {'ref': {'name': 'fact_sales'}}},
    )
}}

-- Counts the window's lines under an UNKNOWN member, one for each id that is not known, and names
-- the id as it was delivered. The few such lines are looked up in the landed ones, which keep it.
with unknown_lines as (

    select
        sale_line_id,
        customer_id,
        outlet_id,
        product_id
    from {{ ref('fact_sales') }}
    where
        {{ in_window('drop_date', 'coffee_chain_window') }}
        and (customer_id = 'UNKNOWN' or outlet_id = 'UNKNOWN' or product_id = 'UNKNOWN')

),

landed as (

    select
        sale_line_id,
        customer_id,
        outlet_id,
        product_id
    from {{ ref('stg_sales') }}
    where {{ in_window('drop_date', 'coffee_chain_window') }}

),

delivered as (

    select
        landed.customer_id,
        landed.outlet_id,
        landed.product_id,
        unknown_lines.customer_id = 'UNKNOWN' as no_customer,
        unknown_lines.outlet_id = 'UNKNOWN' as no_outlet,
        unknown_lines.product_id = 'UNKNOWN' as no_product
    from landed
    inner join unknown_lines on landed.sale_line_id = unknown_lines.sale_line_id

),

unknown_ids as (

    select
        'customer' as member,
        customer_id as delivered_id
    from delivered
    where no_customer
    union all
    select
        'outlet' as member,
        outlet_id as delivered_id
    from delivered
    where no_outlet
    union all
    select
        'product' as member,
        product_id as delivered_id
    from delivered
    where no_product

)

select
    member,
    delivered_id,
    count(*) as line_count
from unknown_ids
group by member, delivered_id
