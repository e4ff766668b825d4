"""The broker that order events go through: embedded, or Apache Kafka.

By file: resource (what is asked of any broker), clients (how they are set up, and their errors),
producer, embedded (who owns it, and where it is), keeper (a process that owns it).

Not here: what a message says, and when it has landed (defs/supply_chain). Nothing is imported, so
that the keeper starts at once.
"""
