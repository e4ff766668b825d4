{#- Fails on each row whose value is not from 0 to 1; null, for a share of nothing, passes. -#}
{% test is_share(model, column_name) %}

select {{ column_name }}
from {{ model }}
where {{ column_name }} < 0 or {{ column_name }} > 1

{% endtest %}
