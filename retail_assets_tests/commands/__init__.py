"""Tests of retail_assets.commands."""
