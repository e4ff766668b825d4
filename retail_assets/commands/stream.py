"""A file's lines into the supply chain's topic, with a progress bar.

Here: which broker, and whether anybody reads there. Not here: what is sent (stream.py of the
domain), how (resources/broker/resource.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.errors import PermanentError
from retail_assets.settings import Settings

if TYPE_CHECKING:
    from retail_assets.defs.supply_chain.stream import Streamed


class NobodyReadsError(PermanentError):
    """The embedded broker would end with this command, its messages unread."""


def stream_with_progress(settings: Settings, file: Path) -> "Streamed":
    """Produce the file to the topic, from where an earlier command left it.

    Raises:
        NobodyReadsError: the broker is embedded and no process runs it.
        UnreadableSourceError: the file is not what it should be.
    """
    from retail_assets.commands.tables import progress_bar
    from retail_assets.defs.supply_chain.stream import examine_source, stream_file
    from retail_assets.resources.broker.resource import BrokerResource

    broker = BrokerResource.of(settings)
    if not broker.running:
        raise NobodyReadsError(
            "RETAIL_KAFKA is 'embedded', and no process of ours runs the broker: it would end with"
            " this command. Start one (make dev), name brokers of your own in RETAIL_KAFKA, or do"
            f" it all in one process: retail-assets run supply_chain --stream {file}"
        )
    source = examine_source(file)
    with progress_bar("messages", source.rows, speed=True) as advance:
        return stream_file(broker, source, settings.home / "streams", progress=advance)
