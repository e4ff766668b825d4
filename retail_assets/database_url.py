"""The URL of a PostgreSQL database: its shape, and what of it may be shown.

Here: texts. Not here: which variable holds one (settings.py), connecting
(resources/operational_db).
"""

import re
from urllib.parse import unquote

_HIDDEN = "***"
# As libpq reads it: the user goes to the first @, unless a / is before it.
_POSTGRES_HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:@/?#\[\],]*)(?::[0-9]{1,5})?"
POSTGRES = re.compile(
    r"(?P<scheme>postgres(?:ql)?://)"
    r"(?:(?P<user>[^\s:@/]*)(?P<password>:[^\s@/]*)?@)?"
    rf"(?P<place>{_POSTGRES_HOST}(?:,{_POSTGRES_HOST})*(?:/[^\s?#]*)?)(?:\?(?P<query>[^\s#]*))?"
)


def redacted(url: str) -> str:
    """The URL of a database, valid or not, with ``***`` where a password may stand.

    Of what is not valid, more is hidden than need be: nobody knows where its password ends.
    """
    valid = POSTGRES.fullmatch(url)
    if valid is None:
        # A password may hold any of the characters that part the URL.
        scheme, parted, rest = url.partition("://")
        scheme, rest = (f"{scheme}://", rest) if parted else ("", url)
        user, at, after = rest.rpartition("@")
        if not at:
            user, after = rest, ""
        name, colon, secret = user.partition(":")
        if colon and (at or (scheme and not re.match(r"[0-9]{1,5}(/|$)", secret))):
            user = f"{name}:{_HIDDEN}"
        return _without_passwords(f"{scheme}{user}{at}{after}")
    user = valid["user"]
    if valid["password"]:
        user = f"{user}:{_HIDDEN}"
    parts = (valid["query"] or "").split("&")
    for position, part in enumerate(parts):
        key, equals, _ = part.partition("=")
        if equals and "password" in unquote(key).lower():
            parts[position] = f"{key}={_HIDDEN}"
    return (
        f"{valid['scheme']}{'' if user is None else f'{user}@'}{valid['place']}"
        f"{'' if valid['query'] is None else '?'}{'&'.join(parts)}"
    )


def _without_passwords(text: str) -> str:
    """As of ``password=... host=...``, which is libpq's other form."""
    return re.sub(r"(?i)(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", rf"\1{_HIDDEN}", text)
