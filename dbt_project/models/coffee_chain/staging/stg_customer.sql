with source as (

    select * from {{ source('malaysian_coffee_chain', 'customer') }}

),

-- Two records of one drop: the order by every other column is arbitrary, yet always the same.
-- Descending throughout, for then both warehouses put nulls last.
ranked as (

    select
        *,
        row_number() over (
            partition by customer_id
            order by
                drop_date desc,
                first_name desc,
                last_name desc,
                gender desc,
                birthday desc,
                email desc,
                phone_no desc
        ) as record_rank
    from source

),

latest as (

    select
        customer_id,
        first_name,
        last_name,
        gender,
        birthday,
        email,
        phone_no,
        drop_date
    from ranked
    where record_rank = 1

)

select * from latest
