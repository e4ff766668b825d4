"""Tests of retail_assets.defs.marts."""
