{#- A column whose name is a word reserved in one of the warehouses, as each of them quotes it. -#}
{% macro quoted(column) -%}
    {{ adapter.quote(column) }}
{%- endmacro %}
