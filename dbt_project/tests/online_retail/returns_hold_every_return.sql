{{ config(meta={'dagster': {'ref': {'name': 'fact_returns'}}}) }}

-- The returns are exactly the landed return lines, day by day.
with landed as (

    select
        invoice_date,
        count(*) as line_count,
        sum(total_price) as total_price
    from {{ ref('stg_online_retail_data') }}
    where line_type in ('return')
    group by invoice_date

),

fact as (

    select
        invoice_date,
        count(*) as line_count,
        sum(total_price) as total_price
    from {{ ref('fact_returns') }}
    group by invoice_date

)

select
    landed.invoice_date as landed_date,
    fact.invoice_date as fact_date,
    landed.line_count as landed_line_count,
    fact.line_count as fact_line_count,
    landed.total_price as landed_total_price,
    fact.total_price as fact_total_price
from landed
full outer join fact on landed.invoice_date = fact.invoice_date
where
    landed.invoice_date is null
    or fact.invoice_date is null
    or landed.line_count <> fact.line_count
    or landed.total_price <> fact.total_price
