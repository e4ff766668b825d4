"""Questions to a running Dagster webserver, by its GraphQL API.

Here: asking, and what to do where nothing answers. Not here: any question.
"""

from typing import Any

from retail_assets.errors import PermanentError

_TIMEOUT_S = 30.0


class WebserverError(PermanentError):
    """The webserver does not answer, or refuses what it is asked; the message says what to do."""


def ask(url: str, query: str, *, timeout_s: float = _TIMEOUT_S, **variables: Any) -> dict[str, Any]:
    """The data that the webserver of ``url`` answers to a GraphQL query.

    Raises:
        WebserverError: no Dagster answers there, or the query is refused.
    """
    import httpx

    body = {"query": query, "variables": variables}
    try:
        answer = httpx.post(f"{url.rstrip('/')}/graphql", json=body, timeout=timeout_s)
        found = answer.json()
        data = found.get("data")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
        raise WebserverError(
            f"{url}: expected Dagster's webserver, found no answer of it"
            f" ({' '.join(str(error).split()) or type(error).__name__}). Start it"
            " (retail-assets dev), or give the address of the one that runs: --url"
        ) from None
    if not data:
        told = "; ".join(str(error.get("message")) for error in found.get("errors", ()))
        raise WebserverError(f"{url} refused the question: {told or answer.reason_phrase}")
    return dict(data)
