with source as (

    select * from {{ source('online_retail', 'online_retail_data') }}

),

renamed as (

    select
        transaction_id,
        invoice_no,
        stock_code,
        description,
        quantity,
        unit_price,
        total_price,
        customer_id,
        country,
        invoice_datetime,
        invoice_date,
        time,
        month,
        day,
        year,
        line_type,
        is_product
    from source

)

select * from renamed
