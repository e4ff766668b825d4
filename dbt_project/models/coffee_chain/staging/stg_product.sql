with source as (

    select * from {{ source('malaysian_coffee_chain', 'product') }}

),

renamed as (

    select
        {{ quoted('no') }},
        product_id,
        product_name,
        product_price
    from source

)

select * from renamed
