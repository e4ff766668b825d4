with source as (

    select * from {{ source('supply_chain', 'dim_metadata') }}

),

renamed as (

    select
        metadata_id,
        {{ quoted('key') }},
        {{ quoted('offset') }},
        {{ quoted('partition') }},
        {{ quoted('time') }},
        topic,
        ingest_date
    from source

)

select * from renamed
