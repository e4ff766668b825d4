with order_items as (

    select
        order_id,
        {{ month_start('cast(order_date as date)') }} as order_month,
        coalesce(order_status, 'UNKNOWN') as order_status,
        order_item_total
    from {{ ref('stg_fact_order') }}

),

-- By what is finished, not by what is open: what has no status is not known to be finished.
open_items as (

    select * from order_items
    where order_status not in ('COMPLETE', 'CLOSED', 'CANCELED')

),

commitments as (

    select
        order_month,
        order_status,
        count(distinct order_id) as order_count,
        {{ cast('sum(order_item_total)', 'decimal(28, 2)') }} as committed_value
    from open_items
    group by order_month, order_status

)

select * from commitments
