"""A file that is produced to the topic beside the micro-batches that land it.

Here: its thread. Not here: what is sent (stream.py), how it lands (batches.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from retail_assets.defs.supply_chain.stream import Streamed, examine_source, stream_file
from retail_assets.resources.broker.resource import BrokerResource


class _Producing:
    """A file that is produced in a thread beside the batches that land it."""

    def __init__(self, broker: BrokerResource, file: Path, streams: Path) -> None:
        self.streamed: Streamed | None = None
        self._stop = Event()
        self._error: BaseException | None = None
        source = examine_source(file)

        def produce() -> None:
            try:
                self.streamed = stream_file(broker, source, streams, stop=self._stop)
            except BaseException as error:
                self._error = error

        self._thread = Thread(target=produce, name="producer", daemon=True)
        self._thread.start()

    def goes_on(self) -> bool:
        """Whether more is coming.

        Raises:
            Exception: what ended the producer.
        """
        if self._error is not None:
            raise self._error
        return self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


class _NotProducing:
    streamed = None

    def goes_on(self) -> bool:
        return False


@contextmanager
def produced(
    broker: BrokerResource, file: str | None, streams: Path
) -> Iterator[_Producing | _NotProducing]:
    """Produce a file, if there is one, while the block runs; at its end it was produced.

    Raises:
        Exception: what ended the producer.
    """
    if file is None:
        yield _NotProducing()
        return
    producing = _Producing(broker, Path(file), streams)
    try:
        yield producing
    finally:
        producing.stop()
