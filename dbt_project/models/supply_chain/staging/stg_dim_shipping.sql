with source as (

    select * from {{ source('supply_chain', 'dim_shipping') }}

),

renamed as (

    select
        shipping_id,
        shipping_date,
        days_for_shipping_real,
        days_for_shipment_scheduled,
        shipping_mode,
        delivery_status
    from source

)

select * from renamed
