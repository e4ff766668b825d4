{#-
    What a build tells of a table: its rows, the first ten without personal columns, and the sums of
    the columns whose meta says `plotted`. It is a line of the log, which
    retail_assets/defs/marts/told.py reads. Only on DuckDB: BigQuery bills a whole table for ten
    rows of it.
-#}
{% macro tell_table() -%}
    {%- if execute and target.type == 'duckdb' and config.get('materialized') != 'view' -%}
        {%- set shown, sums = [], [] -%}
        {%- for name, column in model.columns.items() -%}
            {%- set meta = column.get('config', {}).get('meta') or column.get('meta') or {} -%}
            {%- if not meta.get('pii') -%}
                {%- do shown.append(name) -%}
            {%- endif -%}
            {%- if meta.get('plotted') -%}
                {%- do sums.append(name) -%}
            {%- endif -%}
        {%- endfor -%}
        {%- set totals -%}
            select count(*){% for name in sums %}, sum({{ adapter.quote(name) }}){% endfor %}
            from {{ this }}
        {%- endset -%}
        {%- set first -%}
            select
            {% for name in shown -%}
                left(cast({{ adapter.quote(name) }} as varchar), 80){{ "," if not loop.last }}
            {% endfor -%}
            from {{ this }} limit 10
        {%- endset -%}
        {%- set total = run_query(totals).rows[0] -%}
        {%- set told = {'unique_id': model.unique_id, 'rows': total[0] | int, 'sums': {}, 'first': []} -%}
        {%- for name in sums -%}
            {%- do told.sums.update({name: total[loop.index] | string}) -%}
        {%- endfor -%}
        {%- for row in run_query(first).rows -%}
            {%- do told.first.append(dict(zip(shown, row))) -%}
        {%- endfor -%}
        {%- do log('retail_assets ' ~ tojson(told), info=true) -%}
    {%- endif -%}
{%- endmacro %}
