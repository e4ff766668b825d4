"""The supply chain's keys, jobs and run configs, as the tests of streams name them."""

from typing import Any

import dagster as dg

from retail_assets.feeds.stream import step_config

TOPIC_KEY = dg.AssetKey(["supply_chain", "topic"])
MESSAGES_KEY = dg.AssetKey(["raw_streaming", "supply_chain_data"])
OPERATIONAL_KEY = dg.AssetKey(["operational_db", "supply_chain_messages"])
MESSAGES_JOB = "supply_chain_messages"
STAR_JOB = "olap_transformation_pipeline"
LOAD_JOB = "gcs_to_bigquery_pipeline"
BATCH_JOB = "batch_pipeline"
MARTS_JOB = "supply_chain_marts"


def messages_config(**values: Any) -> dict[str, Any]:
    """The run config of a job that lands messages."""
    return step_config("supply_chain_micro_batch", **values)


def star_config(**values: Any) -> dict[str, Any]:
    """The run config of a job that builds the star."""
    return step_config("supply_chain_star", **values)
