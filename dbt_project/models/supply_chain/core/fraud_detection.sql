with order_items as (

    select
        customer_id,
        order_id,
        order_item_total,
        coalesce(order_status = 'SUSPECTED_FRAUD', false) as is_suspected
    from {{ ref('stg_fact_order') }}

),

-- One row an order first: its items are then counted as one order.
orders as (

    select
        customer_id,
        order_id,
        max(case when is_suspected then 1 else 0 end) as suspected_order,
        sum(case when is_suspected then order_item_total else 0 end) as suspected_value,
        sum(order_item_total) as order_value
    from order_items
    group by customer_id, order_id

),

customers as (

    select
        customer_id,
        sum(suspected_order) as suspected_order_count,
        count(*) as order_count,
        sum(suspected_value) as suspected_value,
        sum(order_value) as total_value
    from orders
    group by customer_id

),

suspects as (

    select
        customer_id,
        cast(suspected_order_count as bigint) as suspected_order_count,
        order_count,
        {{ cast(
            'suspected_order_count / order_count', 'decimal(12, 9)'
        ) }} as suspected_order_share,
        {{ cast('suspected_value', 'decimal(28, 2)') }} as suspected_value,
        {{ cast('total_value', 'decimal(28, 2)') }} as total_value,
        {{ cast(
            'suspected_value / nullif(total_value, 0)', 'decimal(38, 9)'
        ) }} as suspected_value_share
    from customers
    where suspected_order_count > 0

)

select * from suspects
