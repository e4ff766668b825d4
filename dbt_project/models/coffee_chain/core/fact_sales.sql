{{
    config(
        materialized='incremental',
        incremental_strategy=merge_window_strategy(),
        on_schema_change='fail',
        partition_by=partition_by_month('sale_date'),
        cluster_by=['outlet_id'],
        meta={
            'window': {
                'var': 'coffee_chain_window',
                'column': 'drop_date',
                'besides': 'coffee_chain_customer_window',
                'key': 'sale_line_id',
            },
        },
    )
}}

with sales as (

    select * from {{ ref('stg_sales') }}
    {% if is_incremental() %}
        where {{ in_window('drop_date', 'coffee_chain_window') }}
        {% if window_ranges('coffee_chain_customer_window') %}
            -- Not stg_customer, which has the latest record of each customer only. Not one "or":
            -- then every landed line would be read whole before it is looked at.
            union all
            select * from {{ ref('stg_sales') }}
            where
                not {{ in_window('drop_date', 'coffee_chain_window') }}
                and customer_id in (
                    select landed.customer_id
                    from {{ source('malaysian_coffee_chain', 'customer') }} as landed
                    where {{ in_window('landed.drop_date', 'coffee_chain_customer_window') }}
                )
        {% endif %}
    {% endif %}

),

customers as (

    select
        customer_id,
        birthday
    from {{ ref('coffee_chain_dim_customer') }}

),

outlets as (

    select
        outlet_id,
        outlet_state
    from {{ ref('coffee_chain_dim_outlet') }}

),

products as (

    select
        product_id,
        product_name,
        product_price
    from {{ ref('coffee_chain_dim_product') }}

),

lines as (

    select
        sales.sale_line_id,
        sales.invoice_no,
        sales.date_time,
        sales.sale_date,
        coalesce(customers.customer_id, 'UNKNOWN') as customer_id,
        coalesce(outlets.outlet_id, 'UNKNOWN') as outlet_id,
        coalesce(outlets.outlet_state, 'UNKNOWN') as outlet_state,
        coalesce(products.product_id, 'UNKNOWN') as product_id,
        coalesce(products.product_name, 'UNKNOWN') as product_name,
        sales.quantity,
        products.product_price,
        {{ cast('sales.quantity * products.product_price', 'decimal(18, 2)') }} as total_price,
        cast(
            case
                when customers.birthday <= sales.sale_date
                    then {{ completed_years('customers.birthday', 'sales.sale_date') }}
            end
            as integer
        ) as customer_age,
        sales.drop_date
    from sales
    left join customers on sales.customer_id = customers.customer_id
    left join outlets on sales.outlet_id = outlets.outlet_id
    left join products on sales.product_id = products.product_id

)

select * from lines
