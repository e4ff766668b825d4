with source as (

    select * from {{ source('supply_chain', 'dim_department') }}

),

renamed as (

    select
        department_id,
        department_name,
        message_order
    from source

)

select * from renamed
