"""One folder a domain; what Dagster loads is found here by its defs-folder loader."""
