"""Who USER[:GROUP] is, by the text of an image's account files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runtime.users import Identity, UserError, resolve_user

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
ana:x:1000:1001:Ana:/home/ana:/bin/sh
nohome:x:1002:1002::
# a comment
large:x:4294967296:0::/:
broken:x:one:two::/
again:x:1000:9:another name of 1000:/else:/bin/sh
"""
GROUP = "root:x:0:\nstaff:x:50:ana,root\ncrew:x:60:ana\nana:x:1001:ana\nbad:x:y:ana\n"


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("", Identity(0, 0, (50,), "/root")),
        ("root", Identity(0, 0, (50,), "/root")),
        ("0:0", Identity(0, 0, (), "/root")),
        ("ana", Identity(1000, 1001, (50, 60), "/home/ana")),
        ("ana:", Identity(1000, 1001, (50, 60), "/home/ana")),
        ("ana:crew", Identity(1000, 60, (), "/home/ana")),
        ("ana:7", Identity(1000, 7, (), "/home/ana")),
        ("1000", Identity(1000, 1001, (50, 60), "/home/ana")),
        ("nohome", Identity(1002, 1002, (), "/")),
        ("again", Identity(1000, 9, (), "/else")),
        ("4711", Identity(4711, 0, (), "/")),
        ("4711:crew", Identity(4711, 60, (), "/")),
        (":crew", Identity(0, 60, (), "/root")),
    ],
)
def test_names_and_numbers_are_looked_up(user: str, identity: Identity) -> None:
    assert resolve_user(user, PASSWD, GROUP) == identity


@pytest.mark.parametrize(
    ("user", "sentence"),
    [
        ("nobody2", "user nobody2 is not in the image's /etc/passwd"),
        ("broken", "user broken is not in the image's /etc/passwd"),
        ("large", "user large is not in the image's /etc/passwd"),
        ("ana:none", "group none is not in the image's /etc/group"),
        ("ana:bad", "group bad is not in the image's /etc/group"),
        ("2147483648", "user 2147483648 is above 2147483647"),
        ("0:99999999999", "group 99999999999 is above 2147483647"),
        ("-1", "user -1 is not in the image's /etc/passwd"),
    ],
)
def test_what_is_not_listed_is_named(user: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve_user(user, PASSWD, GROUP)
    assert str(refused.value) == sentence


def test_an_image_without_accounts_has_root_and_numbers() -> None:
    assert resolve_user("root", "", "") == Identity(0, 0, (), "/")
    assert resolve_user("root:root", "", "") == Identity(0, 0, (), "/")
    assert resolve_user("12:34", "", "") == Identity(12, 34, (), "/")


@given(st.text(), st.text(), st.text())
def test_no_text_of_an_image_breaks_it(user: str, passwd: str, group: str) -> None:
    try:
        identity = resolve_user(user, passwd, group)
    except UserError:
        return
    assert identity.uid >= 0
    assert identity.gid >= 0
