"""One room an outside system, its embedded and its production form side by side.

Nothing here knows of the domains.
"""
