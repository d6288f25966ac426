"""A machine joins the local cluster, on its fabric; a port of the host leads there too."""

import json
import os
import ssl
import subprocess
from pathlib import Path

from estiba.kit.tls import Role, identity_of
from tests.support.dev import BIN, DevCluster, Said


def join(cluster: DevCluster, root: Path, *words: str, token: str) -> Said:
    """Type `estiba node join` where a member is, in a folder in place of /."""
    root.mkdir()
    pid = cluster.pid("estibad-2")
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", BIN / "estiba", "node", "join", *words],
        env=os.environ | {"ESTIBA_ROOT": str(root), "ESTIBA_JOIN_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def hostnames(cluster: DevCluster) -> set[str]:
    return {each["metadata"]["name"] for each in cluster.json("node", "ls")}


def test_a_machine_joins_any_member_and_one_token_admits_as_many_as_it_says(
    cluster: DevCluster, tmp_path: Path
) -> None:
    token = cluster.estiba("cluster", "token", "create", "-q", "--uses", "2").strip()
    before = hostnames(cluster)
    for number, member in (("1", "10.77.0.11"), ("2", "10.77.0.12")):
        words = ("--hostname", f"joined-{number}", member)
        said = join(cluster, tmp_path / number, *words, token=token)
        assert said.code == 0, said.err
        toml = (tmp_path / number / "etc/estiba/agent.toml").read_text()
        assert 'members = ["10.77.0.11:7443", "10.77.0.12:7443"]' in toml
        # The address that leads to the member, as the fabric sees it.
        assert 'address = "10.77.0.12"' in toml
    assert hostnames(cluster) == before | {"joined-1", "joined-2"}

    said = join(cluster, tmp_path / "3", "--hostname", "joined-3", "10.77.0.11", token=token)

    assert said.code == 1
    assert "the token has admitted the 2 nodes that it was for" in said.err
    cluster.estiba("node", "rm", "joined-1", "joined-2")
    assert hostnames(cluster) == before


def test_the_port_of_the_host_leads_to_a_member(cluster: DevCluster, tmp_path: Path) -> None:
    shown = cluster.estiba("cluster", "token", "create", "-o", "json")
    addresses = json.loads(shown)["join_addresses"]
    assert len(addresses) == 2
    for address in addresses:
        host, port = address.split(":")
        shown_there = ssl.get_server_certificate((host, int(port)))
        assert identity_of(shown_there.encode()).role is Role.MEMBER
