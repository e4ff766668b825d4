"""Files behind URLs and paths.

By file: locations (URLs and paths, their secrets), retries (asking again), part (a file on its
way), download (asking and fetching). Not here: what the bytes mean (tabular/), where they are kept
(lake/).
"""

from retail_assets.resources.http.download import Fingerprint, fetch, probe
from retail_assets.resources.http.locations import DownloadError, is_url, redact

__all__ = ["DownloadError", "Fingerprint", "fetch", "is_url", "probe", "redact"]
