"""Products on top of `serve` and `web`.

`create_app` mounts those it is given; none imports another.
"""
