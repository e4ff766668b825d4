{{ config(meta={'dagster': {'ref': {'name': 'age_group_purchase'}}}) }}

-- The mart sums to the fact, to the sen and the unit.
with mart as (

    select
        coalesce(sum(quantity), 0) as quantity,
        coalesce(sum(total_price), 0) as total_price
    from {{ ref('age_group_purchase') }}

),

fact as (

    select
        coalesce(sum(quantity), 0) as quantity,
        coalesce(sum(total_price), 0) as total_price
    from {{ ref('fact_sales') }}

)

select
    mart.quantity as mart_quantity,
    fact.quantity as fact_quantity,
    mart.total_price as mart_total_price,
    fact.total_price as fact_total_price
from mart
cross join fact
where
    mart.quantity <> fact.quantity
    or mart.total_price <> fact.total_price
