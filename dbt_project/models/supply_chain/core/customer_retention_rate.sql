-- A month is the date of its first day: December 2015 and December 2016 stay apart.
with customer_months as (

    select distinct
        customer_id,
        {{ month_start('cast(order_date as date)') }} as order_month
    from {{ ref('stg_fact_order') }}

),

sequences as (

    select
        order_month,
        lag(order_month) over (
            partition by customer_id
            order by order_month
        ) as previous_month
    from customer_months

),

active_months as (

    select
        order_month,
        count(*) as customer_count,
        sum(
            case when {{ months_between('previous_month', 'order_month') }} = 1 then 1 else 0 end
        ) as retained_count
    from sequences
    group by order_month

),

span as (

    select
        min(order_month) as first_month,
        max(order_month) as last_month
    from active_months

),

-- A month without orders is a month nevertheless: the one after it retained nobody of nobody.
months as (

    {{ month_series('span', 'first_month', 'last_month') }}

),

filled as (

    select
        months.order_month,
        coalesce(active_months.customer_count, 0) as customer_count,
        coalesce(active_months.retained_count, 0) as retained_count
    from months
    left join active_months on months.order_month = active_months.order_month

),

compared as (

    select
        *,
        lag(customer_count) over (
            order by order_month
        ) as previous_customer_count
    from filled

),

retention as (

    select
        order_month,
        customer_count,
        previous_customer_count,
        cast(
            case when previous_customer_count is not null then retained_count end as bigint
        ) as retained_customer_count,
        {{ cast(
            'retained_count / nullif(previous_customer_count, 0)', 'decimal(12, 9)'
        ) }} as retention_rate
    from compared

)

select * from retention
