with source as (

    select * from {{ source('supply_chain', 'dim_customer') }}

),

renamed as (

    select
        customer_id,
        email,
        fname,
        lname,
        segment,
        city,
        country,
        state,
        street,
        zipcode,
        message_order
    from source

)

select * from renamed
