"""A program: sends one message by apprise, and prints why it was not taken, or nothing.

Run by its path, so that it imports apprise and nothing of ours (receivers.py). The message, and
the address with its secrets, come by standard input.
"""

import json
import sys

_APP = "Retail Assets"


def _send(address: str, level: str, title: str, body: str) -> str:
    import apprise

    asset = apprise.AppriseAsset(app_id=_APP, app_desc=_APP, service_timeout=0)
    service = apprise.Apprise.instantiate(address, asset=asset)
    if service is None:
        return "apprise knows no such address: look it up in its list of services"
    sender = apprise.Apprise(asset=asset)
    sender.add(service)
    kinds = {x.value: x for x in apprise.NotifyType}
    result = sender.notify(
        body, title, notify_type=kinds[level], body_format=apprise.NotifyFormat.TEXT
    )
    if result:
        return ""
    return ([x.message for x in result.logs()] or ["apprise did not say why"])[-1]


if __name__ == "__main__":
    print(_send(**json.load(sys.stdin)))
