"""What is typed: data alone on standard output, files, completion, any member."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.dev import BIN, IMAGE, DevCluster
from tests.support.waiting import eventually


def declared(cluster: DevCluster, name: str) -> dict[str, Any]:
    (service,) = json.loads(cluster.estiba("service", "inspect", name))
    assert isinstance(service, dict)
    return service


def document(name: str, *, replicas: int = 1, env: str = "") -> str:
    container: dict[str, Any] = {"image": IMAGE, "env": [env] if env else []}
    spec = {"template": {"container": container}, "replicated": {"replicas": replicas}}
    return json.dumps({"metadata": {"name": name}, "spec": spec})


# ------------------------------------------------------------------------------------------- lists


def test_create_prints_the_id_alone_and_lists_agree_in_every_form(
    cluster: DevCluster, service: str
) -> None:
    said = cluster.run("service", "create", "--name", service, "--replicas", "2", IMAGE)
    assert said.code == 0
    service_id = said.out.strip()
    assert said.out == f"{service_id}\n"
    assert f"{service} 2/2" in said.err, "progress goes to standard error"

    (found,) = [s for s in cluster.json("service", "ls") if s["metadata"]["name"] == service]
    assert found["metadata"]["id"] == service_id
    assert service_id in cluster.estiba("service", "ls", "-q").split()
    assert found["status"]["converged"] is True
    tasks = cluster.json("service", "ps", service)
    assert [task["metadata"]["id"] for task in tasks] == cluster.estiba(
        "service", "ps", "-q", service
    ).split()
    nodes = cluster.json("node", "ls")
    assert [node["metadata"]["id"] for node in nodes] == cluster.estiba("node", "ls", "-q").split()
    assert cluster.estiba("dev", "status", "-q").split() == list(cluster.programs())
    (row,) = [line for line in cluster.estiba("service", "ls").splitlines() if service in line]
    assert row.split() == [service_id, service, "replicated", "2/2", IMAGE]


def test_what_containers_and_nodes_use_is_shown(cluster: DevCluster, service: str) -> None:
    cluster.create(
        service, "--limit-cpu", "0.3", replicas=1, command=["sh", "-c", "while :; do :; done"]
    )

    def used() -> dict[str, str]:
        usage: dict[str, str] = cluster.running(service)[0].get("usage", {})
        return usage if int(usage.get("nano_cpus", 0)) > 100_000_000 else {}

    usage = eventually(used, within_s=15, what="the use of a third of a processor is seen")
    assert int(usage["nano_cpus"]) < 600_000_000
    assert int(usage["memory_bytes"]) > 0
    titles, row = cluster.estiba("service", "ps", service).splitlines()
    processors, memory = row[titles.index("CPU") : titles.index("REASON")].split(maxsplit=1)
    assert 0.1 < float(processors) < 0.6
    assert memory.split()[1] in {"KiB", "MiB"}
    for node in cluster.json("node", "ls"):
        assert int(node["status"]["usage"]["memory_bytes"]) > 0
    assert "usage" not in json.loads(cluster.estiba("node", "inspect", "n1"))[0]["status"]


def test_who_stops_waiting_is_told_that_the_change_stays(cluster: DevCluster, service: str) -> None:
    words = ("service", "create", "--name", service, "--constraint", "node.hostname==n9", IMAGE)
    with subprocess.Popen(
        [str(BIN / "estiba"), *words],
        env=os.environ | {"ESTIBA_DIR": str(cluster.folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        eventually(
            lambda: service in cluster.estiba("service", "ls"), within_s=20, what="it is declared"
        )
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith(f"{service} 0/1")
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 130
    assert out == ""
    assert f"the change to {service} stays" in err
    assert "Traceback" not in err
    assert declared(cluster, service)["metadata"]["name"] == service


def test_a_nodes_certificate_does_not_declare_services(cluster: DevCluster, tmp_path: Path) -> None:
    pki = cluster.folder / "pki"
    for name, copied in (("ca.pem", "ca"), ("cert.pem", "n1")):
        (tmp_path / name).write_bytes((pki / f"{copied}.pem").read_bytes())
    said = cluster.run("--tls-dir", str(tmp_path), "service", "ls")
    assert said.code == 1
    assert said.out == ""
    assert "may not call estiba.v1.Control/ListServices" in said.err


# ------------------------------------------------------------------------------------------- files


def test_a_file_with_several_services_creates_then_changes_only_what_differs(
    cluster: DevCluster, service: str
) -> None:
    names = [f"{service}-a", f"{service}-b"]
    try:
        text = f"{document(names[0])}\n---\n{document(names[1])}\n"
        first = cluster.estiba("apply", "-f", "-", stdin=text)
        assert first.splitlines() == [f"{name} created" for name in names]
        assert [len(cluster.running(name)) for name in names] == [1, 1]

        assert cluster.estiba("apply", "-f", "-", stdin=text).splitlines() == [
            f"{name} unchanged" for name in names
        ]
        text = f"{document(names[0])}\n---\n{document(names[1], replicas=2, env='A=b')}\n"
        assert cluster.estiba("apply", "-f", "-", stdin=text).splitlines() == [
            f"{names[0]} unchanged",
            f"{names[1]} changed",
        ]
        assert len(cluster.running(names[1])) == 2
    finally:
        cluster.remove(*names)


def test_a_refused_service_of_a_file_is_named_and_what_was_stored_before_is_said(
    cluster: DevCluster, service: str
) -> None:
    text = f"{document(service)}\n---\n{document('faulty').replace(IMAGE, 'No Image')}\n"
    said = cluster.run("apply", "-f", "-", stdin=text)
    assert said.code == 1
    assert said.out == f"{service} created\n"
    assert "service faulty: spec.template.container.image" in said.err
    assert len(said.err.splitlines()) == 1


def test_a_file_based_on_an_old_version_is_refused_and_changes_nothing(
    cluster: DevCluster, service: str, tmp_path: Path
) -> None:
    cluster.create(service, replicas=1)
    file = tmp_path / "service.json"
    file.write_text(cluster.estiba("service", "inspect", service))
    assert cluster.estiba("apply", "-f", str(file)) == f"{service} unchanged\n"
    old = declared(cluster, service)["metadata"]["revision"]
    cluster.estiba("service", "scale", f"{service}=2")

    said = cluster.run("apply", "-f", str(file))

    assert said.code == 1
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert f"service {service} has changed since metadata.revision {old}" in said.err
    now = declared(cluster, service)
    assert now["spec"]["replicated"]["replicas"] == 2

    now["spec"]["replicated"]["replicas"] = 1
    assert cluster.estiba("apply", "-f", "-", stdin=json.dumps(now)) == f"{service} changed\n"
    assert len(cluster.running(service)) == 1


# -------------------------------------------------------------------------------------- completion


def completed(cluster: DevCluster, line: str, *, folder: Path | None = None) -> list[str]:
    """Ask as bash does after TAB at the end of a line."""
    done = subprocess.run(
        [str(BIN / "estiba")],
        env=os.environ
        | {
            "ESTIBA_DIR": str(folder or cluster.folder),
            "_ESTIBA_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return [word.partition(",")[2] for word in done.stdout.split()]


def test_commands_flags_services_and_nodes_are_completed(
    cluster: DevCluster, service: str, tmp_path: Path
) -> None:
    cluster.create(service, replicas=0)
    assert completed(cluster, "estiba serv") == ["service"]
    assert "--limit-memory" in completed(cluster, "estiba service create --limit")
    assert completed(cluster, f"estiba service ps {service[:12]}") == [service]
    assert sorted(completed(cluster, "estiba node inspect n")) == ["n1", "n2", "n3"]
    assert completed(cluster, "estiba node inspect n", folder=tmp_path) == []


# ---------------------------------------------------------------------------------------- members


def test_every_member_alone_serves_users_and_asks_the_nodes_of_the_other(
    cluster: DevCluster, service: str
) -> None:
    cluster.create(service, command=["sh", "-c", "echo hello from $HOSTNAME; exec sleep 1000"])
    served_by = {node["status"]["member_id"] for node in cluster.json("node", "ls")}
    assert served_by <= {"estibad-1", "estibad-2"}
    for server in cluster.described["servers"]:

        def lines(server: str = server) -> bool:
            said = cluster.run("--server", server, "service", "logs", service)
            assert said.code == 0
            assert said.err == "", "no node is out of this member's reach"
            return len(said.out.splitlines()) == 3

        eventually(lines, within_s=10, what=f"{server} has the words of all three nodes")
        said = cluster.run("--server", server, "service", "ps", "-o", "json", service)
        assert said.err == ""
        assert all("usage" in task for task in json.loads(said.out))


@pytest.mark.parametrize("dead", ["estibad-1", "estibad-2"])
def test_a_member_alone_has_all_nodes_and_their_logs_after_the_other_is_killed(
    cluster: DevCluster, service: str, dead: str
) -> None:
    cluster.create(service, command=["sh", "-c", "echo hello; exec sleep 1000"])
    cluster.estiba("dev", "stop", dead, "--kill")
    try:

        def lines() -> bool:
            said = cluster.run("service", "logs", service)
            return said.err.count("warning") == 0 and len(said.out.splitlines()) == 3

        eventually(lines, within_s=15, what="all three nodes answer through the other member")
        members = {node["status"]["member_id"] for node in cluster.json("node", "ls")}
        assert members == {"estibad-1", "estibad-2"} - {dead}
    finally:
        cluster.estiba("dev", "start", dead)
