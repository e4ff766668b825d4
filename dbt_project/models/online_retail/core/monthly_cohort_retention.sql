with purchases as (

    select * from {{ ref('fact_online_retail_data_partitioned_clustered') }}
    where customer_id <> 0

),

-- A month is the date of its first day: December 2010 and December 2011 stay apart.
customer_months as (

    select
        customer_id,
        {{ month_start('invoice_date') }} as activity_month,
        sum(total_price) as revenue
    from purchases
    group by customer_id, {{ month_start('invoice_date') }}

),

customer_cohorts as (

    select
        customer_id,
        activity_month,
        revenue,
        min(activity_month) over (partition by customer_id) as cohort_month
    from customer_months

),

cohort_months as (

    select
        cohort_month,
        activity_month,
        count(*) as active_customers,
        sum(revenue) as revenue
    from customer_cohorts
    group by cohort_month, activity_month

),

-- All of a cohort buy in its first month, by definition: that month's count is the cohort's size.
sized as (

    select
        *,
        max(case when activity_month = cohort_month then active_customers end) over (
            partition by cohort_month
        ) as cohort_size
    from cohort_months

),

retention as (

    select
        cohort_month,
        activity_month,
        {{ months_between('cohort_month', 'activity_month') }} as months_since_first_purchase,
        cohort_size,
        active_customers,
        {{ cast('active_customers / cohort_size', 'decimal(7, 6)') }} as retention_rate,
        {{ cast('revenue', 'decimal(18, 3)') }} as revenue
    from sized

)

select * from retention
