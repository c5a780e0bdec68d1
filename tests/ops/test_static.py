"""Nothing in the package can be talked into running code from a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import metarun

PACKAGE = Path(metarun.__file__).parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "os.system", "os.popen"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "subprocess.getoutput"),
}
FLAGS = {("shell", True), ("allow_pickle", True), ("weights_only", False)}
ALLOWED = {
    ("launch", "joblib"),  # starts processes on this machine; nothing is read from a file
    ("yamlfile", "yaml.load"),  # with a safe loader, see below
}


def dangers(source: str) -> Iterator[str]:
    """Yield every construct that could execute what it reads."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (n.name for n in names if n.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                yield module
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{n.name}" for n in names if f"{module}.{n.name}" in METHODS)
            case ast.Call(func=func, keywords=keywords):
                name = ast.unparse(func)
                if name in CALLS | METHODS:
                    yield name
                for keyword in keywords:
                    value = getattr(keyword.value, "value", None)
                    if (keyword.arg, value) in FLAGS:
                        yield f"{keyword.arg}={value}"


def test_the_package_holds_no_such_construct():
    found = {
        (path.stem, danger)
        for path in PACKAGE.rglob("*.py")
        for danger in dangers(path.read_text(encoding="utf-8"))
    }
    assert found - ALLOWED == set()


def test_the_yaml_loader_is_a_safe_one():
    from metarun.settings import yamlfile

    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", yamlfile.Loader)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import torch\ntorch.load('a')",
        "from torch import load",
        "eval('1')",
        "exec('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import numpy\nnumpy.load('a', allow_pickle=True)",
        "import yaml\nyaml.load('a')",
        "import os\nos.system('ls')",
    ],
)
def test_each_of_them_would_be_found(source):
    assert list(dangers(source))
