"""The redirecting program, as the kernel's verifier takes it and as it is refused."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from support.namespace import Namespace, exit_status_as_nobody, needs_namespaces

from overlay.errors import DeviceError
from tunnel import bpf, netlink

# struct bpf_insn, as tools/bpf's assembler would print them: r1 = 7; r2 = r3 = r4 = 0; call 152; exit
GOLDEN = bytes.fromhex(
    "b701000007000000b702000000000000b703000000000000b70400000000000085000000980000009500000000000000"
)
Test = TypeVar("Test", bound=Callable[..., object])


def for_real(test: Test) -> Test:
    """A test that asks the kernel."""
    marked: Test = needs_namespaces(pytest.mark.timeout(30)(pytest.mark.root(test)))
    return marked


@pytest.fixture
def host() -> Iterator[Namespace]:
    namespace = Namespace()
    with namespace:
        yield namespace
    namespace.close()


@for_real
def test_the_kernel_takes_the_program_for_a_tc_program_of_six_instructions() -> None:
    descriptor = bpf.load_redirect(1)
    try:
        told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        assert re.search(r"prog_type:\s+3\n", told)
        assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    finally:
        os.close(descriptor)


@for_real
def test_a_filter_holds_the_program_when_its_descriptor_is_closed(host: Namespace) -> None:
    host.run("ip link add wa0 type veth peer name wb0")
    descriptor = bpf.load_redirect(1)
    netlink.redirect("wa0", "wb0", program=descriptor)
    os.close(descriptor)
    shown = host.run("tc filter show dev wa0 ingress")
    assert "direct-action" in shown
    assert "not_in_hw" in shown


@for_real
def test_without_the_right_loading_says_what_it_needs() -> None:
    def load() -> int:
        try:
            bpf.load_redirect(1)
        except DeviceError as error:
            return error.errno if "CAP_BPF" in error.why else 0
        return 0

    assert exit_status_as_nobody(load) == errno.EPERM


def test_the_instructions_are_those_of_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[bytes] = []

    class Libc:
        @staticmethod
        def syscall(number: int, command: int, attributes: ctypes.Array[ctypes.c_char], length: int) -> int:
            kind, count, program, licence = struct.unpack_from("=IIQQ", attributes)
            assert (command, length) == (5, len(attributes))
            assert (kind, count, number) == (3, 6, bpf.SYSTEM_CALL[platform.machine()])
            handed.append(ctypes.string_at(program, 8 * count))
            assert ctypes.string_at(licence) == b"Apache-2.0"
            return 77

    monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_options: Libc)
    assert bpf.load_redirect(7) == 77
    assert handed == [GOLDEN]


def test_where_the_system_calls_number_is_not_known_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(DeviceError) as caught:
        bpf.load_redirect(1)
    assert caught.value.errno == errno.ENOSYS
    assert "pdp11" in caught.value.why
