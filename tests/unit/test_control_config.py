"""What estibad's configuration file may say, and how a fault is named."""

from pathlib import Path

import pytest

from controlplane import config
from estiba.kit.tables import TableError

FILE = """
member_id = "m1"
cluster_name = "dev"
listen = "0.0.0.0:7443"
advertise = "10.77.0.11:7443"
web_listen = "0.0.0.0:7480"
[tls]
ca = "ca.pem"
cert = "m1.pem"
key = "m1-key.pem"
[etcd]
endpoints = ["10.77.0.2:2379"]
ca = "etcd-ca.pem"
cert = "etcd-client.pem"
key = "etcd-client-key.pem"
"""


def load(folder: Path, text: str) -> config.Config:
    path = folder / "estibad.toml"
    path.write_text(text)
    return config.load(path)


def test_what_is_left_out_has_its_usual_value(tmp_path: Path) -> None:
    loaded = load(tmp_path, FILE)
    assert loaded.web_advertise == "0.0.0.0:7480"
    assert loaded.log_level == "info"
    assert loaded.down_after_s == 5.0
    assert str(loaded.network.cidr) == "10.10.0.0/16"
    assert loaded.etcd_tls.ca == Path("etcd-ca.pem")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('member_id = "m1"', "", "member_id: is missing"),
        ('member_id = "m1"', "member_id = 1", "member_id: 1 is no text"),
        ('member_id = "m1"', 'member_id = "m1"\ncolour = "red"', "colour: is no key of this file"),
        ('key = "m1-key.pem"', "", "tls.key: is missing"),
        ('key = "m1-key.pem"', 'key = "k"\nkeys = "k"', "tls.keys: is no key of this file"),
        ('["10.77.0.2:2379"]', "[]", "etcd.endpoints: names no endpoint"),
        ('["10.77.0.2:2379"]', '"10.77.0.2:2379"', "is no list of texts"),
        ("[tls]", '[network]\ncidr = "10.10.0.1/16"\n[tls]', "network.cidr: 10.10.0.1/16"),
        ("[tls]", "[network]\nblock_prefix = 8\n[tls]", "network.block_prefix: blocks of /8"),
        ("[tls]", "[network]\nvni = -1\n[tls]", "network.vni: -1 is no whole number"),
        ("[tls]", 'log_level = "loud"\n[tls]', "log_level: 'loud' is none of"),
        ("[tls]", '[authority]\ncert = "c"\n[tls]', "authority.key: is missing"),
        (
            "[tls]",
            'join_listen = "h:1"\njoin_advertise = "h:1"\n[tls]',
            "authority: is missing: who admits machines needs join_listen, join_advertise"
            " and [authority], and the file has join_listen, join_advertise",
        ),
        ("[tls]", '[authority]\ncert = "c"\nkey = "k"\n[tls]', "join_listen: is missing: who"),
        ("[tls]", "down_after_s = 1.5\n[tls]", "down_after_s: 1.5 is less than 3, and nodes give"),
        ("[tls]", "[tls", "estibad.toml: "),
    ],
)
def test_a_fault_is_named_with_its_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(TableError) as fault:
        load(tmp_path, FILE.replace(old, new, 1))
    assert words in str(fault.value)
    assert str(tmp_path) in str(fault.value)


def test_a_node_may_be_silent_for_longer_than_usual(tmp_path: Path) -> None:
    assert load(tmp_path, f"down_after_s = 30{FILE}").down_after_s == 30.0


def test_a_member_that_admits_machines_says_where_and_by_what_authority(tmp_path: Path) -> None:
    assert load(tmp_path, FILE).authority is None
    joining = """
join_listen = "0.0.0.0:7444"
join_advertise = "10.77.0.11:7444"
[authority]
cert = "ca.pem"
key = "ca-key.pem"
[tls]"""
    loaded = load(tmp_path, FILE.replace("[tls]", joining, 1))
    assert loaded.join_listen == "0.0.0.0:7444"
    assert loaded.join_advertise == "10.77.0.11:7444"
    assert loaded.authority == config.AuthorityFiles(Path("ca.pem"), Path("ca-key.pem"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"absent\.toml: No such file"):
        config.load(tmp_path / "absent.toml")
