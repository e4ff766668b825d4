with source as (

    select * from {{ ref('stg_online_retail_data') }}

),

returned as (

    select
        transaction_id,
        invoice_no,
        stock_code,
        description,
        quantity,
        unit_price,
        total_price,
        -quantity as returned_quantity,
        {{ cast('-total_price', 'decimal(18, 3)') }} as returned_value,
        customer_id,
        country,
        invoice_datetime,
        invoice_date,
        is_product
    from source
    where line_type = 'return'

)

select * from returned
