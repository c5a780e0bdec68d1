"""How the kernels come to be: built once, loaded only where nobody else can have put them."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.kernels import build

X86 = "processor : {}\nmodel name : A\nflags : fpu avx2\ncpu MHz : {}\n\n"
ARM = "processor : {}\nMHz : {}\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : {}\n\n"


def test_processors_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On ARM too; the clock, and how many cores there are, make no other processor."""
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "cpuinfo")

    def of(text: str, machine: str) -> str:
        build.CPUINFO.write_text(text)
        monkeypatch.setattr("platform.machine", lambda: machine)
        return build.processor()

    x86 = of(X86.format(0, 2000), "x86_64")
    assert of(X86.format(0, 2000) + X86.format(1, 1800), "x86_64") == x86
    arm = [of(ARM.format(0, 50, part), "aarch64") for part in ("0xd0c", "0xd40")]
    arm += [of(ARM.format(0, 50, "0xd40").replace("asimd", "asimd sve"), "aarch64")]
    slow = "".join(ARM.format(core, 50, "0xd0c") for core in range(8))
    arm += [of(slow + ARM.format(8, 50, "0xd40"), "aarch64")]
    assert len({x86, *arm, of("", "aarch64"), of("", "riscv64")}) == 7
    build.CPUINFO.unlink()
    assert build.processor()
