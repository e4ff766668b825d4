with customers as (

    select * from {{ ref('stg_customer') }}

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
