"""The command line: help, verbs, flags, and how little it imports."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metarun import __version__, cli

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "wandb", "matplotlib", "scipy", "pandas", "numpy", "rich", "PIL", "joblib")
PROBE = """
import sys
from metarun.cli import main
code = main(sys.argv[1:])
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""


def run(
    *words: str, program: tuple[str, ...] = ("-c", PROBE), **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--hydra-help",),
        ("--version",),
        ("--cfg", "job"),
        ("--cfg", "all", "--resolve", "algo=imaml"),
        ("--info", "config"),
        ("--info",),
        ("--info", "algo=fomaml"),
        ("--info", "defaults"),
        ("--config-dir", "extra", "--help"),
        ("-sc", "install=bash"),
        ("-sc", "install=zsh"),
        ("-sc", "install=fish"),
        ("algo=mmal",),
        ("foo",),
    ],
    ids=" ".join,
)
def test_imports_nothing_heavy(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "extra" / "algo").mkdir(parents=True)
    (tmp_path / "extra" / "algo" / "mine.yaml").write_text("steps: 1\n")
    words = tuple(str(tmp_path / word) if word == "extra" else word for word in words)
    ended = run(*words)
    loaded = ended.stderr.rpartition("loaded:")[2].split()
    found = set(HEAVY) & set(loaded)
    # Hydra imports its own plugins, and theirs is joblib.
    assert found <= {"joblib", "numpy"} if "joblib" in found else not found
    assert ended.returncode == (2 if words[0] in ("algo=mmal", "foo") else 0), ended.stderr
    assert "metarun" in loaded
    if "extra" in str(words):
        assert "mine" in ended.stdout


def test_help_is_quick() -> None:
    times: list[float] = []
    for _ in range(5):
        begin = time.monotonic()
        assert run("--help", program=("-m", "metarun")).returncode == 0
        times.append(time.monotonic() - begin)
    assert min(times) < 0.5, times


