with order_items as (

    select
        product_card_id,
        cast(order_date as date) as order_day,
        order_item_quantity,
        sales
    from {{ ref('stg_fact_order') }}

),

products as (

    select
        product_card_id,
        product_name,
        category_name
    from {{ ref('stg_dim_product') }}

),

-- The last day of all products, not each one's own, and never the clock.
as_of as (

    select
        coalesce(
            {{ date_from_var('supply_chain_as_of') }},
            max(order_day)
        ) as as_of_date
    from order_items

),

last_sales as (

    select
        order_items.product_card_id,
        max(order_items.order_day) as last_sale_date
    from order_items
    cross join as_of
    where order_items.order_day <= as_of.as_of_date
    group by order_items.product_card_id

),

-- By product_card_id and never by name: two products may have one.
product_months as (

    select
        product_card_id,
        {{ month_start('order_day') }} as order_month,
        cast(sum(order_item_quantity) as bigint) as units_sold,
        {{ cast('sum(sales)', 'decimal(28, 2)') }} as sales_value
    from order_items
    group by product_card_id, {{ month_start('order_day') }}

),

aged as (

    select
        product_months.product_card_id,
        product_months.order_month,
        products.product_name,
        products.category_name,
        product_months.units_sold,
        product_months.sales_value,
        as_of.as_of_date,
        last_sales.last_sale_date,
        {{ days_between('last_sales.last_sale_date', 'as_of.as_of_date') }} as days_since_last_sale
    from product_months
    cross join as_of
    left join last_sales on product_months.product_card_id = last_sales.product_card_id
    left join products on product_months.product_card_id = products.product_card_id

),

levels as (

    select
        *,
        case
            when days_since_last_sale <= 30 then '0-30'
            when days_since_last_sale <= 60 then '31-60'
            when days_since_last_sale <= 90 then '61-90'
            when days_since_last_sale > 90 then 'over 90'
        end as age_band
    from aged

)

select * from levels
