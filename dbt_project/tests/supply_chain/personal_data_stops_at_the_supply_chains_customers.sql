{{ config(meta={'dagster': {'ref': {'name': 'overall_performance'}}}) }}

-- Only stg_dim_customer has columns that the source marks as personal.
-- depends_on: {{ source('supply_chain', 'dim_customer') }}
{{
    personal_columns_in(
        'supply_chain',
        [
            ref('stg_dim_product'),
            ref('stg_dim_location'),
            ref('stg_dim_shipping'),
            ref('stg_dim_department'),
            ref('stg_dim_metadata'),
            ref('stg_fact_order'),
            ref('inventory_levels'),
            ref('customer_retention_rate'),
            ref('financial_commitments'),
            ref('fraud_detection'),
            ref('overall_performance'),
            ref('shipping_delays'),
        ],
    )
}}
