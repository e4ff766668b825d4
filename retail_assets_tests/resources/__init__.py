"""Tests of the outside systems' adapters.

Real servers and real files on this machine, no mocks.
"""
