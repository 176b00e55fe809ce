"""What is missing on a machine is said in three lines, before anything is built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.source import ROOT

TOOLS = ("bash", "sh", "dirname", "sed", "cat", "grep", "git", "mkdir", "uname", "timeout", "tail", "tr")
ANSWERS = "echo 20.10"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH of its own with what any machine has, and no engine."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (directory / tool).symlink_to(found)
    return directory


def put(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(script: str, programs: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # By its interpreter, so that no `env bash` has to be found; scripts that widen PATH find nothing there.
    argv = ["bash", str(ROOT / "bench" / "compose" / script), *arguments]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WEFT_", "DOCKER_"))}
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**kept, "PATH": str(programs), **environment}
    )


def the_three_lines(said: str) -> list[str]:
    """Of the last error, their beginnings checked."""
    lines = said.strip().splitlines()[-3:]
    assert [line.split(":")[0].strip() for line in lines] == ["prepare", "why", "try"], said
    return lines


def test_without_docker_the_package_is_named(programs: Path) -> None:
    done = run("prepare", programs)
    assert done.returncode == 1
    assert done.stdout == ""
    error, _, advice = the_three_lines(done.stderr)
    assert "no docker" in error
    assert "docker.io" in advice


def test_an_engine_that_does_not_answer_is_quoted(programs: Path) -> None:
    put(programs, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    error, why, advice = the_three_lines(run("prepare", programs).stderr)
    assert "does not answer" in error
    assert "Cannot connect to the Docker daemon" in why
    assert "dockerd" in advice


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="no /dev/net/tun")
def test_without_registry_and_bootstrap_the_package_is_named(programs: Path) -> None:
    put(programs, "docker", f'[ "$1" = info ] && {{ {ANSWERS}; exit 0; }}; exit 1')
    done = run("prepare", programs)
    error, _, advice = the_three_lines(done.stderr)
    assert "mmdebstrap" in error
    assert "mmdebstrap" in advice
    assert done.returncode == 1


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="no /dev/net/tun")
def test_a_base_that_is_named_is_taken_and_nothing_is_made(programs: Path) -> None:
    put(programs, "docker", ANSWERS)
    done = run("prepare", programs, WEFT_BASE="mine:1")
    assert (done.returncode, done.stdout) == (0, "WEFT_BASE=mine:1 WEFT_RUST=mine:1\n")


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="no /dev/net/tun")
def test_with_a_registry_the_published_images_are_taken(programs: Path) -> None:
    put(programs, "docker", f'[ "$*" = "image inspect weft-base:bookworm" ] && exit 1; {ANSWERS}')
    put(programs, "rm", "exit 0")  # no wheel of this checkout is touched
    done = run("prepare", programs)
    assert done.stdout == "WEFT_BASE=python:3.13-slim WEFT_RUST=rust:1-slim-bookworm\n"


def test_every_script_is_one() -> None:
    folder = ROOT / "bench" / "compose"
    for name in ("prepare", "up", "install", "common", "kernel-node", "interop-check"):
        done = subprocess.run(["bash", "-n", str(folder / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
