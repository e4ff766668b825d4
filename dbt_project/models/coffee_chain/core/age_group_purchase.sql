with sales as (

    select * from {{ ref('fact_sales') }}

),

-- By year of age first: the bands are then made of some thousand rows, not of every line.
ages as (

    select
        customer_age,
        product_id,
        sum(quantity) as quantity,
        sum(total_price) as total_price
    from sales
    group by customer_age, product_id

),

banded as (

    select
        {{ age_group('customer_age') }} as age_group,
        product_id,
        quantity,
        total_price
    from ages

),

purchases as (

    select
        age_group,
        product_id,
        cast(sum(quantity) as bigint) as quantity,
        {{ cast('sum(total_price)', 'decimal(18, 2)') }} as total_price
    from banded
    group by age_group, product_id

)

select * from purchases
