with sales as (

    select * from {{ ref('fact_sales') }}

),

-- By product_id and never by name: two products may have one.
revenue as (

    select
        outlet_state,
        product_id,
        cast(sum(quantity) as bigint) as quantity,
        {{ cast('sum(total_price)', 'decimal(18, 2)') }} as total_price
    from sales
    group by outlet_state, product_id

)

select * from revenue
