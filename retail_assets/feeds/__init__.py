"""How data arrive, once for all domains: what is new, what is asked for, checks, the landing.

Not here: any domain's columns or rows (defs/<domain>/), outside systems (resources/).
"""
