"""dbt, in a process of its own.

By file: project (where it is, what it is told), cli (how Dagster starts a command), command (what
is started), worker (a process that is started before its command is known).

Not here: models (dbt_project/), which of them an asset builds (defs/marts/dbt.py). Nothing is
imported, so that a command starts at once.
"""
