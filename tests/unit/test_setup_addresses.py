"""Under which address other machines reach this one: what is chosen, and what must be said."""

import json
import re

import pytest

from controlplane.cli.errors import CliError
from controlplane.cli.setup.addresses import OUR_LINKS, Local, choose, parse

ONE, TWO, MORE = (
    Local("192.0.2.1", "eth0"),
    Local("198.51.100.7", "eth1"),
    Local("10.9.0.1", "eth1"),
)


def link(name: str, *addresses: str, scope: str = "global", group: str = "default") -> object:
    entries = [{"family": "inet", "local": each, "scope": scope} for each in addresses]
    return {"ifname": name, "group": group, "addr_info": entries}


def test_addresses_that_others_may_reach_are_read() -> None:
    shown = [
        link("lo", "127.0.0.1", scope="host"),
        link("eth0", "192.0.2.1"),
        link("eth1", "198.51.100.7", "10.9.0.1"),
        link("br4097", "10.10.1.1", group=str(OUR_LINKS)),
        link("br4098", "10.11.1.1", group=hex(OUR_LINKS)),
        {"ifname": "eth2", "group": "default"},
    ]
    assert parse(json.dumps(shown)) == [ONE, TWO, MORE]
    assert parse("") == []


@pytest.mark.parametrize(
    ("found", "said", "chosen"),
    [
        ([ONE], "", "192.0.2.1"),
        ([ONE, TWO], "eth1", "198.51.100.7"),
        ([ONE, TWO], "192.0.2.1", "192.0.2.1"),
        # Behind an address translation the machine itself does not have it.
        ([ONE], "203.0.113.5", "203.0.113.5"),
        ([], "127.0.0.1", "127.0.0.1"),
    ],
)
def test_what_is_clear_or_was_said_is_chosen(found: list[Local], said: str, chosen: str) -> None:
    assert choose(found, said) == chosen


@pytest.mark.parametrize(
    ("found", "said", "sentence"),
    [
        (
            [ONE, TWO],
            "",
            "this machine has several addresses: .*192.0.2.1 on eth0, 198.51.100.7 on",
        ),
        (
            [ONE, TWO, MORE],
            "eth1",
            "eth1 has several addresses: .*198.51.100.7 on eth1, 10.9.0.1 on",
        ),
        ([], "", "this machine has no IPv4 address that others reach: say one by --advertise-addr"),
        ([ONE], "eth9", "--advertise-addr eth9 is neither .*; this machine has 192.0.2.1 on eth0"),
        ([], "2001:db8::1", "--advertise-addr 2001:db8::1 is neither an IPv4 address nor a link"),
        ([ONE], "0.0.0.0", "--advertise-addr 0.0.0.0 is no address of one machine"),
        ([ONE], "224.0.0.1", "--advertise-addr 224.0.0.1 is no address of one machine"),
    ],
)
def test_what_is_not_clear_is_asked_for(found: list[Local], said: str, sentence: str) -> None:
    with pytest.raises(CliError) as asked:
        choose(found, said)
    assert re.match(sentence, str(asked.value))
