{{ config(meta={'dagster': {'ref': {'name': 'dim_product'}}}) }}

-- The products sold sum to the fact's sale lines, to the penny and the unit.
with mart as (

    select
        coalesce(sum(quantity_sold), 0) as quantity_sold,
        coalesce(sum(gross_revenue), 0) as gross_revenue
    from {{ ref('dim_product') }}

),

fact as (

    select
        coalesce(sum(quantity), 0) as quantity_sold,
        coalesce(sum(total_price), 0) as gross_revenue
    from {{ ref('fact_online_retail_data_partitioned_clustered') }}
    where line_type = 'sale'

)

select
    mart.quantity_sold as mart_quantity_sold,
    fact.quantity_sold as fact_quantity_sold,
    mart.gross_revenue as mart_gross_revenue,
    fact.gross_revenue as fact_gross_revenue
from mart
cross join fact
where
    mart.quantity_sold <> fact.quantity_sold
    or mart.gross_revenue <> fact.gross_revenue
