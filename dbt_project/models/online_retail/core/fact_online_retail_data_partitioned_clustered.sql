{{
    config(
        materialized='incremental',
        incremental_strategy=replace_window_strategy(),
        on_schema_change='fail',
        meta={'window': {'var': 'online_retail_window', 'column': 'invoice_date'}},
        partition_by=partition_by_day('invoice_datetime'),
        partitions=window_partitions('online_retail_window'),
        cluster_by=['customer_id'],
    )
}}

with source as (

    select * from {{ ref('stg_online_retail_data') }}

),

sold as (

    select
        transaction_id,
        invoice_no,
        stock_code,
        description,
        quantity,
        unit_price,
        total_price,
        customer_id,
        country,
        invoice_datetime,
        invoice_date,
        time,
        month,
        day,
        year,
        line_type,
        is_product
    from source
    where
        line_type in ('sale', 'gift')
        {% if is_incremental() %}
            and {{ in_window('invoice_date', 'online_retail_window') }}
        {% endif %}

)

select * from sold
