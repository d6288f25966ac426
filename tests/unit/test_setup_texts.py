"""The configuration files that Estiba writes say to its programs what was meant."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import config as agent_config
from controlplane import config as estibad_config
from controlplane.cli.setup import places, texts
from controlplane.loops.settings import NetworkSettings
from estiba.kit.tls import TlsFiles
from estiba.model import Resources

TLS = TlsFiles(Path("/etc/ca.pem"), Path("/pki/both.pem"), Path("/pki/both.pem"))
OTHER_TLS = TlsFiles(Path("/etcd/ca.pem"), Path("/etcd/client.pem"), Path("/etcd/client.pem"))
ESTIBAD = texts.Estibad(
    member_id="cp1",
    cluster_name="default",
    listen="0.0.0.0:7443",
    advertise="192.0.2.10:7443",
    web_listen="0.0.0.0:7480",
    web_advertise="192.0.2.10:7480",
    tls=TLS,
    authority=texts.Authority(
        Path("/pki/ca.pem"), Path("/pki/ca-key.pem"), "0.0.0.0:7444", "192.0.2.10:7444"
    ),
    etcd_endpoints=("127.0.0.1:2379",),
    etcd_tls=OTHER_TLS,
)
AGENT = texts.Agent(
    node_id="0123456789abcdef",
    hostname="n1",
    members=("192.0.2.10:7443", "192.0.2.11:7443"),
    state_dir=Path("/var/lib/estiba/agent"),
    launcher_socket=Path("/run/estiba/launcher.sock"),
    cgroup_parent=places.CGROUP_PARENT,
    address="192.0.2.21",
    metrics_listen="0.0.0.0:7490",
    metrics_advertise="192.0.2.21:7490",
    nameservers=("192.0.2.1",),
    tls=TLS,
    registries=(texts.Registry("registry.example:5000", "192.0.2.5:5000", Path("/r/ca.pem")),),
)


def written(folder: Path, text: str) -> Path:
    path = folder / "file.toml"
    path.write_text(text)
    return path


def test_estibad_reads_what_was_meant(tmp_path: Path) -> None:
    config = estibad_config.load(written(tmp_path, texts.estibad_toml(ESTIBAD)))
    assert (config.member_id, config.cluster_name) == ("cp1", "default")
    assert (config.listen, config.advertise) == ("0.0.0.0:7443", "192.0.2.10:7443")
    assert (config.web_listen, config.web_advertise) == ("0.0.0.0:7480", "192.0.2.10:7480")
    assert (config.join_listen, config.join_advertise) == ("0.0.0.0:7444", "192.0.2.10:7444")
    assert config.authority is not None
    assert (config.authority.cert, config.authority.key) == (
        Path("/pki/ca.pem"),
        Path("/pki/ca-key.pem"),
    )
    assert (config.tls, config.etcd_tls) == (TLS, OTHER_TLS)
    assert config.etcd_endpoints == ("127.0.0.1:2379",)
    assert config.network == NetworkSettings()


def test_a_member_without_the_authority_has_no_listener_for_joining(tmp_path: Path) -> None:
    wanted = replace(ESTIBAD, authority=None)
    config = estibad_config.load(written(tmp_path, texts.estibad_toml(wanted)))
    assert (config.join_listen, config.authority) == ("", None)


def test_an_agent_reads_what_was_meant(tmp_path: Path) -> None:
    config = agent_config.load(written(tmp_path, texts.agent_toml(AGENT)))
    assert (config.node_id, config.hostname) == (AGENT.node_id, "n1")
    assert config.members == AGENT.members
    assert (config.state_dir, config.launcher_socket) == (AGENT.state_dir, AGENT.launcher_socket)
    assert (config.cgroup_parent, config.address) == (AGENT.cgroup_parent, "192.0.2.21")
    assert (config.metrics_listen, config.metrics_advertise) == (
        "0.0.0.0:7490",
        "192.0.2.21:7490",
    )
    assert config.nameservers == ("192.0.2.1",)
    assert config.tls == TLS
    assert config.capacity == Resources(0, 0)
    registry = config.registries["registry.example:5000"]
    assert (registry.address, registry.ca) == ("192.0.2.5:5000", Path("/r/ca.pem"))


def test_what_an_agents_file_offers_in_comments_is_read_when_they_are_taken_away(
    tmp_path: Path,
) -> None:
    text = texts.agent_toml(replace(AGENT, registries=()))
    # Sentences begin with a capital letter and end with a full stop; what is offered does neither.
    offered = re.sub(r"^# (?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert offered != text
    config = agent_config.load(written(tmp_path, offered))
    assert config.capacity == Resources(2_000_000_000, 4 << 30)
    assert config.registries["registry.example:5000"].address == "192.0.2.10:5000"


@pytest.mark.parametrize("text", [texts.estibad_toml(ESTIBAD), texts.agent_toml(AGENT)])
def test_every_key_is_explained_and_no_line_is_too_long_for_a_terminal(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 100
    blocks = text.split("\n\n")
    assert [block for block in blocks if "=" in block and "# " not in block] == [
        block for block in blocks if block.startswith(("[etcd]", "[registries"))
    ]


def test_how_a_cluster_is_reached_is_told_in_the_form_that_the_local_one_has() -> None:
    told = json.loads(texts.cluster_json(name="default", servers=["192.0.2.10:7443"], tls=TLS))
    assert told == {
        "name": "default",
        "servers": ["192.0.2.10:7443"],
        "tls": {"ca": "/etc/ca.pem", "cert": "/pki/both.pem", "key": "/pki/both.pem"},
    }


@given(st.text())
def test_whatever_a_text_holds_is_read_as_it_was(text: str) -> None:
    assert tomllib.loads(f"key = {texts.quoted(text)}") == {"key": text}


@pytest.mark.parametrize(
    ("resolv_conf", "expected"),
    [
        ("nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch x\n", ("192.0.2.1", "192.0.2.2")),
        ("# nameserver 192.0.2.9\nnameserver 127.0.0.53\nnameserver ::1\n", ()),
        ("nameserver\nnameserver nonsense\nnameserver 2001:db8::1\n", ()),
        ("", ()),
    ],
)
def test_containers_ask_name_servers_that_they_can_reach(
    resolv_conf: str, expected: tuple[str, ...]
) -> None:
    assert texts.nameservers(resolv_conf) == expected
