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


{#- A var that holds an ISO date, as a literal; a null date where it is absent. -#}
{% macro date_from_var(date_var) -%}
    {%- set day = var(date_var, none) -%}
    {%- if day is none -%}
        cast(null as date)
    {%- else -%}
        date '{{ modules.datetime.date.fromisoformat(day | string) }}'
    {%- endif -%}
{%- endmacro %}
