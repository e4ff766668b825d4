{{ config(meta={'dagster': {'ref': {'name': 'fact_sales'}}}) }}

-- Every landed line is in the fact once, drop by drop and over all of history, for a drop that no
-- window named shows only there: two narrow columns are read, and no line is joined.
with landed as (

    select
        drop_date,
        count(*) as line_count,
        sum(quantity) as quantity
    from {{ ref('stg_sales') }}
    group by drop_date

),

fact as (

    select
        drop_date,
        count(*) as line_count,
        sum(quantity) as quantity
    from {{ ref('fact_sales') }}
    group by drop_date

)

select
    landed.drop_date as landed_drop_date,
    fact.drop_date as fact_drop_date,
    landed.line_count as landed_line_count,
    fact.line_count as fact_line_count,
    landed.quantity as landed_quantity,
    fact.quantity as fact_quantity
from landed
full outer join fact on landed.drop_date = fact.drop_date
where
    landed.drop_date is null
    or fact.drop_date is null
    or landed.line_count <> fact.line_count
    or landed.quantity <> fact.quantity
