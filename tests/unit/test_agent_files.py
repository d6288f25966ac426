"""The agent's configuration, its journal, and the bundle of a container."""

import json
import stat
from pathlib import Path

import pytest

from agent.assignments import Known
from agent.config import load
from agent.errors import ConfigError
from agent.images import ImageConfig
from agent.tasks import machine
from agent.tasks.admission import refusal
from agent.tasks.bundles import Bundles, settings_of
from agent.tasks.folders import Folders, container_id, task_of
from agent.tasks.journal import Journal
from estiba.model import DesiredState, Resources
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from tests.support.faults import FakeImage

CONFIG = """
node_id = "node-1"
hostname = "n1"
members = ["10.77.0.11:7443"]
state_dir = "/var/lib/estiba"
launcher_socket = "/run/estiba/launcher.sock"
cgroup_parent = "/estiba"
address = "10.77.0.101"
metrics_listen = "10.77.0.101:7490"
[tls]
ca = "ca.pem"
cert = "n1.pem"
key = "n1-key.pem"
[registries."registry.estiba:5000"]
address = "10.77.0.3:5000"
ca = "ca.pem"
[capacity]
cpus = 1.5
"""


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = Folders(tmp_path)
    folders.make()
    return folders


# ----------------------------------------------------------------------------------------- config


def written(folder: Path, text: str) -> Path:
    (folder / "agent.toml").write_text(text)
    return folder / "agent.toml"


