"""Limits as the kernel's files say them, and those that it would refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runtime.limits import (
    CPU_PERIOD_US,
    MIN_MEMORY_BYTES,
    NO_LIMITS,
    Limits,
    Setting,
    cpu_quota_us,
    faults,
    nano_cpus,
    version_1,
    version_2,
)

ALL = Limits(nano_cpus=1_500_000_000, memory_bytes=64 << 20, pids=100)


def test_version_1_renders_every_limit() -> None:
    assert version_1(ALL) == [
        Setting("cpu", "cpu.cfs_period_us", "100000"),
        Setting("cpu", "cpu.cfs_quota_us", "150000"),
        Setting("memory", "memory.limit_in_bytes", "67108864"),
        Setting("memory", "memory.memsw.limit_in_bytes", "67108864", optional=True),
        Setting("pids", "pids.max", "100"),
    ]


def test_version_2_renders_every_limit() -> None:
    assert version_2(ALL) == [
        Setting("cpu", "cpu.max", "150000 100000"),
        Setting("memory", "memory.max", "67108864"),
        Setting("memory", "memory.swap.max", "0", optional=True),
        Setting("pids", "pids.max", "100"),
    ]


def test_no_limit_writes_nothing() -> None:
    assert version_1(NO_LIMITS) == version_2(NO_LIMITS) == []
    assert faults(NO_LIMITS) == []


def test_all_faults_are_found_at_once_each_with_its_reason() -> None:
    assert faults(Limits(nano_cpus=9_999_999, memory_bytes=MIN_MEMORY_BYTES - 1, pids=-1)) == [
        "pids limit -1 is negative",
        "cpu limit 0.01 is below 0.01: the kernel grants no less than 1000 us in each 100000 us",
        "memory limit 4194303 bytes is below 4194304 bytes (4 MiB):"
        " the kernel would kill the container before its first instruction",
    ]


@pytest.mark.parametrize(
    "limits", [Limits(nano_cpus=10_000_000), Limits(memory_bytes=MIN_MEMORY_BYTES), Limits(pids=1)]
)
def test_the_smallest_limits_are_accepted(limits: Limits) -> None:
    assert faults(limits) == []


def test_a_quota_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cpu limit 0.001 is below 0.01"):
        cpu_quota_us(1_000_000)


@given(st.integers(10_000_000, 512_000_000_000))
def test_a_quota_read_back_renders_the_same_again(wanted: int) -> None:
    quota_us = cpu_quota_us(wanted)
    again = nano_cpus(quota_us, CPU_PERIOD_US)
    assert again <= wanted
    assert cpu_quota_us(again) == quota_us


@given(
    st.builds(
        Limits,
        nano_cpus=st.integers(-5, 10**10),
        memory_bytes=st.integers(-5, 10**10),
        pids=st.integers(-5, 10**6),
    )
)
def test_limits_without_a_fault_can_always_be_rendered(limits: Limits) -> None:
    if not faults(limits):
        for setting in (*version_1(limits), *version_2(limits)):
            assert all(int(word) >= 0 for word in setting.value.split())
