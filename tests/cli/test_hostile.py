"""Configurations that want more than to configure: refused in one line, without a side effect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarun import cli
from metarun.errors import ConfigError
from metarun.settings import yamlfile

ROOT = Path(__file__).parents[2]
CANARY = "touched"
BASE = "_target_: metarun.algorithms.maml.maml\ninner_lr: 0.1\nsteps: 1\nestimator: recompute\n"
TARGETS = {
    "os.system": f"_target_: os.system\ncommand: touch {CANARY}\n",
    "builtins.eval": "_target_: builtins.eval\nsource: __import__('os').mkdir('touched')\n",
    "subprocess": f"_target_: subprocess.run\nargs: [touch, {CANARY}]\n",
    "alias": "_target_: metarun.algorithms.maml.annotations\n",
    "through-ours": "_target_: metarun.data.fetch.os.mkdir\npath: touched\n",
    "reexported": "_target_: metarun.algorithms.base.NamedTuple\n",
    "prefix": "_target_: metarun.algorithmsevil.maml\n",
    "relative": "_target_: ..os.system\n",
    "nested": BASE + "more:\n  _target_: os.mkdir\n  path: touched\n",
    "in-a-list": BASE + "more:\n  - _target_: os.mkdir\n    path: touched\n",
    "interpolated": "_target_: ${algo.a}.${algo.b}\na: os\nb: mkdir\npath: touched\n",
    "other-group": "_target_: metarun.data.sinusoid.sinusoid\ntest_grid: true\n",
    "not-text": "_target_: [os, mkdir]\n",
    "python-object": "x: !!python/object/apply:os.mkdir [touched]\n",
    "python-name": "x: !!python/name:os.system\n",
    "callback": "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n"
    "      path: touched\n",
    "launcher": "# @package _global_\nhydra:\n  launcher:\n    _target_: os.mkdir\n",
}
LOGGING = (
    "# @package _global_\nhydra:\n  job_logging:\n    version: 1\n    root: {handlers: [x]}\n"
    "    handlers:\n      x:\n        (): os.mkdir\n        path: touched\n"
)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)
MEASURED = """
import re, sys, time
from metarun.cli import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print(code, re.search(r"VmHWM:\\s+(\\d+)", status)[1], time.process_time())
"""
FILES = {
    "bomb": BOMB,
    "large": "x: " + "y" * 5_000_000,
    "deep": "x: " + "[" * 90_000,
    "binary": "\x00\x01\x02",
}


@pytest.fixture
def place(tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extra" / "algo").mkdir(parents=True)
    return tmp_path


def refused(place: Path, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line; assert that nothing else happened."""
    code = cli.main(["--config-dir", "extra", "dataset=sinusoid", "debug=default", *words])
    captured = capfd.readouterr()
    assert (code, captured.out, captured.err.count("\n")) == (2, "", 1), captured
    assert sorted(path.name for path in place.iterdir()) == ["extra"]
    return captured.err


@pytest.mark.parametrize("name", [n for n in TARGETS if n != "launcher"])
def test_targets(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "extra" / "algo" / "hostile.yaml").write_text(TARGETS[name])
    refused(place, capfd, "algo=hostile")


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_loggers_are_never_built(
    sweep: list[str], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "extra" / "algo" / "hostile.yaml").write_text(LOGGING)
    words = [*sweep, "--config-dir", "extra", "dataset=sinusoid", "algo=hostile", "debug=default"]
    for more in ([], ["--help"], ["--cfg", "job"]):
        cli.main([*words, *more])
        assert not (place / CANARY).exists()


def test_launcher_is_a_launcher(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "extra" / "experiment").mkdir()
    (place / "extra" / "experiment" / "hostile.yaml").write_text(TARGETS["launcher"])
    assert "os.mkdir" in refused(place, capfd, "-m", "algo=maml", "experiment=hostile")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("more", [(), ("--cfg", "job"), ("--info", "config")], ids=str)
def test_files_are_bounded(name: str, more: tuple[str, ...], place: Path) -> None:
    (place / "extra" / "algo" / "hostile.yaml").write_text(FILES[name])
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, "--config-dir", "extra", "algo=hostile", *more],
        capture_output=True,
        text=True,
        timeout=20,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    code, kilobytes, seconds = ended.stdout.split()
    assert (code, ended.stderr.count("\n")) == ("2", 1), ended.stderr
    assert "hostile.yaml" in ended.stderr
    assert int(kilobytes) < 200 << 10
    assert float(seconds) < 2


@pytest.mark.parametrize(
    "word",
    ["name=../up", "name=/abs", "name=.hidden", "name='a b'", "algo=../x", "model=/etc/passwd"],
)
def test_names_stay_inside(word: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert word.partition("=")[0] in refused(place, capfd, word)


@pytest.mark.parametrize("word", ["algo=../x", "algo=/etc/passwd", "model=../model/mlp"])
def test_an_option_is_a_name_even_where_a_file_is_there(
    word: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "must be the name of an option" in refused(place, capfd, word)


def test_no_pickle_is_read(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "extra" / "config.pickle").write_bytes(b"cos\nmkdir\n(S'touched'\ntR.")
    refused(place, capfd, "--experimental-rerun", "extra/config.pickle")


def test_allowing_is_left_to_the_environment(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "extra" / "algo" / "hostile.yaml").write_text(BASE.replace("maml.maml", "x.y"))
    said = refused(place, capfd, "algo=hostile")
    assert "metarun.algorithms.x.y cannot be imported" in said
    (place / "extra" / "algo" / "hostile.yaml").write_text("_target_: tests_own.maker\n")
    assert "tests_own.maker" in refused(place, capfd, "algo=hostile")
    monkeypatch.setenv("METARUN_ALLOW", " tests_own.:other")
    assert "cannot be imported" in refused(place, capfd, "algo=hostile")


def test_a_run_folder_is_read_as_data(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in (TARGETS["python-object"], BOMB, "[1]", "\t", "x: " + "y" * 2_000_000):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            yamlfile.read(path)
    path.write_text(BASE)
    assert yamlfile.read(path)["steps"] == 1
