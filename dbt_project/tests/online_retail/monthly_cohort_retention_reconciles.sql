{{ config(meta={'dagster': {'ref': {'name': 'monthly_cohort_retention'}}}) }}

-- What cohorts spent sums to the fact without its anonymous lines.
with mart as (

    select coalesce(sum(revenue), 0) as revenue
    from {{ ref('monthly_cohort_retention') }}

),

fact as (

    select coalesce(sum(total_price), 0) as revenue
    from {{ ref('fact_online_retail_data_partitioned_clustered') }}
    where customer_id <> 0

)

select
    mart.revenue as mart_revenue,
    fact.revenue as fact_revenue
from mart
cross join fact
where
    mart.revenue <> fact.revenue
