{{ config(meta={'dagster': {'ref': {'name': 'fact_online_retail_data_unpartitioned'}}}) }}

-- Both facts hold the same lines; a window that reached only one of them shows here. Compared day
-- by day: sums that agree in total could hide two days that differ in opposite ways.
with partitioned as (

    select
        invoice_date,
        count(*) as line_count,
        sum(quantity) as quantity,
        sum(total_price) as total_price
    from {{ ref('fact_online_retail_data_partitioned_clustered') }}
    group by invoice_date

),

unpartitioned as (

    select
        invoice_date,
        count(*) as line_count,
        sum(quantity) as quantity,
        sum(total_price) as total_price
    from {{ ref('fact_online_retail_data_unpartitioned') }}
    group by invoice_date

)

select
    partitioned.invoice_date as partitioned_date,
    unpartitioned.invoice_date as unpartitioned_date,
    partitioned.line_count as partitioned_line_count,
    unpartitioned.line_count as unpartitioned_line_count
from partitioned
full outer join unpartitioned on partitioned.invoice_date = unpartitioned.invoice_date
where
    partitioned.invoice_date is null
    or unpartitioned.invoice_date is null
    or partitioned.line_count <> unpartitioned.line_count
    or partitioned.quantity <> unpartitioned.quantity
    or partitioned.total_price <> unpartitioned.total_price
