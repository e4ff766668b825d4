with order_items as (

    select
        order_id,
        shipping_id,
        cast(order_date as date) as order_day,
        order_status,
        sales,
        order_profit_per_order
    from {{ ref('stg_fact_order') }}

),

shipments as (

    select
        shipping_id,
        delivery_status
    from {{ ref('stg_dim_shipping') }}

),

-- One row an order, so that each is counted once, in one month.
orders as (

    select
        order_items.order_id,
        min(order_items.order_day) as order_day,
        min(
            case when order_items.order_status in ('COMPLETE', 'CLOSED') then 1 else 0 end
        ) as is_fulfilled,
        max(
            case when shipments.delivery_status = 'Late delivery' then 1 else 0 end
        ) as is_late
    from order_items
    left join shipments on order_items.shipping_id = shipments.shipping_id
    group by order_items.order_id

),

order_months as (

    select
        {{ month_start('order_day') }} as order_month,
        count(*) as order_count,
        sum(is_fulfilled) as fulfilled_order_count,
        sum(is_late) as late_order_count
    from orders
    group by {{ month_start('order_day') }}

),

sales_months as (

    select
        {{ month_start('order_day') }} as order_month,
        sum(sales) as sales,
        sum(order_profit_per_order) as profit
    from order_items
    group by {{ month_start('order_day') }}

),

performance as (

    select
        sales_months.order_month,
        {{ cast('sales_months.sales', 'decimal(28, 2)') }} as sales,
        {{ cast('sales_months.profit', 'decimal(28, 2)') }} as profit,
        {{ cast(
            'sales_months.profit / nullif(sales_months.sales, 0)', 'decimal(38, 9)'
        ) }} as margin,
        coalesce(order_months.order_count, 0) as order_count,
        cast(
            coalesce(order_months.fulfilled_order_count, 0) as bigint
        ) as fulfilled_order_count,
        {{ cast(
            'order_months.fulfilled_order_count / order_months.order_count', 'decimal(12, 9)'
        ) }} as fulfilment_rate,
        cast(coalesce(order_months.late_order_count, 0) as bigint) as late_order_count,
        {{ cast(
            'order_months.late_order_count / order_months.order_count', 'decimal(12, 9)'
        ) }} as late_delivery_rate
    from sales_months
    left join order_months on sales_months.order_month = order_months.order_month

)

select * from performance
