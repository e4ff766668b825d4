with source as (

    select * from {{ source('supply_chain', 'dim_product') }}

),

renamed as (

    select
        product_card_id,
        product_category_id,
        category_name,
        product_description,
        product_image,
        product_name,
        product_price,
        product_status,
        message_order
    from source

)

select * from renamed
