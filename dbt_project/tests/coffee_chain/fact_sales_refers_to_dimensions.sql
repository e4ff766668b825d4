{{ config(meta={'dagster': {'ref': {'name': 'fact_sales'}}}) }}

-- Each line of the window's drops has its customer, outlet and product in the dimensions.
with sales as (

    select
        sale_line_id,
        customer_id,
        outlet_id,
        product_id
    from {{ ref('fact_sales') }}
    where {{ in_window('drop_date', 'coffee_chain_window') }}

),

customers as (

    select customer_id from {{ ref('coffee_chain_dim_customer') }}

),

outlets as (

    select outlet_id from {{ ref('coffee_chain_dim_outlet') }}

),

products as (

    select product_id from {{ ref('coffee_chain_dim_product') }}

)

select
    sales.sale_line_id,
    sales.customer_id,
    sales.outlet_id,
    sales.product_id
from sales
left join customers on sales.customer_id = customers.customer_id
left join outlets on sales.outlet_id = outlets.outlet_id
left join products on sales.product_id = products.product_id
where
    customers.customer_id is null
    or outlets.outlet_id is null
    or products.product_id is null
