with outlets as (

    select * from {{ ref('stg_outlet') }}

),

unknown_member as (

    select
        'UNKNOWN' as outlet_id,
        'UNKNOWN' as outlet_name,
        cast(null as string) as outlet_address,
        'UNKNOWN' as outlet_state,
        cast(null as string) as postcode,
        cast(null as string) as district

),

members as (

    select
        outlet_id,
        outlet_name,
        outlet_address,
        outlet_state,
        postcode,
        district
    from outlets
    union all
    select
        outlet_id,
        outlet_name,
        outlet_address,
        outlet_state,
        postcode,
        district
    from unknown_member

)

select * from members