def test_help_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) < 80
    for word in (*cli.VERBS, "-m", "--config-dir", "METARUN_OUTPUTS", "metarun -m "):
        assert word in text
    groups = [path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"]
    for group in groups:
        for option in group.glob("*.yaml"):
            assert option.stem in text, group


def test_help_is_hydras_too(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    ours = capsys.readouterr().out
    from metarun.paths import conf_dir
    from metarun.settings.compat import run_hydra

    with pytest.raises(SystemExit):
        run_hydra(lambda _: None, conf_dir(), "config", ["--help"])
    theirs = capsys.readouterr().out
    assert set(theirs.replace(":", "").split()) == set(ours.replace(":", "").split())


def test_help_wraps_long_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "algo").mkdir()
    for number in range(30):
        (tmp_path / "algo" / f"method_{number}.yaml").write_text("steps: 1\n")
    assert cli.main(["--help", "--config-dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "method_29" in text
    assert max(map(len, text.splitlines())) < 80


def test_help_examples_compose(capsys: pytest.CaptureFixture[str]) -> None:
    from metarun.settings.compose import compose, parse

    cli.main(["--help"])
    text = capsys.readouterr().out
    examples = [
        line.split()[1:]
        for line in text.partition("Examples\n")[2].splitlines()
        if line.startswith("  metarun ")
    ]
    assert len(examples) >= 4
    for words in examples:
        if "=" in words[0] or words[0].startswith("-"):
            compose(parse(words))
        else:
            assert words[0] in cli.VERBS


@pytest.mark.parametrize(
    ("word", "near"),
    [("compre", "compare"), ("resum", "resume"), ("help", "--help"), ("version", "--version")],
)
def test_unknown_verb(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word, "outputs"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"metarun: {word}: no such verb (did you mean {near}?); there are ")
    assert said.count("\n") == 1


def test_every_verb_exists() -> None:
    from importlib import import_module

    for place in cli.VERBS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("verb", cli.VERBS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_verb_says_what_it_takes(
    verb: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([verb, flag], [verb, "somewhere", flag]):
        assert cli.main(words) == 0
        usage, what = capsys.readouterr().out.splitlines()
        assert usage.startswith(f"usage: metarun {verb}")
        assert what.endswith(".")
        assert max(len(usage), len(what)) < 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("compare", "no folder given; usage: metarun compare DIR..."),
        ("sync", "no run given; usage: metarun sync RUN..."),
        ("sync nowhere", "nowhere: no such folder"),
        (
            "resume a b",
            "takes one folder, and settings stay as they are; usage: metarun resume DIR",
        ),
        ("sync project=", "project: empty; usage: metarun sync RUN..."),
        ("doctor now", "takes no words, and was given now"),
        ("verify -m algo=maml,anil", "without -m, --cfg, --info and the like; usage: metarun ver"),
        ("verify --cfg job", "verify: checks one set of settings, without -m"),
        ("verify outputs", "metarun: outputs: no setting; write it as key=value"),
    ],
)
def test_wrong_words_for_a_verb(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("metarun: ")
    assert said in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
@pytest.mark.parametrize("refusal", [PermissionError(13, "Permission denied", "/locked"), None])
def test_outputs_that_cannot_be_used_are_a_line(
    sweep: list[str],
    refusal: PermissionError | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METARUN_OUTPUTS", str(tmp_path / "file"))
    if refusal:

        def outcome(folder: Path) -> None:
            raise refusal

        monkeypatch.setattr("metarun.manifest.outcome", outcome)
    assert cli.main([*sweep, "dataset=sinusoid"]) == 5
    captured = capfd.readouterr()
    said = "/locked: Permission denied; open it to yourself" if refusal else f"{tmp_path}/file/"
    assert captured.err.startswith(f"metarun: {said}")
    assert refusal or "set METARUN_OUTPUTS to another folder" in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--package algo", "--package: goes with --cfg"),
        ("+hydra.sweeper.params.seed=1", "a setting below hydra. cannot be given here"),
        ("--hlep", "--hlep: no such flag (did you mean --help?)"),
        ("--algo maml", "--algo: no such flag; settings have no dashes, as in algo=maml"),
        ("steps=3", "steps: no such setting of its own; there is suggest.steps, validation.ste"),
        ("--cfg=jobs", "invalid choice: 'jobs'"),
        ("--config-dir=/nowhere", "/nowhere: no such folder"),
        ("--help --config-dir /nowhere", "/nowhere: no such folder"),
        ("--config-name=other", "holds no other.yaml to begin with"),
    ],
)
def test_wrong_flags(flag: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(flag.split()) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("-m",), ("-m", "launch=local")], ids=str)
def test_no_warnings(words: tuple[str, ...], outputs: Path) -> None:
    ended = run(
        *words, "dataset=sinusoid", "debug=default", program=("-W", "error", "-m", "metarun")
    )
    assert (ended.returncode, ended.stderr.count("Warning")) == (0, 0), ended.stderr


@pytest.mark.parametrize("more", [[], ["algo=maml"]], ids=str)
def test_version(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version", *more]) == 0
    assert capsys.readouterr().out == f"metarun {__version__}\n"


def test_module_and_main_are_the_same() -> None:
    module, main = (run("--cfg", "job", program=p) for p in (("-m", "metarun"), ("-c", PROBE)))
    assert (module.returncode, main.returncode) == (0, 0)
    assert module.stdout == main.stdout
    assert "algo:" in module.stdout


def test_flags_and_settings_mix(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["algo=fomaml", "--cfg", "job", "seed=3", "-p", "algo", "model=mlp"]) == 0
    assert "estimator: first_order" in capsys.readouterr().out


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m metarun --info all | true"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_mistake_has_its_exit_code_also_where_no_terminal_hears_it() -> None:
    screen, own = pty.openpty()
    os.close(screen)
    ended = subprocess.run([sys.executable, "-m", "metarun", "nope"], stderr=own, check=False)
    os.close(own)
    assert ended.returncode == 2
