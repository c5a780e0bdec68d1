"""`metarun compare` from the outside: what it prints, its exit codes, what it needs."""

import subprocess
import sys

import pytest

from metarun.compare import main


def test_main_prints_the_table_and_the_files(make_run, tmp_path, capsys):
    runs = [make_run("sweep/m"), make_run("sweep/t", "transfer")]
    assert main([str(runs[0]), str(runs[1]), "reference=maml"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Over maml" in out
    assert out.endswith(
        "".join(f"{tmp_path}/sweep/comparison.{x}\n" for x in ("html", "md", "json"))
    )
    assert max(map(len, out.splitlines()[:-3])) <= 80
    assert (tmp_path / "sweep/comparison.html").exists()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["gone"], 2, "gone: no such folder"),
        (["{runs}", "refrence=maml"], 2, "refrence: no such setting (did you mean reference?)"),
        (["{runs}", "reference="], 2, "reference: empty"),
        (["{runs}", "reference=mam"], 2, "did you mean maml?"),
        (["reference=maml"], 2, "no folder given"),
        (["{empty}"], 3, "no run in there"),
        (["{runs}", "out={file}/x"], 5, "out=DIR"),
    ],
)
def test_main_gives_one_line_and_the_code(make_run, tmp_path, capsys, argv, code, says):
    make_run("runs/m")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    paths = {name: str(tmp_path / name) for name in ("runs", "empty", "file")}
    assert main([word.format(**paths) for word in argv]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("metarun: ")
    assert err.count("\n") == 1
    assert says in err


def test_a_folder_whose_name_has_an_equals_sign_is_a_folder(make_run, capsys):
    assert main([str(make_run("algo=maml,seed=0"))]) == 0


def test_all_that_lies_in_a_folder_can_be_given_again_and_again(make_run, tmp_path, capsys):
    make_run("outputs/m")
    make_run("outputs/t", "transfer")
    for _ in range(2):
        words = [str(path) for path in sorted((tmp_path / "outputs").iterdir())]
        assert main(words) == 0
    assert any("comparison" in word for word in words)
    (tmp_path / "outputs" / "comparison").mkdir()
    assert main([str(tmp_path / "outputs" / "comparison")]) == 3, "a folder is one, however called"
    assert main([str(tmp_path / "outputs" / "m" / "outcome.json")]) == 2
    assert "outcome.json: no such folder" in capsys.readouterr().err


def test_it_works_where_only_ascii_can_be_printed_and_imports_no_torch(sweep, tmp_path):
    code = (
        "import sys; from metarun.compare import main; assert main(sys.argv[1:]) == 0;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'wandb', 'matplotlib.pyplot')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sweep), f"out={tmp_path}"],
        env={"PATH": "/usr/bin", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"67.3 +-0.9 %" in done.stdout
    assert done.stdout.isascii()
    assert "± 0.9" in (tmp_path / "comparison.md").read_text("utf-8")


def test_importing_the_rooms_is_cheap():
    code = (
        "import sys; import metarun.console;"
        "sys.exit(any(m in sys.modules for m in ('numpy', 'torch', 'scipy', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
