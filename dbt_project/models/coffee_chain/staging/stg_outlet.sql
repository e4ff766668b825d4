with source as (

    select * from {{ source('malaysian_coffee_chain', 'outlet') }}

),

renamed as (

    select
        outlet_id,
        outlet_name,
        outlet_address,
        outlet_state,
        postcode,
        district
    from source

)

select * from renamed
