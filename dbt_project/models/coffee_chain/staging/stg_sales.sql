with source as (

    select * from {{ source('malaysian_coffee_chain', 'sales') }}

),

renamed as (

    select
        sale_line_id,
        drop_date,
        invoice_no,
        date_time,
        sale_date,
        sale_year,
        customer_id,
        outlet_id,
        product_id,
        quantity
    from source

)

select * from renamed
