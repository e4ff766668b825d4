{{ config(meta={'dagster': {'ref': {'name': 'dim_customer'}}}) }}

-- What customers spent sums to the fact without its anonymous lines.
with mart as (

    select coalesce(sum(monetary), 0) as monetary
    from {{ ref('dim_customer') }}

),

fact as (

    select coalesce(sum(total_price), 0) as monetary
    from {{ ref('fact_online_retail_data_partitioned_clustered') }}
    where customer_id <> 0

)

select
    mart.monetary as mart_monetary,
    fact.monetary as fact_monetary
from mart
cross join fact
where
    mart.monetary <> fact.monetary
