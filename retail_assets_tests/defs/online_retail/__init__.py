"""Tests of retail_assets.defs.online_retail."""
