{#-
    The window of changed partitions: a dbt var, a list of inclusive [first_day, last_day] pairs;
    where the var is absent, the environment variable DBT_<VAR> with the same as JSON. A changed
    var makes dbt parse the whole project anew, a changed variable only the models that read it.

    window_ranges returns none where both are absent or null (rebuild everything), else a list
    of pairs of dates, in order. Anything that is not a pair of ISO dates, first to last, is an
    error: a window misread would leave stale rows behind, or put text of a var into SQL.
-#}
{% macro window_ranges(window_var) -%}
    {%- set window = var(window_var, none) -%}
    {%- if window is none -%}
        {%- set window = fromjson(env_var('DBT_' ~ window_var | upper, 'null')) -%}
    {%- endif -%}
    {%- if window is none -%}
        {{ return(none) }}
    {%- endif -%}
    {%- if window is string or window is mapping or window is not sequence -%}
        {{ exceptions.raise_compiler_error(
            window_var ~ ": expected a list of [first_day, last_day] pairs, found " ~ window
        ) }}
    {%- endif -%}
    {%- set ranges = [] -%}
    {%- for pair in window -%}
        {%- if pair is string or pair is not sequence or pair | length != 2 -%}
            {{ exceptions.raise_compiler_error(
                window_var ~ ": expected a [first_day, last_day] pair, found " ~ pair
            ) }}
        {%- endif -%}
        {#- YAML turns an unquoted day into a date: both spellings are welcome. -#}
        {%- set first_day = modules.datetime.date.fromisoformat(pair[0] | string) -%}
        {%- set last_day = modules.datetime.date.fromisoformat(pair[1] | string) -%}
        {%- if first_day > last_day -%}
            {{ exceptions.raise_compiler_error(
                window_var ~ ": first day after last day in " ~ pair
            ) }}
        {%- endif -%}
        {%- do ranges.append((first_day, last_day)) -%}
    {%- endfor -%}
    {{ return(ranges | sort) }}
{%- endmacro %}


{#-
    A predicate on a date column, bounded by literals: partitions and row groups are pruned by it,
    which a join with a table of days would prevent.
-#}
{% macro in_window(date_column, window_var) -%}
    {%- set ranges = window_ranges(window_var) -%}
    {%- if ranges is none -%}
        true
    {%- elif ranges | length == 0 -%}
        false
    {%- else -%}
        (
        {%- for first_day, last_day in ranges %}
            {{ "or " if not loop.first -}}
            {{ date_column }} between date '{{ first_day }}' and date '{{ last_day }}'
        {%- endfor %}
        )
    {%- endif -%}
{%- endmacro %}


{#-
    For the config full_refresh: true where one of the windows is absent, so that "everything" is
    one plain build swapped in at the end, and none where all are there, which leaves
    --full-refresh in force.
-#}
{% macro rebuild_without_window(window_var) -%}
    {%- for name in (window_var,) + varargs if window_ranges(name) is none -%}
        {{ return(true) }}
    {%- endfor -%}
    {{ return(none) }}
{%- endmacro %}
