{#-
    How a fact replaces the days of a window, per adapter. The models stay one SQL: these macros
    stand in their config.

    BigQuery: insert_overwrite with static partitions, one atomic MERGE over the days named.
    DuckDB: replace_window below, for insert_overwrite is not known there.
    Both empty a day that has no rows any more: they go by the window, not by the rows found.
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


{#- The config partition_by. None but on BigQuery: dbt-duckdb fails on the dictionary. -#}
{% macro partition_by_day(datetime_column) -%}
    {{ return(adapter.dispatch('partition_by_day')(datetime_column)) }}
{%- endmacro %}

{% macro default__partition_by_day(datetime_column) -%}
    {{ return(none) }}
{%- endmacro %}

{% macro bigquery__partition_by_day(datetime_column) -%}
    {{ return({'field': datetime_column, 'data_type': 'datetime', 'granularity': 'day'}) }}
{%- endmacro %}


{#-
    The config partitions: the days of the window as literals of the partition's type. Without a
    window the table is rebuilt. With an empty one the partition is null, which none is: for an
    empty list dbt would look into the model's result for partitions to replace.
-#}
{% macro window_partitions(window_var) -%}
    {{ return(adapter.dispatch('window_partitions')(window_var)) }}
{%- endmacro %}

{% macro default__window_partitions(window_var) -%}
    {{ return(none) }}
{%- endmacro %}

{% macro bigquery__window_partitions(window_var) -%}
    {%- set days = [] -%}
    {%- for first_day, last_day in window_ranges(window_var) or [] -%}
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
    The strategy replace_window: delete what incremental_predicates name, insert what the model
    selected. Both statements run in the materialization's one transaction.
-#}
{% macro get_incremental_replace_window_sql(arg_dict) -%}
    {%- set predicates = arg_dict['incremental_predicates'] -%}
    {%- if not predicates -%}
        {{ exceptions.raise_compiler_error(
            "replace_window needs incremental_predicates: without them it would delete every row"
        ) }}
    {%- endif -%}
    {%- set columns = get_quoted_csv(arg_dict['dest_columns'] | map(attribute='name')) -%}

    delete from {{ arg_dict['target_relation'] }}
    where {{ predicates | join(' and ') }};

    insert into {{ arg_dict['target_relation'] }} ({{ columns }})
    select {{ columns }} from {{ arg_dict['temp_relation'] }}
{%- endmacro %}