def test_a_configuration_is_read_with_its_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, CONFIG))

    assert config.members == ("10.77.0.11:7443",)
    assert config.registries["registry.estiba:5000"].ca == Path("ca.pem")
    assert config.capacity == Resources(nano_cpus=1_500_000_000)
    assert config.metrics_advertise == config.metrics_listen
    assert (config.log_level, config.nameservers) == ("info", ())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('hostname = "n1"', "", "hostname: is missing"),
        ('hostname = "n1"', "hostname = 7", "hostname: 7 is no text"),
        ('hostname = "n1"', 'hostname = "n1"\nhosts = 1', "hosts: is no key of this file"),
        ('["10.77.0.11:7443"]', "[]", "members: names no member"),
        ('["10.77.0.11:7443"]', "[7]", r"members: \[7\] is no list of texts"),
        ('key = "n1-key.pem"', "", "tls.key: is missing"),
        ("cpus = 1.5", "cpus = -1", "capacity.cpus: -1 is no number from 0"),
        ("cpus = 1.5", "cpu = 1", "capacity.cpu: is no key of this file"),
        ('hostname = "n1"', 'hostname = "n1"\nlog_level = "loud"', "log_level: 'loud' is none of"),
        ('hostname = "n1"', "hostname =", "agent.toml: Invalid value"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_key(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load(written(tmp_path, CONFIG.replace(old, new)))


def test_an_absent_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        load(tmp_path / "nowhere.toml")


def test_an_empty_configuration_names_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="node_id: is missing"):
        load(written(tmp_path, ""))


# ---------------------------------------------------------------------------------------- journal


def record(failures: int = 0) -> machine.Record:
    new = machine.new_record(last_run=2, last_seq=7, desired=DesiredState.RUNNING, now_s=5.0)
    return machine.Record(new.status, failures)


def test_a_record_comes_back_from_the_disk_as_it_was(folders: Folders) -> None:
    Journal(folders).save("web.1.1.1", record(failures=4))

    assert Journal(folders).load() == {"web.1.1.1": record(failures=4)}


def test_a_record_that_cannot_be_read_is_lost_and_the_others_are_not(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(folders)
    journal.save("good", record())
    (folders.journals / "bad.journal").write_bytes(b"not what was written" * 3)
    (folders.journals / "half.journal.tmp").write_bytes(b"{")

    assert set(journal.load()) == {"good"}
    assert "bad.journal is unreadable" in caplog.text
    assert not list(folders.journals.glob("*.tmp"))


def test_a_record_cut_short_leaves_the_one_before(folders: Folders) -> None:
    journal = Journal(folders)
    journal.save("web.1.1.1", record(failures=1))
    journal.save("web.1.1.1", record(failures=2))
    path = folders.journals / "web.1.1.1.journal"
    path.write_bytes(path.read_bytes()[:-1])

    assert journal.load()["web.1.1.1"].failures == 1


def test_a_journal_does_not_grow_without_end(folders: Folders) -> None:
    journal = Journal(folders)
    for failures in range(2000):
        journal.save("web.1.1.1", record(failures))

    assert journal.load()["web.1.1.1"].failures == 1999
    assert (folders.journals / "web.1.1.1.journal").stat().st_size < 70_000
    assert not list(folders.journals.glob("*.tmp"))


def test_assignments_never_accepted_are_not_known(folders: Folders) -> None:
    journal = Journal(folders)
    assert journal.load_assignments() is None

    journal.save_assignments(Known(epoch=3, revision=9).message())
    kept = journal.load_assignments()
    assert kept is not None
    assert (kept.epoch, kept.revision) == (3, 9)


def test_blocks_that_a_stopped_machine_never_wrote_are_no_records(folders: Folders) -> None:
    journal = Journal(folders)
    journal.save("web.1.1.1", record(failures=1))
    with (folders.journals / "web.1.1.1.journal").open("ab") as file:
        file.write(bytes(4096))
    (folders.journals / "zeros.journal").write_bytes(bytes(4096))
    (folders.journals / "empty.journal").write_bytes(b"")

    assert journal.load() == {"web.1.1.1": record(failures=1)}


@pytest.mark.parametrize("damage", ["other bytes", "cut short", "empty", "zeros"])
def test_assignments_that_are_not_whole_are_not_known(folders: Folders, damage: str) -> None:
    journal = Journal(folders)
    journal.save_assignments(Known(epoch=3, revision=9).message())
    whole = folders.assignments.read_bytes()
    damaged = {
        "other bytes": b"\xff\xff\xff",
        "cut short": whole[:-1],
        "empty": b"",
        "zeros": bytes(len(whole)),
    }
    folders.assignments.write_bytes(damaged[damage])
    assert journal.load_assignments() is None


def test_a_disk_that_refuses_stops_no_task(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    folders.journals.rmdir()

    Journal(folders).save("web.1.1.1", record())

    assert "the record of task web.1.1.1 is not on disk" in caplog.text


def test_a_container_is_named_after_task_and_run() -> None:
    assert task_of(container_id("web.1.1.1", 12)) == ("web.1.1.1", 12)
    assert task_of("something else") == ("something else", 0)


# ------------------------------------------------------------------------------------------ bundle


def assignment(**container: object) -> dispatch.Assignment:
    spec = v1.ContainerSpec(image="hello", **container)  # type: ignore[arg-type]
    return dispatch.Assignment(
        task_id="web.1.1.1", service_name="web", slot=1, template=v1.TaskTemplate(container=spec)
    )


IMAGE = FakeImage(
    config=ImageConfig(
        entrypoint=("/entry",),
        command=("serve", "--all"),
        env=("A=image", "B=image"),
        user="www",
        workdir="/srv",
        stop_signal="SIGQUIT",
    )
)


@pytest.mark.parametrize(
    ("service", "args"),
    [
        ({}, ("/entry", "serve", "--all")),
        ({"args": ["one"]}, ("/entry", "one")),
        ({"command": ["/other"]}, ("/other",)),
        ({"command": ["/other"], "args": ["one"]}, ("/other", "one")),
    ],
)
def test_command_and_arguments_replace_the_images_as_docker_does_it(
    folders: Folders, service: dict[str, list[str]], args: tuple[str, ...]
) -> None:
    settings = settings_of(
        assignment(**service), 1, IMAGE, folders=folders, bundle=folders.bundle("x")
    )
    assert settings.args == args


def test_the_service_has_the_last_word_over_the_image(folders: Folders) -> None:
    def made(task: dispatch.Assignment) -> tuple[tuple[str, ...], str, str, str]:
        settings = settings_of(task, 1, IMAGE, folders=folders, bundle=folders.bundle("x"))
        return settings.env, settings.cwd, settings.user, settings.hostname

    assert made(assignment()) == (("A=image", "B=image"), "/srv", "www", "web.1")
    own = assignment(env=["B=own"], workdir="/own", user="root", hostname="own")
    assert made(own) == (("A=image", "B=image", "B=own"), "/own", "root", "own")


def test_a_bundle_names_the_container_and_its_stop_signal(folders: Folders) -> None:
    bundles = Bundles(folders, nameservers=["10.0.2.3"])
    task = assignment()

    bundle = bundles.write(task, 1, IMAGE)
    bundles.write_hosts(task, 1, "10.10.1.2")

    config = json.loads((bundle / "config.json").read_text())
    assert config["hostname"] == "web.1"
    assert (bundle / "hosts").read_text().splitlines()[-1] == "10.10.1.2\tweb.1"
    assert bundles.stop_signal(task, 1) == 3
    bundles.delete(bundle.name)
    assert not bundle.exists()
    assert bundles.stop_signal(task, 1) == 15


# --------------------------------------------------------------------------------------- admission


CAPACITY = Resources(2_000_000_000, 4 << 30)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stop_signal": "SIGFOO"}, "there is no signal SIGFOO"),
        ({"env": ["NOVALUE"]}, "env 'NOVALUE' is not NAME=VALUE"),
    ],
)
def test_what_this_agent_cannot_do_is_refused(changed: dict[str, object], said: str) -> None:
    assert said in refusal(assignment(**changed), CAPACITY)


def test_more_than_the_node_has_is_refused() -> None:
    task = assignment()
    task.template.resources.reservations.memory_bytes = 8 << 30
    task.template.resources.reservations.nano_cpus = 3_000_000_000

    assert refusal(task, CAPACITY) == (
        "it reserves 8GiB of memory, and the node has 4GiB;"
        " it reserves 3 processors, and the node has 2"
    )


def test_limits_below_the_kernels_least_are_all_refused_at_once() -> None:
    task = assignment()
    task.template.resources.limits.memory_bytes = 1000
    task.template.resources.limits.nano_cpus = 1

    said = refusal(task, CAPACITY)
    assert "memory limit 1000 bytes is below" in said
    assert "cpu limit 1e-09 is below" in said


def test_a_task_that_fits_is_not_refused() -> None:
    assert refusal(assignment(stop_signal="INT", env=["A="]), CAPACITY) == ""


def test_the_state_folder_is_closed_to_others_whoever_made_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    Folders(state).make()
    assert {stat.S_IMODE(each.stat().st_mode) for each in (state, *state.iterdir())} == {0o700}
