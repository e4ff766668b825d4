"""Telling people of faults: what is said, what is kept until it was received, who receives it.

By file: alert (the words, without secrets and values), outbox (what is open, what waits; on disk),
receivers (apprise's services, or the log), apprise_call (a program: one message by apprise),
sending (what waits, to each that takes it). Not here: which faults there are (defs/operations).
"""

from retail_assets.resources.notify.alert import Alert, Kind
from retail_assets.resources.notify.outbox import Fault, Outbox, open_outbox
from retail_assets.resources.notify.receivers import find_receivers
from retail_assets.resources.notify.sending import send_waiting

__all__ = ["Alert", "Fault", "Kind", "Outbox", "find_receivers", "open_outbox", "send_waiting"]
