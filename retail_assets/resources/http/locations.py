"""Where a file is: URLs and paths, told apart, and shown without their secrets.

Here: what a location may look like, and what of it may be shown. Not here: asking there
(download.py).
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from retail_assets.errors import PermanentError, TransientError

_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]+)://(?P<host>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?", re.I
)
_MISSPELT_URL = re.compile(r"https?:(?!//)", re.I)
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")


class DownloadError(Exception):
    """The file could not be had.

    The message names the file, what was expected, what was found and what to do.
    """


class PermanentDownloadError(DownloadError, PermanentError):
    """Asking again will not help: the location, the file, a limit or this machine must change."""


class TransientDownloadError(DownloadError, TransientError):
    """Still failing after the retries, but likely to pass: ask again later.

    `retry_after_s` is the wait in seconds the server asked for, when it asked for one.
    """

    retry_after_s: float | None = None


def is_url(location: str) -> bool:
    """Return whether the location is fetched by HTTP; all others are paths, `file://` included."""
    return location.lstrip().lower().startswith(("http://", "https://"))


def redact(location: str) -> str:
    """Return the location without user, password, query values and fragment; a path as it is.

    All query values go, as no list of secret parameter names is complete.
    """
    location = stripped(location)
    if _MISSPELT_URL.match(location):
        return location.partition(":")[0] + ":***"
    parts = _URL.match(location)
    if parts is None:
        return location
    host, query = parts["host"], parts["query"] or ""
    if "@" in host:
        host = "***@" + host.rpartition("@")[2]
    elif not _HOST_AND_PORT.fullmatch(host):
        # Invalid; an unquoted / ? or # in a password ends the host early, so trust none of it.
        return f"{parts['scheme']}://***"
    if len(query) > 1:
        pairs = (pair.partition("=") for pair in query[1:].split("&"))
        query = "?" + "&".join(f"{name}=***" if equals else "***" for name, equals, _ in pairs)
    return f"{parts['scheme']}://{host}{parts['path']}{query}"


def stripped(location: str) -> str:
    """Return a URL without the blanks around it; in a path they belong to the name."""
    bare = location.strip()
    return bare if _URL.match(bare) or _MISSPELT_URL.match(bare) else location


def local_path(location: str) -> Path:
    """Return the absolute path a location names; raises PermanentDownloadError if it names none."""
    if not location.strip() or "\0" in location:
        raise PermanentDownloadError(
            f"{location!r}: expected a path or an http(s) URL, found no usable text. "
            "Give one of the two."
        )
    if _MISSPELT_URL.match(location):
        raise PermanentDownloadError(
            f"{redact(location)}: expected two slashes after http: or https:, found otherwise. "
            "Correct the URL."
        )
    parts = _URL.match(location)
    if parts is not None and parts["scheme"].lower() != "file":
        raise PermanentDownloadError(
            f"{redact(location)}: expected http://, https://, file:// or a path, found the scheme "
            f"{parts['scheme']!r}. Download the file by other means and give its path."
        )
    if parts is not None:
        if parts["host"].lower() not in ("", "localhost"):
            raise PermanentDownloadError(
                f"{redact(location)}: expected file:///absolute/path, found a host name. "
                "Write three slashes, or mount the share and give its path."
            )
        location = unquote(location[parts.end("host") :])
    try:
        return Path(os.path.abspath(Path(location).expanduser()))
    except RuntimeError as error:  # ~nobody: no such home
        raise PermanentDownloadError(
            f"{location}: expected an existing home directory after ~, found none. "
            "Write the path in full."
        ) from error
