{{
    config(
        materialized='incremental',
        incremental_strategy=merge_window_strategy(),
        on_schema_change='fail',
        meta={'window': {'besides': 'coffee_chain_customer_window', 'key': 'customer_id'}},
    )
}}

with customers as (

    select * from {{ ref('stg_customer') }}
    {% if is_incremental() %}
        where
            customer_id in (
                select landed.customer_id
                from {{ source('malaysian_coffee_chain', 'customer') }} as landed
                where {{ in_window('landed.drop_date', 'coffee_chain_customer_window') }}
            )
    {% endif %}

),

unknown_member as (

    select
        'UNKNOWN' as customer_id,
        cast(null as string) as first_name,
        cast(null as string) as last_name,
        cast(null as string) as gender,
        cast(null as date) as birthday,
        cast(null as string) as email,
        cast(null as string) as phone_no,
        cast(null as date) as drop_date

),

members as (

    select
        customer_id,
        first_name,
        last_name,
        gender,
        birthday,
        email,
        phone_no,
        drop_date
    from customers
    union all
    select
        customer_id,
        first_name,
        last_name,
        gender,
        birthday,
        email,
        phone_no,
        drop_date
    from unknown_member

)

select * from members
