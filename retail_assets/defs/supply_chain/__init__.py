"""Order events through Kafka: CSV to topic, to PostgreSQL and the lake, to a star, to marts."""
