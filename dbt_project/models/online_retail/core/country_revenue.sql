with sold as (

    select * from {{ ref('fact_online_retail_data_partitioned_clustered') }}
    where line_type = 'sale'

),

returned as (

    select * from {{ ref('fact_returns') }}

),

-- One row an order first: counting distinct orders and customers is cheap after that.
orders as (

    select
        country,
        invoice_no,
        customer_id,
        sum(quantity) as quantity,
        sum(total_price) as gross_revenue
    from sold
    group by country, invoice_no, customer_id

),

sales_by_country as (

    select
        country,
        count(distinct invoice_no) as order_count,
        count(distinct nullif(customer_id, 0)) as customer_count,
        sum(quantity) as quantity,
        sum(gross_revenue) as gross_revenue,
        0 as returned_value
    from orders
    group by country

),

returns_by_country as (

    select
        country,
        0 as order_count,
        0 as customer_count,
        0 as quantity,
        0 as gross_revenue,
        sum(returned_value) as returned_value
    from returned
    group by country

),

-- Not a join: a country may have returns and no sale.
all_countries as (

    select * from sales_by_country
    union all
    select * from returns_by_country

),

countries as (

    select
        country,
        cast(sum(order_count) as bigint) as order_count,
        cast(sum(customer_count) as bigint) as customer_count,
        cast(sum(quantity) as bigint) as quantity,
        {{ cast('sum(gross_revenue)', 'decimal(18, 3)') }} as gross_revenue,
        {{ cast('sum(returned_value)', 'decimal(18, 3)') }} as returned_value,
        {{ cast('sum(gross_revenue) - sum(returned_value)', 'decimal(18, 3)') }} as net_revenue
    from all_countries
    group by country

)

select * from countries
