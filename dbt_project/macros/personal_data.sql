{#-
    A query of the columns of these relations that have the name of one that the source marks as
    personal (meta pii), by the tables as they are in the warehouse; no row where there is none.
-#}
{% macro personal_columns_in(source_name, relations) -%}
    {%- set personal = [] -%}
    {%- set found = [] -%}
    {%- if execute -%}
        {%- for table in graph.sources.values() if table.source_name == source_name -%}
            {%- for column in table.columns.values() if column.meta.get('pii') -%}
                {%- do personal.append(column.name | lower) -%}
            {%- endfor -%}
        {%- endfor -%}
        {%- if not personal -%}
            {{ exceptions.raise_compiler_error(
                "source " ~ source_name ~ ": expected columns with meta pii, found none"
            ) }}
        {%- endif -%}
        {%- for relation in relations -%}
            {%- for column in adapter.get_columns_in_relation(relation) -%}
                {%- if column.name | lower in personal -%}
                    {%- do found.append((relation.identifier, column.name)) -%}
                {%- endif -%}
            {%- endfor -%}
        {%- endfor -%}
    {%- endif -%}
    {%- for table, column in found %}
    select '{{ table }}' as model_name, '{{ column }}' as column_name
    {{- " union all" if not loop.last }}
    {%- else %}
    select 'none' as model_name, 'none' as column_name limit 0
    {%- endfor %}
{%- endmacro %}
