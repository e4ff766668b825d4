{#-
    The window of changed partitions: a dbt var, a list of inclusive [first_day, last_day] pairs;
    where the var is absent, the environment variable DBT_<VAR> with the same as JSON.

    It is looked up when a statement is made, and not while dbt parses, where it is none: a changed
    var would have the project parsed anew, a changed variable the models that ask for it. So
    what a model's config() needs of it is asked for at_parse, or better not in config().

    window_ranges returns none where both are absent or null (rebuild everything), else a list
    of pairs of dates, in order. Anything that is not a pair of ISO dates, first to last, is an
    error: a window misread would leave stale rows behind, or put text of a var into SQL.
-#}
{% macro window_ranges(window_var, at_parse=false) -%}
    {%- if not execute and not at_parse -%}
        {{ return(none) }}
    {%- endif -%}
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
    The window that a model names in its meta, or none:
        var      of which partitions every row is replaced,
        column   that tells a row's partition,
        besides  a second window, or the only one: where it has a day, the model selects other rows
                 besides,
        key      the column by which these are found and replaced.
-#}
{% macro model_window() -%}
    {{ return((config.get('meta') or {}).get('window')) }}
{%- endmacro %}


{#-
    dbt's own, and true where a window of the model is absent, so that "everything" is one plain
    build swapped in at the end.
-#}
{% macro should_full_refresh() -%}
    {%- set window = model_window() or {} -%}
    {%- for name in (window.get('var'), window.get('besides')) if name -%}
        {%- if execute and window_ranges(name) is none -%}
            {{ return(true) }}
        {%- endif -%}
    {%- endfor -%}
    {{ return(dbt.should_full_refresh()) }}
{%- endmacro %}
