with source as (

    select * from {{ source('supply_chain', 'dim_location') }}

),

renamed as (

    select
        location_id,
        order_zipcode,
        order_city,
        order_state,
        order_region,
        order_country,
        latitude,
        longitude
    from source

)

select * from renamed
