-- A cohort is whole in its first month, and no later month has more of it.
select
    cohort_month,
    activity_month,
    cohort_size,
    active_customers
from {{ ref('monthly_cohort_retention') }}
where
    months_since_first_purchase < 0
    or active_customers > cohort_size
    or (months_since_first_purchase = 0 and retention_rate <> 1)
