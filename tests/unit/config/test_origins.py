"""In which line of the file does a value stand?"""

from __future__ import annotations

from agent.config import origins

TEXT = '''# a comment = 1
[listen]
http = [
  "127.0.0.1:1",   # hosts = 7
]
control = "/c"
[[sources]]
kind = "file"
path = "/a"
[[sources]]
kind = "https"
url = """https://x/
path = 3"""
[environment]
variables.A = "1"
'''


def test_each_value_has_the_line_in_which_it_begins() -> None:
    """Entries of a list are counted; what looks like a key within an array, a text or a comment is none."""
    assert dict(origins.lines(TEXT)) == {
        "listen": 2,
        "listen.http": 3,
        "listen.control": 6,
        "sources[0]": 7,
        "sources[0].kind": 8,
        "sources[0].path": 9,
        "sources[1]": 10,
        "sources[1].kind": 11,
        "sources[1].url": 12,
        "environment": 14,
        "environment.variables.A": 15,
    }
