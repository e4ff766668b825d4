{#-
    dbt's own macro `cast(expression, type)`, as BigQuery needs it: there a cast takes no precision
    and scale ("Parameterized types are not allowed in CAST expressions"), so the value is rounded
    to the scale instead. The precision is held by the column of the contract. dbt's check of a
    contract casts by this macro as well.
-#}
{% macro bigquery__cast(field, type) -%}
    {%- set decimal = modules.re.fullmatch('decimal\\((\\d+), *(\\d+)\\)', type | lower) -%}
    {%- if decimal -%}
        cast(round({{ field }}, {{ decimal.group(2) }}) as numeric)
    {%- else -%}
        cast({{ field }} as {{ type }})
    {%- endif -%}
{%- endmacro %}
