"""The cluster's own authority: what certificates say, who gets one, and where keys lie.

`issuing`, `requests` and `admission` decide, given the time and the keys; `files` reads and
writes.
"""
