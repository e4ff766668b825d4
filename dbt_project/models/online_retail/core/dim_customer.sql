with purchases as (

    select * from {{ ref('fact_online_retail_data_partitioned_clustered') }}
    where customer_id <> 0

),

-- The landed table's last day, not the fact's: a day of nothing but returns has passed as well.
as_of as (

    select
        coalesce(
            {{ date_from_var('online_retail_as_of') }},
            max(invoice_date)
        ) as as_of_date
    from {{ ref('stg_online_retail_data') }}

),

orders as (

    select
        customer_id,
        invoice_no,
        country,
        min(invoice_date) as first_date,
        max(invoice_date) as last_date,
        max(invoice_datetime) as last_datetime,
        sum(total_price) as order_value
    from purchases
    group by customer_id, invoice_no, country

),

countries as (

    select
        customer_id,
        country,
        row_number() over (
            partition by customer_id
            order by last_datetime desc, country asc
        ) as country_rank
    from orders

),

customers as (

    select
        customer_id,
        min(first_date) as first_purchase_date,
        max(last_date) as last_purchase_date,
        count(distinct invoice_no) as frequency,
        {{ cast('sum(order_value)', 'decimal(18, 3)') }} as monetary
    from orders
    group by customer_id

),

-- 5 is best: the latest, the most frequent, the highest value.
scored as (

    select
        customers.*,
        {{ days_between('customers.last_purchase_date', 'as_of.as_of_date') }} as recency_days,
        ntile(5) over (
            order by customers.last_purchase_date, customers.customer_id
        ) as recency_score,
        ntile(5) over (
            order by customers.frequency, customers.customer_id
        ) as frequency_score,
        ntile(5) over (
            order by customers.monetary, customers.customer_id
        ) as monetary_score
    from customers
    cross join as_of

),

segmented as (

    select
        scored.customer_id,
        countries.country,
        scored.first_purchase_date,
        scored.last_purchase_date,
        scored.recency_days,
        scored.frequency,
        scored.monetary,
        scored.recency_score,
        scored.frequency_score,
        scored.monetary_score,
        case
            when scored.recency_score = 5 and scored.frequency_score >= 4 then 'champions'
            when scored.recency_score >= 3 and scored.frequency_score >= 4 then 'loyal_customers'
            when scored.recency_score >= 4 and scored.frequency_score >= 2
                then 'potential_loyalists'
            when scored.recency_score = 5 then 'new_customers'
            when scored.recency_score = 4 then 'promising'
            when scored.recency_score = 3 and scored.frequency_score = 3 then 'needs_attention'
            when scored.recency_score = 3 then 'about_to_sleep'
            when scored.frequency_score = 5 then 'cannot_lose'
            when scored.frequency_score >= 3 then 'at_risk'
            else 'hibernating'
        end as rfm_segment
    from scored
    inner join countries
        on
            scored.customer_id = countries.customer_id
            and countries.country_rank = 1

)

select * from segmented
