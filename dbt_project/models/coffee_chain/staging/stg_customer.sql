with source as (

    select * from {{ source('malaysian_coffee_chain', 'customer') }}

),

-- Most customers have one record: what follows would sort them all for nothing.
with_several as (

    select customer_id
    from source
    group by customer_id
    having count(*) > 1

),

-- Two records of one drop: the order by every other column is arbitrary, yet always the same.
-- Descending throughout, for then both warehouses put nulls last.
ranked as (

    select
        source.*,
        row_number() over (
            partition by source.customer_id
            order by
                source.drop_date desc,
                source.first_name desc,
                source.last_name desc,
                source.gender desc,
                source.birthday desc,
                source.email desc,
                source.phone_no desc
        ) as record_rank
    from source
    where
        source.customer_id in (
            select with_several.customer_id from with_several
        )

),

latest as (

    select
        source.customer_id,
        source.first_name,
        source.last_name,
        source.gender,
        source.birthday,
        source.email,
        source.phone_no,
        source.drop_date
    from source
    where
        source.customer_id not in (
            select with_several.customer_id from with_several
        )
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
    from ranked
    where record_rank = 1

)

select * from latest
