{{ config(meta={'dagster': {'ref': {'name': 'daily_revenue'}}}) }}

-- Gross revenue sums to the fact, what was given back to the returns, and net to the difference.
with mart as (

    select
        coalesce(sum(gross_revenue), 0) as gross_revenue,
        coalesce(sum(returned_value), 0) as returned_value,
        coalesce(sum(net_revenue), 0) as net_revenue
    from {{ ref('daily_revenue') }}

),

fact as (

    select coalesce(sum(total_price), 0) as gross_revenue
    from {{ ref('fact_online_retail_data_partitioned_clustered') }}

),

returned as (

    select coalesce(sum(returned_value), 0) as returned_value
    from {{ ref('fact_returns') }}

)

select
    mart.gross_revenue as mart_gross_revenue,
    fact.gross_revenue as fact_gross_revenue,
    mart.returned_value as mart_returned_value,
    returned.returned_value as fact_returned_value,
    mart.net_revenue as mart_net_revenue
from mart
cross join fact
cross join returned
where
    mart.gross_revenue <> fact.gross_revenue
    or mart.returned_value <> returned.returned_value
    or mart.net_revenue <> fact.gross_revenue - returned.returned_value
