with order_items as (

    select shipping_id from {{ ref('stg_fact_order') }}

),

-- As bigint: the difference of two integers may be none.
shipments as (

    select
        shipping_id,
        shipping_mode,
        delivery_status,
        cast(days_for_shipping_real as bigint)
        - cast(days_for_shipment_scheduled as bigint) as delay_days
    from {{ ref('stg_dim_shipping') }}

),

shipped_items as (

    select
        coalesce(shipments.shipping_mode, 'UNKNOWN') as shipping_mode,
        coalesce(shipments.delivery_status, 'UNKNOWN') as delivery_status,
        shipments.delay_days
    from order_items
    left join shipments on order_items.shipping_id = shipments.shipping_id

),

delays as (

    select
        shipping_mode,
        delivery_status,
        count(*) as line_count,
        cast(coalesce(sum(delay_days), 0) as bigint) as total_delay_days,
        {{ cast('sum(delay_days) / count(*)', 'decimal(38, 9)') }} as mean_delay_days,
        cast(sum(case when delay_days > 0 then 1 else 0 end) as bigint) as late_line_count,
        {{ cast(
            'sum(case when delay_days > 0 then 1 else 0 end) / count(*)', 'decimal(12, 9)'
        ) }} as late_share
    from shipped_items
    group by shipping_mode, delivery_status

)

select * from delays
