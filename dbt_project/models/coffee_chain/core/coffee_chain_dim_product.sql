with products as (

    select * from {{ ref('stg_product') }}

),

unknown_member as (

    select
        cast(null as integer) as {{ quoted('no') }},
        'UNKNOWN' as product_id,
        'UNKNOWN' as product_name,
        {{ cast('null', 'decimal(8, 2)') }} as product_price

),

members as (

    select
        {{ quoted('no') }},
        product_id,
        product_name,
        product_price
    from products
    union all
    select
        {{ quoted('no') }},
        product_id,
        product_name,
        product_price
    from unknown_member

)

select * from members
