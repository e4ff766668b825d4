{#-
    A model's schema is that of its folders, <domain>_<layer>; any other is called what the project
    says: dbt would put the target's schema in front of it.
-#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {%- if node.resource_type == 'model' and node.fqn | length > 3 and not custom_schema_name -%}
        {{ node.fqn[1] }}_{{ node.fqn[2] }}
    {%- else -%}
        {{ (custom_schema_name or target.schema) | trim }}
    {%- endif -%}
{%- endmacro %}
