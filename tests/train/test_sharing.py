"""Several processes: their number, their shares of the tasks, and the memory between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny, tiny_config

from metarun import hardware as hardware_module
from metarun.assemble import assemble
from metarun.config import check
from metarun.data.fetch import data_root
from metarun.engine.board import Board, memory
from metarun.engine.crew import share_of
from metarun.errors import ConfigError
from metarun.hardware import Hardware, hardware
from metarun.problem import Meta


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hardware.processes=5",), r"hardware\.processes: 5 is more than .*outer\.batch=4"),
        (("hardware.processes=0",), r"hardware\.processes: 0 is not allowed; .* at least 1"),
        (("algo=transfer", "hardware.processes=2"), r"hardware\.processes: 2 .*algo=transfer.*=1$"),
        (("hardware.compile=true", "hardware.processes=2"), r"processes: 2 .*compile=true.*=1$"),
    ],
)
def test_what_cannot_be_shared_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        assemble(check(tiny_config(*words)), data_root())


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(hardware_module, "_compute_on", lambda device: 2.0)
    settings = check(tiny_config("hardware.threads=null")).parts["hardware"].values

    def on(device: str, processes: int | None) -> Hardware:
        return hardware(**{**settings, "device": device, "processes": processes})

    assert [on("cuda", count).processes for count in (None, 1, 3)] == [4, 1, 3]
    assert [on(one, None).processes for one in ("cpu", "cuda:2")] == [1, 1]
    with pytest.raises(ConfigError, match=r"processes: 5 need a GPU each, and there are 4; "):
        on("cuda", 5)
    with pytest.raises(ConfigError, match=r"processes: 2 need .*device=cuda:1 is one; .*=cuda$"):
        on("cuda:1", 2)


def test_a_number_left_open_is_what_the_work_allows(capsys: pytest.CaptureFixture[str]) -> None:
    four = replace(tiny().hardware, processes=4, cores=8)
    asked: dict[str, Any] = {"processes": None, "threads": None}
    found = [four.sharing(asked, 32, None), four.sharing(asked, 3, None)]
    assert [(one.processes, one.cores) for one in found] == [(4, 2), (3, 2)]
    assert four.sharing({**asked, "threads": 8}, 32, None).cores == 8
    assert "8 in each of 4 processes, on" in capsys.readouterr().err
    alone = four.sharing(asked, 32, "its rows belong together")
    assert (alone.processes, alone.cores) == (1, 8)
    assert "hardware.processes: its rows belong together; running in one" in capsys.readouterr().err
    torch.set_num_threads(1)


def test_tasks_are_shared_out_evenly() -> None:
    for tasks in range(1, 40):
        for count in range(1, tasks + 1):
            shares = [share_of(number, count, tasks) for number in range(count)]
            assert [n for one in shares for n in range(tasks)[one]] == list(range(tasks))
            assert {one.stop - one.start for one in shares} <= {tasks // count, -(-tasks // count)}


def test_tensors_cross_as_they_are() -> None:
    """Of any type and number, none included; a layout that grows finds room."""
    with memory() as descriptor:
        here, there = Board(descriptor), Board(descriptor)
        small: Meta = {"nothing": {}, "a": {"empty": torch.zeros(2, 0), "one": torch.tensor(True)}}
        large: Meta = {
            "a": {"half": torch.randn(3).bfloat16(), "rows": torch.randn(300, 40).double().t()},
            "b": {"whole": torch.arange(7), "wide": torch.ones(1).expand(4, 4)},
        }
        for meta in (small, large, small):
            found = there.read(here.write(meta))
            assert found.keys() == meta.keys()
            for group, params in meta.items():
                assert found[group].keys() == params.keys()
                for name, value in params.items():
                    assert found[group][name].dtype == value.dtype
                    assert torch.equal(found[group][name], value)
