{{
    config(
        tags=['of_the_models'],
        meta={'dagster': {'ref': {'name': 'fact_sales'}}},
    )
}}

-- Only stg_customer and dim_customer have columns that the source marks as personal.
-- depends_on: {{ source('malaysian_coffee_chain', 'customer') }}
{{
    personal_columns_in(
        'malaysian_coffee_chain',
        [
            ref('stg_outlet'),
            ref('stg_product'),
            ref('stg_sales'),
            ref('coffee_chain_dim_outlet'),
            ref('coffee_chain_dim_product'),
            ref('fact_sales'),
            ref('state_revenue'),
            ref('age_group_purchase'),
        ],
    )
}}
