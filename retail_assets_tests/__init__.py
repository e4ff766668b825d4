"""Tests of Retail Assets.

The folders mirror retail_assets: one test module a module.
"""
