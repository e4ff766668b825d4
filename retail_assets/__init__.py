"""Retail Assets: software-defined retail data, from raw files to tested marts."""
