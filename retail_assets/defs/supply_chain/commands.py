"""The commands that the supply chain brings: its sample, and a file's lines into its topic.

Here: which broker, and whether anybody reads there. Not here: what is sent (stream.py), how
(resources/broker/resource.py), the sample (sample.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retail_assets.defs.supply_chain.contract import DOMAIN
from retail_assets.errors import PermanentError
from retail_assets.settings import SAMPLE_SOURCE, Settings, load_settings

if TYPE_CHECKING:
    from retail_assets.defs.supply_chain.stream import Streamed


class NobodyReadsError(PermanentError):
    """The embedded broker would end with this command, its messages unread."""


def sample(
    orders: Annotated[int, typer.Option(min=1, help="orders, of 1 to 5 items")] = 2_000,
    seed: Annotated[int, typer.Option(help="the same seed gives the same bytes")] = 7,
    to: Annotated[Path | None, typer.Option(help="file; default: where the demo reads it")] = None,
) -> None:
    """Write a file of order lines, to be streamed."""
    from retail_assets.defs.supply_chain.sample import write_sample
    from retail_assets.progress import progress_bar

    path = to or load_settings().file_to_stream(DOMAIN, Path(SAMPLE_SOURCE))
    try:
        with progress_bar("orders", orders) as advance:
            made = write_sample(path, orders=orders, seed=seed, progress=advance)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    typer.echo(
        f"{path}: {made.lines:,} lines of {made.items:,} order items ({made.replayed:,} replayed,"
        f" {made.corrected:,} corrected), {made.customers:,} customers"
    )


def stream(
    file: Annotated[Path, typer.Argument(help="a CSV file of order lines, or: sample")],
) -> None:
    """Produce a file's lines to the supply chain's topic; Ctrl-C stops, the same goes on."""
    settings = load_settings()
    streamed = stream_with_progress(settings, settings.file_to_stream(DOMAIN, file))
    typer.echo(streamed.summary)
    if not streamed.finished:
        raise SystemExit(130)


def stream_with_progress(settings: Settings, file: Path) -> "Streamed":
    """Produce the file to the topic, from where an earlier command left it.

    Raises:
        NobodyReadsError: the broker is embedded and no process runs it.
        UnreadableSourceError: the file is not what it should be.
    """
    from retail_assets.defs.supply_chain.order_lines import examine_source
    from retail_assets.defs.supply_chain.stream import stream_file
    from retail_assets.progress import progress_bar
    from retail_assets.resources.broker.resource import BrokerResource

    broker = BrokerResource.of(settings)
    if not broker.running:
        raise NobodyReadsError(
            "RETAIL_KAFKA is 'embedded', and no process of ours runs the broker: it would end with"
            " this command. Start one (make dev), name brokers of your own in RETAIL_KAFKA, or do"
            f" it all in one process: retail-assets run {DOMAIN} --stream {file}"
        )
    source = examine_source(file)
    with progress_bar("messages", source.rows, speed=True) as advance:
        return stream_file(broker, source, settings.home / "streams", progress=advance)


COMMANDS = {"sample": sample, "stream": stream}
