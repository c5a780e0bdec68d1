"""GPUs that torch sees and cannot use, or cannot even see: one line, and never a silent CPU."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_config

from metarun import hardware as module
from metarun.config import check
from metarun.errors import ConfigError
from metarun.hardware import Hardware, hardware
from metarun.verbs import doctor

OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)"


def on(device: str) -> Hardware:
    settings: dict[str, Any] = {**check(tiny_config()).parts["hardware"].values, "device": device}
    return hardware(**settings)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return monkeypatch


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def no() -> bool:
        warnings.warn(f"{OLD}. Please update it.\nMore words.", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", no)
    module._warn.cache_clear()  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: all CUDA-capable devices are busy or unavailable",
    ],
)
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_gpu_that_cannot_compute_is_refused_in_a_line(
    said: str, device: str, one_gpu: pytest.MonkeyPatch
) -> None:
    def fails(device: torch.device) -> float:
        raise torch.AcceleratorError(f"{said}\nCompile with `TORCH_USE_CUDA_DSA` ...")

    one_gpu.setattr(module, "_compute_on", fails)
    with pytest.raises(
        ConfigError, match=rf"device: cuda cannot be used .*: {said}; use "
    ) as found:
        on(device)
    assert "\n" not in str(found.value)


def test_doctor_tries_each_gpu(one_gpu: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> float:
        raise torch.AcceleratorError("CUDA error: no kernel image is available")

    facts = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    one_gpu.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    for compute_on, state, said in (
        (lambda device: 2.0, "ok", "NVIDIA H100, 80 GiB"),
        (fails, "warn", "NVIDIA H100, 80 GiB; hardware.device: cuda:0 cannot be used by"),
    ):
        one_gpu.setattr(module, "_compute_on", compute_on)
        (row,) = (row for row in doctor.devices() if row.name == "cuda:0")
        assert row.state == state
        assert row.detail.startswith(said)


def test_a_gpu_that_is_full_is_a_matter_of_memory(one_gpu: pytest.MonkeyPatch) -> None:
    def full(device: torch.device) -> float:
        raise torch.AcceleratorError("CUDA error: out of memory")

    one_gpu.setattr(module, "_compute_on", full)
    with pytest.raises(torch.AcceleratorError, match="out of memory"):
        on("cuda")


@pytest.mark.usefixtures("old_driver")
def test_why_a_gpu_is_not_seen_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as raw:
        warnings.simplefilter("always")
        with pytest.raises(ConfigError, match=r"device: cuda .*sees no GPU \(CUDA init.*too old"):
            on("cuda")
        assert on("auto").device.type == "cpu"
        assert on("cpu").device.type == "cpu"
    told = capsys.readouterr().err
    assert OLD in told.replace("\n", " ")
    assert "running on the CPU" in told
    assert not raw, "the line is ours"
