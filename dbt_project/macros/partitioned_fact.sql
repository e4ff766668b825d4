{#-
    How a fact replaces the days of the window that its meta names, per adapter (window.sql). The
    models stay one SQL: these macros stand in their config.

    BigQuery: insert_overwrite with static partitions, one atomic MERGE over the days named; for a
    fact that is not partitioned by the window's date, merge as bigquery__get_merge_sql has it.
    DuckDB: replace_window below, for insert_overwrite is not known there.
    All empty a day that has no rows any more: they go by the window, not by the rows found.
-#}
{% macro replace_window_strategy() -%}
    {{ return(adapter.dispatch('replace_window_strategy')()) }}
{%- endmacro %}

{% macro default__replace_window_strategy() -%}
    {{ return('replace_window') }}
{%- endmacro %}

{% macro bigquery__replace_window_strategy() -%}
    {{ return('insert_overwrite') }}
{%- endmacro %}


{#- The strategy of a fact that is not partitioned by the window's date. -#}
{% macro merge_window_strategy() -%}
    {{ return(adapter.dispatch('merge_window_strategy')()) }}
{%- endmacro %}

{% macro default__merge_window_strategy() -%}
    {{ return('replace_window') }}
{%- endmacro %}

{% macro bigquery__merge_window_strategy() -%}
    {{ return('merge') }}
{%- endmacro %}


{#- The config partition_by. None but on BigQuery: dbt-duckdb fails on the dictionary. -#}
{% macro partition_by_day(datetime_column) -%}
    {{ return(partition_by_time(datetime_column, 'datetime', 'day')) }}
{%- endmacro %}

{% macro partition_by_month(date_column) -%}
    {{ return(partition_by_time(date_column, 'date', 'month')) }}
{%- endmacro %}

{% macro partition_by_time(column, data_type, granularity) -%}
    {{ return(adapter.dispatch('partition_by_time')(column, data_type, granularity)) }}
{%- endmacro %}

{% macro default__partition_by_time(column, data_type, granularity) -%}
    {{ return(none) }}
{%- endmacro %}

{% macro bigquery__partition_by_time(column, data_type, granularity) -%}
    {{ return({'field': column, 'data_type': data_type, 'granularity': granularity}) }}
{%- endmacro %}


{#-
    The config partitions: the days of the window as literals of the partition's type. Without a
    window the table is rebuilt. With an empty one the partition is null, which none is: for an
    empty list dbt would look into the model's result for partitions to replace. On BigQuery, dbt
    parses the model anew for it.
-#}
{% macro window_partitions(window_var) -%}
    {{ return(adapter.dispatch('window_partitions')(window_var)) }}
{%- endmacro %}

{% macro default__window_partitions(window_var) -%}
    {{ return(none) }}
{%- endmacro %}

{% macro bigquery__window_partitions(window_var) -%}
    {%- set days = [] -%}
    {%- for first_day, last_day in window_ranges(window_var, at_parse=true) or [] -%}
        {%- for offset in range((last_day - first_day).days + 1) -%}
            {%- set day = first_day + modules.datetime.timedelta(days=offset) -%}
            {%- set literal = "datetime '" ~ day ~ " 00:00:00'" -%}
            {%- if literal not in days -%}
                {%- do days.append(literal) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endfor -%}
    {{ return(days or ['cast(null as datetime)']) }}
{%- endmacro %}


{#-
    The materialization of a fact that BigQuery cannot replace by days, having no partitions:
    there it is built anew.
-#}
{% macro unpartitioned_materialization() -%}
    {{ return(adapter.dispatch('unpartitioned_materialization')()) }}
{%- endmacro %}

{% macro default__unpartitioned_materialization() -%}
    {{ return('incremental') }}
{%- endmacro %}

{% macro bigquery__unpartitioned_materialization() -%}
    {{ return('table') }}
{%- endmacro %}


{#-
    The strategy replace_window: delete the window's rows and, where the model selects others
    besides, those; insert what it selects. All statements run in the materialization's one
    transaction. The model is asked after the deletion, for temp_relation is a view (below): it
    must not select from its own table. The rows besides are looked for once, for they may lie
    anywhere in history.

    Whether the checkpoint after it merges small row groups is for the environment to say
    (DBT_MERGES_ROW_GROUPS; resources/dbt/project.py).
-#}
{% macro get_incremental_replace_window_sql(arg_dict) -%}
    {%- set target, selected = arg_dict['target_relation'], arg_dict['temp_relation'] -%}
    {%- set predicate = window_predicate() -%}
    {%- set key = key_besides() -%}
    {%- set besides = adapter.quote(selected.identifier ~ '_besides') -%}
    {%- set columns = get_quoted_csv(arg_dict['dest_columns'] | map(attribute='name')) -%}

    {% if env_var('DBT_MERGES_ROW_GROUPS', 'true') == 'false' -%}
    set global max_vacuum_tasks = 0;
    {%- endif %}

    delete from {{ target }} as DBT_INTERNAL_DEST
    where {{ predicate }};

    {% if key -%}
    create temporary table {{ besides }} as
    select {{ columns }} from {{ selected }} as DBT_INTERNAL_DEST
    where {{ predicate }} is not true;

    delete from {{ target }}
    where {{ key }} in (select {{ key }} from {{ besides }});
    {%- endif %}

    insert into {{ target }} ({{ columns }})
    select {{ columns }} from {{ selected }} as DBT_INTERNAL_DEST
    {%- if key %}
    where {{ predicate }}
    union all
    select {{ columns }} from {{ besides }};

    drop table {{ besides }}
    {%- endif %}
{%- endmacro %}


{#-
    dbt's own, but that a fact of the strategy replace_window is not copied to a temporary table
    first: that took as long as the insert itself.
-#}
{% macro duckdb__create_table_as(
    temporary, relation, compiled_code, language='sql', partitioned_by=none, sorted_by=none
) -%}
    {%- if not temporary or config.get('incremental_strategy') != 'replace_window' -%}
        {{ return(dbt.duckdb__create_table_as(
            temporary, relation, compiled_code, language, partitioned_by, sorted_by
        )) }}
    {%- endif -%}
    {{ get_assert_columns_equivalent(compiled_code) }}
    create or replace temporary view {{ relation.include(database=false, schema=false) }} as (
        {{ compiled_code }}
    )
{%- endmacro %}


{#-
    BigQuery's MERGE of a fact whose meta names a window: replace_window as one atomic statement.
    Where it selects rows besides, those found by their key are updated, those of the window that
    the model no longer selects are deleted, the others are inserted; else the window's rows are
    deleted and inserted, and no join is made. Every other model has dbt's own MERGE.
-#}
{% macro bigquery__get_merge_sql(
    target, source, unique_key, dest_columns, incremental_predicates=none
) -%}
    {%- if not model_window() -%}
        {{ return(dbt.default__get_merge_sql(
            target, source, unique_key, dest_columns, incremental_predicates
        )) }}
    {%- endif -%}
    {%- set key = key_besides() -%}
    {%- set columns = dest_columns | map(attribute='name') | list -%}

    merge into {{ target }} as DBT_INTERNAL_DEST
    using {{ source }} as DBT_INTERNAL_SOURCE
    {% if key -%}
    on DBT_INTERNAL_DEST.{{ key }} = DBT_INTERNAL_SOURCE.{{ key }}
    when matched then update set
        {%- for column in columns if column != key %}
        {{ adapter.quote(column) }} = DBT_INTERNAL_SOURCE.{{ adapter.quote(column) }}
        {{- "," if not loop.last }}
        {%- endfor %}
    {%- else -%}
    on false
    {%- endif %}
    {%- if model_window().get('var') %}
    when not matched by source and {{ window_predicate() }} then delete
    {%- endif %}
    when not matched then insert ({{ get_quoted_csv(columns) }})
    values ({{ get_quoted_csv(columns) }})
{%- endmacro %}


{#-
    The rows of the table that the model's window replaces; none where it names rows besides alone.
    Without either it would be every row.
-#}
{% macro window_predicate() -%}
    {%- set window = model_window() or {} -%}
    {%- if window.get('besides') and not window.get('var') -%}
        {{ return('(false)') }}
    {%- endif -%}
    {%- if not window.get('var') or not window.get('column') -%}
        {{ exceptions.raise_compiler_error(
            model.name ~ ": expected meta.window with var and column, which name the rows to"
            ~ " replace, found " ~ window ~ "; without it every row would be deleted"
        ) }}
    {%- endif -%}
    ({{ in_window('DBT_INTERNAL_DEST.' ~ window['column'], window['var']) }})
{%- endmacro %}


{#-
    The key of the rows that the model selects besides its window; none where there are none. A
    model that selects others only goes by the key always.
-#}
{% macro key_besides() -%}
    {%- set window = model_window() -%}
    {%- if not window.get('besides') -%}
        {{ return(none) }}
    {%- endif -%}
    {%- if window.get('var') and not window_ranges(window['besides']) -%}
        {{ return(none) }}
    {%- endif -%}
    {%- if not window.get('key') -%}
        {{ exceptions.raise_compiler_error(
            model.name ~ ": expected meta.window with a key, by which the rows that it selects for "
            ~ window['besides'] ~ " replace others, found " ~ window
        ) }}
    {%- endif -%}
    {{ return(window['key']) }}
{%- endmacro %}
