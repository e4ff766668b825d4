"""Tests of retail_assets.defs.coffee_chain."""
