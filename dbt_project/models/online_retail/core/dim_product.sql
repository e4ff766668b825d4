with lines as (

    select * from {{ ref('stg_online_retail_data') }}

),

sold as (

    select * from {{ ref('fact_online_retail_data_partitioned_clustered') }}
    where line_type = 'sale'

),

-- Gathered by code and description first: the window below then orders thousands, not all lines.
descriptions as (

    select
        stock_code,
        description,
        is_product,
        max(case when line_type = 'sale' then invoice_datetime end) as last_sold_at,
        max(invoice_datetime) as last_seen_at
    from lines
    group by stock_code, description, is_product

),

-- Stock-taking writes remarks such as "damaged" into the description, hence sales come first.
ranked as (

    select
        stock_code,
        description,
        is_product,
        row_number() over (
            partition by stock_code
            order by
                case when description = 'Unknown' then 1 else 0 end asc,
                case when last_sold_at is null then 1 else 0 end asc,
                last_sold_at desc,
                last_seen_at desc,
                description asc
        ) as description_rank
    from descriptions

),

totals as (

    select
        stock_code,
        min(invoice_date) as first_sold_date,
        max(invoice_date) as last_sold_date,
        sum(quantity) as quantity_sold,
        sum(total_price) as gross_revenue
    from sold
    group by stock_code

),

products as (

    select
        ranked.stock_code,
        ranked.description,
        ranked.is_product,
        totals.first_sold_date,
        totals.last_sold_date,
        cast(coalesce(totals.quantity_sold, 0) as bigint) as quantity_sold,
        {{ cast('coalesce(totals.gross_revenue, 0)', 'decimal(18, 3)') }} as gross_revenue
    from ranked
    left join totals on ranked.stock_code = totals.stock_code
    where ranked.description_rank = 1

)

select * from products
