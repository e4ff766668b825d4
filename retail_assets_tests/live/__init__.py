"""Tests of the real clients against servers that stand in for Google's; see .ci/servers."""
