{#-
    A query of every month from one to another, both dates of a first day and columns of a relation
    of one row: one row a month, in the column order_month; no row where they are null.
-#}
{% macro month_series(relation, first_month, last_month) -%}
    {{ return(adapter.dispatch('month_series')(relation, first_month, last_month)) }}
{%- endmacro %}

{% macro default__month_series(relation, first_month, last_month) -%}
    select
        cast(
            unnest(generate_series({{ first_month }}, {{ last_month }}, interval 1 month)) as date
        ) as order_month
    from {{ relation }}
{%- endmacro %}

{% macro bigquery__month_series(relation, first_month, last_month) -%}
    select order_month
    from {{ relation }}
    cross join unnest(
        generate_date_array({{ first_month }}, {{ last_month }}, interval 1 month)
    ) as order_month
{%- endmacro %}
