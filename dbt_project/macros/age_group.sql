{#-
    The bands in which the coffee chain counts its customers' ages: each completed year is in one
    of them, and an age that is not known in none.
-#}
{% macro age_group(age_column) -%}
    case
        when {{ age_column }} is null then 'UNKNOWN'
        when {{ age_column }} < 21 then 'under 21'
        when {{ age_column }} <= 25 then '21-25'
        when {{ age_column }} <= 30 then '26-30'
        when {{ age_column }} <= 35 then '31-35'
        when {{ age_column }} <= 40 then '36-40'
        when {{ age_column }} <= 45 then '41-45'
        when {{ age_column }} <= 50 then '46-50'
        else 'over 50'
    end
{%- endmacro %}
