"""What stands on the warehouse tables: dbt's models as assets."""
