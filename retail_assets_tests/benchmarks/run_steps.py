"""Print the seconds of each step of the home's recorded runs that succeeded, as a JSON object.

Here: reading Dagster's event log. Not here: what the steps are called (coffee_chain.py).

    python -m retail_assets_tests.benchmarks.run_steps RUNS

RUNS is how many of the latest runs are meant: a command may execute several.
"""

import json
import sys


def read_steps(runs: int) -> dict[str, float]:
    """Wall seconds by step of the last ``runs`` runs."""
    from retail_assets.instance import open_instance
    from retail_assets.settings import load_settings

    seconds: dict[str, float] = {}
    with open_instance(load_settings()) as instance:
        for found in instance.get_runs(limit=runs):
            for entry in instance.all_logs(found.run_id):
                event = entry.dagster_event
                if event is not None and event.is_step_success and event.step_key is not None:
                    lasted = event.step_success_data.duration_ms / 1000
                    seconds[event.step_key] = seconds.get(event.step_key, 0.0) + lasted
    return seconds


if __name__ == "__main__":
    print(json.dumps(read_steps(int(sys.argv[1]))))
