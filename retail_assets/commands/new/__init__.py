"""``retail-assets new``: a domain made of a person's own file.

By file: proposing (what the file says of its columns), rendering (the domain's files as text),
making (asking, writing, telling what to do next). Not here: how its data then arrive (feeds/).
"""
