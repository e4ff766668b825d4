{#- Calendar arithmetic, which every warehouse spells in its own way. All take and give dates. -#}

{% macro month_start(date_column) -%}
    {{ return(adapter.dispatch('month_start')(date_column)) }}
{%- endmacro %}

{% macro default__month_start(date_column) -%}
    cast(date_trunc('month', {{ date_column }}) as date)
{%- endmacro %}

{% macro bigquery__month_start(date_column) -%}
    date_trunc({{ date_column }}, month)
{%- endmacro %}


{% macro days_between(first_date, last_date) -%}
    {{ return(adapter.dispatch('days_between')(first_date, last_date)) }}
{%- endmacro %}

{% macro default__days_between(first_date, last_date) -%}
    date_diff('day', {{ first_date }}, {{ last_date }})
{%- endmacro %}

{% macro bigquery__days_between(first_date, last_date) -%}
    date_diff({{ last_date }}, {{ first_date }}, day)
{%- endmacro %}


{% macro months_between(first_date, last_date) -%}
    {{ return(adapter.dispatch('months_between')(first_date, last_date)) }}
{%- endmacro %}

{% macro default__months_between(first_date, last_date) -%}
    date_diff('month', {{ first_date }}, {{ last_date }})
{%- endmacro %}

{% macro bigquery__months_between(first_date, last_date) -%}
    date_diff({{ last_date }}, {{ first_date }}, month)
{%- endmacro %}


{#-
    Years completed from the birthday to a later date: one more on each birthday. Who was born on
    29 February completes a year on 1 March where the year has no 29 February. Both dates as
    yyyymmdd: the difference drops below a whole multiple of 10000 until month and day are reached.
-#}
{% macro completed_years(birthday, on_date) -%}
    {{ return(adapter.dispatch('completed_years')(birthday, on_date)) }}
{%- endmacro %}

{% macro default__completed_years(birthday, on_date) -%}
    (({{ yyyymmdd(on_date) }}) - ({{ yyyymmdd(birthday) }})) // 10000
{%- endmacro %}

{% macro bigquery__completed_years(birthday, on_date) -%}
    div(({{ yyyymmdd(on_date) }}) - ({{ yyyymmdd(birthday) }}), 10000)
{%- endmacro %}

{% macro yyyymmdd(date_column) -%}
    extract(year from {{ date_column }}) * 10000
    + extract(month from {{ date_column }}) * 100
    + extract(day from {{ date_column }})
{%- endmacro %}


{#- A var that holds an ISO date, as a literal; a null date where it is absent. -#}
{% macro date_from_var(date_var) -%}
    {%- set day = var(date_var, none) -%}
    {%- if day is none -%}
        cast(null as date)
    {%- else -%}
        date '{{ modules.datetime.date.fromisoformat(day | string) }}'
    {%- endif -%}
{%- endmacro %}
