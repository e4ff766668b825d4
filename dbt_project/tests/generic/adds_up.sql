{#-
    Fails on each column of the model whose sum is not what the relation `to` says.

    `equal` maps columns to an aggregate over the rows of `to` for which `only` is true, and the
    sum has to be equal, to the last digit. `at_most` maps them to an aggregate over all rows of
    `to`, which the sum must not pass: a join that multiplies rows shows here. Nothing sums to 0.
-#}
{% test adds_up(model, to, equal={}, at_most={}, only='true') %}

{%- if not equal and not at_most -%}
    {{ exceptions.raise_compiler_error(
        model.name ~ ": expected adds_up to name columns in equal or at_most, found none"
    ) }}
{%- endif %}

with sums as (

    select
        {%- for column in (equal.keys() | list + at_most.keys() | list) | unique %}
        coalesce(sum({{ column }}), 0) as {{ column }}{{ "," if not loop.last }}
        {%- endfor %}
    from {{ model }}

),

{% if equal -%}
totals as (

    select
        {%- for column, total in equal.items() %}
        coalesce({{ total }}, 0) as {{ column }}{{ "," if not loop.last }}
        {%- endfor %}
    from {{ to }}
    where {{ only }}

),

{% endif -%}
{% if at_most -%}
limits as (

    select
        {%- for column, total in at_most.items() %}
        coalesce({{ total }}, 0) as {{ column }}{{ "," if not loop.last }}
        {%- endfor %}
    from {{ to }}

),

{% endif -%}
faults as (

    {% for column in equal -%}
    select
        '{{ column }}' as column_name,
        cast(sums.{{ column }} as string) as found,
        'equal to' as comparison,
        cast(totals.{{ column }} as string) as expected
    from sums
    cross join totals
    where sums.{{ column }} <> totals.{{ column }}
    {{ "union all" if at_most or not loop.last }}
    {% endfor -%}
    {% for column in at_most -%}
    select
        '{{ column }}' as column_name,
        cast(sums.{{ column }} as string) as found,
        'at most' as comparison,
        cast(limits.{{ column }} as string) as expected
    from sums
    cross join limits
    where sums.{{ column }} > limits.{{ column }}
    {{ "union all" if not loop.last }}
    {% endfor %}
)

select * from faults

{% endtest %}
