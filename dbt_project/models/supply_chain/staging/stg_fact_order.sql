with source as (

    select * from {{ source('supply_chain', 'fact_order') }}

),

renamed as (

    select
        order_item_id,
        order_id,
        customer_id,
        product_card_id,
        location_id,
        department_id,
        shipping_id,
        metadata_id,
        market,
        order_date,
        order_item_discount,
        order_item_discount_rate,
        order_item_product_price,
        order_item_profit_ratio,
        order_item_quantity,
        sales_per_customer,
        sales,
        order_item_total,
        order_profit_per_order,
        order_status,
        payment_type,
        message_order,
        ingest_date
    from source

)

select * from renamed
