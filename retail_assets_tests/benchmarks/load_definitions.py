"""Load the definitions as Dagster does, in this process, and print what they imported needlessly.

The last line is a JSON list of modules that definitions must not load. CPU is measured from
outside, for the whole fresh interpreter.
"""

import json
import sys

_FORBIDDEN = ("pyspark", "pysail", "pandas", "google", "dbt.cli", "dbt.adapters.duckdb")
# dagster imports protobuf itself; google._upb is protobuf's own C part, google a mere namespace.
_EXCEPTED = ("google.protobuf", "google._upb")


def offending(modules: set[str]) -> list[str]:
    """Those of ``modules`` that belong to a forbidden package, in order."""

    def within(module: str, packages: tuple[str, ...]) -> bool:
        return any(module == p or module.startswith(f"{p}.") for p in packages)

    return sorted(
        module
        for module in modules
        if module != "google" and within(module, _FORBIDDEN) and not within(module, _EXCEPTED)
    )


def main() -> None:
    """Import, call, resolve; modules that the interpreter's own start-up loaded do not count."""
    before = set(sys.modules)
    from retail_assets.definitions import defs

    defs().get_repository_def()
    print(json.dumps(offending(set(sys.modules) - before)))


if __name__ == "__main__":
    main()
