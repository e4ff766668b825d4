with sold as (

    select * from {{ ref('fact_online_retail_data_partitioned_clustered') }}
    where line_type = 'sale' and is_product

),

products as (

    select * from {{ ref('dim_product') }}

),

totals as (

    select
        stock_code,
        cast(count(*) as bigint) as line_count,
        cast(sum(quantity) as bigint) as quantity_sold,
        {{ cast('sum(total_price)', 'decimal(18, 3)') }} as gross_revenue
    from sold
    group by stock_code

),

ranked as (

    select
        row_number() over (
            order by totals.gross_revenue desc, totals.stock_code asc
        ) as revenue_rank,
        row_number() over (
            order by totals.quantity_sold desc, totals.stock_code asc
        ) as quantity_rank,
        totals.stock_code,
        products.description,
        totals.line_count,
        totals.quantity_sold,
        totals.gross_revenue
    from totals
    inner join products on totals.stock_code = products.stock_code

)

select * from ranked
