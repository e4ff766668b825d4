{{ config(meta={'dagster': {'ref': {'name': 'fact_sales'}}}) }}

-- Each line of the window's drops has its customer, outlet and product in the dimensions. One
-- column at a time: joined together, or as one CTE, every line would be carried through all three.
with customers as (

    select customer_id from {{ ref('coffee_chain_dim_customer') }}

),

outlets as (

    select outlet_id from {{ ref('coffee_chain_dim_outlet') }}

),

products as (

    select product_id from {{ ref('coffee_chain_dim_product') }}

)

select
    'customer' as member,
    sales.customer_id as missing_id
from {{ ref('fact_sales') }} as sales
left join customers on sales.customer_id = customers.customer_id
where
    customers.customer_id is null
    and {{ in_window('sales.drop_date', 'coffee_chain_window') }}
union all
select
    'outlet' as member,
    sales.outlet_id as missing_id
from {{ ref('fact_sales') }} as sales
left join outlets on sales.outlet_id = outlets.outlet_id
where
    outlets.outlet_id is null
    and {{ in_window('sales.drop_date', 'coffee_chain_window') }}
union all
select
    'product' as member,
    sales.product_id as missing_id
from {{ ref('fact_sales') }} as sales
left join products on sales.product_id = products.product_id
where
    products.product_id is null
    and {{ in_window('sales.drop_date', 'coffee_chain_window') }}
