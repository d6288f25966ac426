"""The config.json that the agent hands to the launcher."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.kernel import caps
from agent.runtime.bundle import read_bundle
from agent.runtime.errors import STAGES, ContainerError
from agent.runtime.limits import Limits
from agent.runtime.spec import (
    CAPABILITIES,
    Bind,
    ContainerSettings,
    LogSettings,
    build_spec,
    environment,
)

SETTINGS = ContainerSettings(
    args=("serve", "--port", "80"),
    layers=("/layers/a", "/layers/b"),
    hostname="web.1",
    env=("A=1",),
    cwd="/app",
    user="ana:crew",
    log=LogSettings("/logs/1.log", 1000, 2),
    limits=Limits(nano_cpus=500_000_000, memory_bytes=64 << 20, pids=50),
    binds=(Bind("/b/hosts", "/etc/hosts"), Bind("/b/secret", "/run/secret", read_only=True)),
    annotations={"org.example.note": "kept"},
)


def test_it_says_everything_that_was_decided() -> None:
    spec = build_spec(SETTINGS)
    assert spec["process"]["args"] == ["serve", "--port", "80"]
    assert spec["process"]["cwd"] == "/app"
    assert spec["process"]["noNewPrivileges"] is True
    assert spec["process"]["capabilities"]["bounding"] == list(CAPABILITIES)
    assert spec["hostname"] == "web.1"
    assert spec["linux"]["resources"] == {
        "memory": {"limit": 64 << 20, "swap": 64 << 20},
        "cpu": {"quota": 50_000, "period": 100_000},
        "pids": {"limit": 50},
    }
    assert spec["annotations"]["org.example.note"] == "kept"
    assert json.loads(spec["annotations"]["org.estiba.layers"]) == ["/layers/a", "/layers/b"]


def test_it_is_json_and_the_launcher_reads_back_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(build_spec(SETTINGS)))
    bundle = read_bundle(tmp_path)
    assert bundle.args == SETTINGS.args
    assert bundle.layers == SETTINGS.layers
    assert bundle.user == SETTINGS.user
    assert bundle.log == SETTINGS.log
    assert bundle.limits == SETTINGS.limits
    assert bundle.capabilities == caps.mask(CAPABILITIES)
    assert [mount.destination for mount in bundle.mounts[-2:]] == ["/etc/hosts", "/run/secret"]
    assert bundle.mounts[-1].options == ("rbind", "ro")


def test_without_limits_user_and_log_it_names_none(tmp_path: Path) -> None:
    plain = ContainerSettings(args=("true",), layers=("/l",), hostname="h")
    (tmp_path / "config.json").write_text(json.dumps(build_spec(plain)))
    bundle = read_bundle(tmp_path)
    assert (bundle.user, bundle.log, bundle.limits) == ("0:0", None, Limits())
    assert bundle.cwd == "/"


def test_variables_are_there_once_and_path_and_host_name_by_default() -> None:
    assert environment(["A=1", "B", "A=2=3"], hostname="h") == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=h",
        "A=2=3",
        "B=",
    ]
    assert environment(["PATH=/mine"], hostname="h")[0] == "PATH=/mine"


def _change(spec: dict[str, Any], path: str, value: Any) -> None:
    *folders, name = path.split("/")
    for folder in folders:
        spec = spec[folder]
    spec[name] = value


@pytest.mark.parametrize(
    ("path", "value", "stage", "words"),
    [
        ("process/args", [], "command", "there is no command to run"),
        ("process/args", [""], "command", "there is no command to run"),
        ("process/args", [7], "bundle", "7 is not a string"),
        ("process/args", ["a\0b"], "bundle", "holds a zero byte"),
        ("process/capabilities/bounding", ["CAP_FLY"], "bundle", "unknown capability CAP_FLY"),
        ("annotations/org.estiba.layers", "[]", "bundle", "the image has no layers"),
        ("annotations/org.estiba.layers", "[", "bundle", "config.json: "),
        ("linux/resources", {"memory": {"limit": 1}}, "limits", "memory limit 1 bytes is below"),
        ("linux/resources", {"cpu": {"quota": 5}}, "bundle", "lacks 'period'"),
        ("mounts", [{"type": "tmpfs"}], "bundle", "lacks 'destination'"),
    ],
)
def test_a_malformed_one_is_refused_with_its_stage(
    tmp_path: Path, path: str, value: Any, stage: str, words: str
) -> None:
    spec = build_spec(SETTINGS)
    if "/org.estiba" in path:
        spec["annotations"]["org.estiba.layers"] = value
    else:
        _change(spec, path, value)
    (tmp_path / "config.json").write_text(json.dumps(spec))
    with pytest.raises(ContainerError) as refused:
        read_bundle(tmp_path)
    assert refused.value.stage == stage
    assert stage in STAGES
    assert words in refused.value.message
