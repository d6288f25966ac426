"""Tables as people see them."""

import re

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.cli import render
from estiba.v1 import control_pb2, types_pb2

NOW_S = 1_000_000.0


def at(seconds_ago: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(int((NOW_S - seconds_ago) * 1e6))
    return stamp


def service(**status: int | str | bool) -> types_pb2.Service:
    made = types_pb2.Service(
        metadata=types_pb2.Metadata(id="s1", name="web"),
        template_generation=2,
        status=types_pb2.ServiceStatus(**status),  # type: ignore[arg-type]
    )
    made.spec.template.container.image = "nginx"
    made.spec.replicated.replicas = 3
    return made


def task(slot: int, *, generation: int = 2, attempt: int = 1, node: str = "n") -> types_pb2.Task:
    return types_pb2.Task(
        metadata=types_pb2.Metadata(id=f"s1.{slot}.{generation}.{attempt}", created_at=at(300)),
        service_id="s1",
        slot=slot,
        template_generation=generation,
        attempt=attempt,
        node_id=node,
        desired=types_pb2.DESIRED_STATE_RUNNING,
    )


def running(slot: int) -> types_pb2.Task:
    made = task(slot)
    made.status.state = types_pb2.TASK_STATE_RUNNING
    made.status.run = 1
    made.status.ready = True
    made.status.at.CopyFrom(at(1))
    made.status.started_at.CopyFrom(at(125))
    return made


def cells(line: str) -> list[str]:
    return re.split(r" {3,}", line)


def shown(*tasks: types_pb2.Task) -> list[str]:
    text = render.tasks(tasks, {"s1": service()}, {"n": "node-1"}, now_s=NOW_S)
    return text.splitlines()


def test_columns_are_aligned_and_no_line_ends_in_spaces() -> None:
    text = render.table(("A", "LONG TITLE", "C"), [("aaaa", "b", ""), ("a", "b\nc", "d")])
    assert text == "A      LONG TITLE   C\naaaa   b\na      b c          d\n"


def test_a_running_task_tells_since_when_and_what_it_uses() -> None:
    one = running(1)
    one.usage.CopyFrom(types_pb2.Usage(nano_cpus=250_000_000, memory_bytes=3 * 2**20))
    titles, line = shown(one)
    assert cells(titles)[:4] == ["ID", "NAME", "IMAGE", "NODE"]
    assert cells(line)[:4] == ["s1.1.2.1", "web.1", "nginx", "node-1"]
    assert cells(line)[4:] == ["running", "running 2 min", "0.25", "3 MiB"]


def test_a_pending_task_tells_why_it_has_no_node() -> None:
    one = task(1, node="")
    one.notes.add(message="no node yet")
    one.notes.add(message="no suitable node: 3 of 3 do not match node.labels.disk == ssd")
    (_, line) = shown(one)
    assert "pending 5 min" in line
    assert line.endswith("node.labels.disk == ssd")


def test_a_lost_task_is_lost_whatever_its_agent_last_said() -> None:
    one = running(1)
    one.lost_since.CopyFrom(at(30))
    one.notes.add(message="node n1 is down")
    (_, line) = shown(one)
    assert "lost 30 s ago" in line
    assert line.endswith("node n1 is down")


def test_a_restarted_task_tells_its_run_and_how_the_last_one_ended() -> None:
    one = running(1)
    one.status.run = 3
    one.status.health = types_pb2.HEALTH_UNHEALTHY
    one.status.last_run.CopyFrom(types_pb2.RunResult(run=2, message="out of memory"))
    (_, line) = shown(one)
    assert "running 2 min, unhealthy, run 3" in line
    assert line.endswith("run 2: out of memory")


def test_the_newest_task_of_a_slot_comes_first() -> None:
    ordered = render.in_order([task(2), task(1, generation=1), task(1, attempt=2), task(1)])
    assert [one.metadata.id for one in ordered] == ["s1.1.2.2", "s1.1.2.1", "s1.1.1.1", "s1.2.2.1"]


def test_a_task_of_an_older_template_shows_the_digest_of_its_image() -> None:
    one = task(1, generation=1)
    assert render.image(one, service()) == "-"
    one.status.image_digest = "sha256:0123456789abcdef0123"
    assert render.image(one, service()) == "sha256:0123456789ab"


def test_services_are_listed_by_name_with_how_many_run() -> None:
    text = render.services([service(running=2, desired=3)])
    assert text.splitlines()[1].split() == ["s1", "web", "replicated", "2/3", "nginx"]


def test_a_node_that_is_down_tells_why() -> None:
    node = types_pb2.Node(metadata=types_pb2.Metadata(id="a", name="n1"))
    node.status.state = types_pb2.NODE_STATE_DOWN
    node.status.message = "no heartbeat for 5 s"
    node.status.description.nano_cpus = 2 * 10**9
    node.status.description.memory_bytes = 2**34
    line = render.nodes([node]).splitlines()[1]
    assert "down: no heartbeat for 5 s" in line
    assert cells(line)[-2:] == ["- / 2", "- / 16 GiB"]


def test_progress_tells_the_reason_until_it_is_there() -> None:
    waiting = service(running=1, updated=1, message="node n2 lacks memory")
    assert render.progress(waiting) == "web 1/3: node n2 lacks memory"
    done = service(running=3, updated=3, converged=True)
    assert render.progress(done) == "web 3/3"
    rolling = service(running=3, updated=1)
    assert render.progress(rolling) == "web 3/3, 1 updated"


def test_task_lines_put_first_what_is_not_ready_and_count_the_rest() -> None:
    stuck = task(9)
    stuck.status.state = types_pb2.TASK_STATE_WAITING
    stuck.status.message = "image nginx not found"
    stuck.status.at.CopyFrom(at(4))
    lines = render.task_lines(
        service(), [*(running(slot) for slot in range(1, 6)), stuck], most=2, now_s=NOW_S
    )
    assert lines == [
        "  web.9  waiting 4 s  image nginx not found",
        "  web.1  running 2 min",
        "  and 4 more",
    ]


def test_the_cluster_names_its_leader() -> None:
    answer = control_pb2.GetClusterResponse(version="0.1.0", revision=7)
    answer.cluster.name = "dev"
    answer.members.add(id="m2", started_at=at(60))
    answer.members.add(id="m1", leader=True, started_at=at(60))
    lines = render.cluster(answer, now_s=NOW_S).splitlines()
    assert lines[-2].split()[:2] == ["m1", "leader"]
    assert lines[-1].split()[0] == "m2"


def test_no_word_of_a_container_or_node_is_obeyed_by_the_terminal() -> None:
    one = task(1)
    one.status.state = types_pb2.TASK_STATE_WAITING
    one.status.message = "\x1b[2J\x1b]0;all is well\x07\u202ebroken"
    one.status.health = 77  # type: ignore[assignment]
    found = [one]
    table = render.tasks(found, {}, {"n": "n1\x1b[0m"}, now_s=NOW_S)
    lines = render.task_lines(service(), found, most=5, now_s=NOW_S)
    progress = render.progress(service(message=one.status.message))
    for shown in (*table.splitlines(), *lines, progress):
        assert shown.isprintable()
    assert "health unknown" in table
    assert "?[2J?]0;all is well??broken" in progress


def test_a_token_shows_what_is_left_of_it_and_whom_it_admitted() -> None:
    made = types_pb2.JoinToken(
        metadata=types_pb2.Metadata(id="abcdefgh", created_at=at(7200), changed_by="user:admin"),
        expires_at=at(-86400),
        uses=3,
    )
    spent = types_pb2.JoinToken()
    spent.CopyFrom(made)
    spent.expires_at.CopyFrom(at(0))
    spent.admitted.extend(["n1", "n2"])

    lines = render.tokens([made, spent], now_s=NOW_S).splitlines()
    cells = [re.split(" {2,}", line) for line in lines]
    assert cells[1] == ["abcdefgh", "0/3", "in 24 h", "2 h ago", "user:admin", "-"]
    assert cells[2] == ["abcdefgh", "2/3", "expired", "2 h ago", "user:admin", "n1, n2"]
    assert render.offer(made) == "token abcdefgh admits 3 machines for 26 h; on each, as root:"


def test_the_command_that_joins_names_an_address_or_leaves_its_place() -> None:
    answer = control_pb2.CreateJoinTokenResponse(text="estiba-1-d-i-s")
    assert render.join_command(answer) == "estiba node join --token estiba-1-d-i-s HOST"
    answer.join_addresses.extend(["10.0.0.1:7444", "10.0.0.2:7444"])
    assert render.join_command(answer).endswith(" 10.0.0.1:7444")
