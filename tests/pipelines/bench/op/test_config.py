"""Settings that the op's benchmark refuses, from each of its doors, before anything is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.bench.op.command import main
from pipelines.bench.op.config import OpBenchConfig
from sparse_detr.errors import ConfigError

WRONG: list[tuple[dict[str, Any], list[str], str]] = [
    ({"repeats": 0}, ["--repeats", "0"], "repeats: 0; give at least 1"),
    ({"threads": (1, 0)}, ["--threads", "1", "0"], "threads: 0; give at least 1"),
    ({"threads": ()}, ["--threads"], "threads: none named; give numbers"),
    ({"queries": ()}, ["--queries"], "queries: none named; choose of dense, sparse, decoder"),
    ({"types": ("float16",)}, ["--types", "float16"], "types: float16 with device cpu.*; give float32, bfloat16"),
    ({}, ["--json", "/no/such/folder/op.json"], "json: '/no/such/folder/op.json', but there is no folder /no/such/fol"),
    ({}, ["--json", "/"], "json: '/' is a folder or a device; give the name of a file"),
    ({}, ["--json", "/dev/null"], "json: '/dev/null' is a folder or a device; give the name of a file"),
]


@pytest.mark.parametrize(("fields", "arguments", "message"), WRONG)
def test_what_cannot_be_measured_is_refused_before(
    fields: dict[str, Any], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if fields:
        with pytest.raises(ConfigError, match=message):
            OpBenchConfig(**fields)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(shown.err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda"]) == 2
    assert "error: device: cuda, but torch" in capsys.readouterr().err


ABSENT = {"tyro", "rich", "ray", "mlflow", "pyarrow", "boto3", "scipy", "pycocotools", "PIL", "matplotlib", "cattrs",
          "safetensors", "transformers", "jinja2", "optuna", "sqlalchemy"}  # fmt: skip
UNKNOWN = [
    (["--queries", "all"], "queries: 'all' is not known; choose of dense, sparse, decoder"),
    (["--types", "float64"], "types: 'float64' is not known; choose of float32, bfloat16, float16"),
    (["--device", "gpu"], "device: 'gpu' is not known; choose one of cpu, cuda"),
    (["--instruction-set", "sse"], "instruction_set: 'sse' is not known; choose one of base, avx2, avx512"),
]


def test_unknown_words_are_refused_with_those_that_are_known() -> None:
    # In a process of its own: where tests run, the check of types is quicker.
    code = "import sys; from pipelines.bench.op.command import main\n"
    code += f"for words in {[words for words, _ in UNKNOWN]}: assert main(words) == 2"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [f"error: {message}" for _, message in UNKNOWN]


def test_it_runs_where_there_is_torch_alone(tmp_path: Path) -> None:
    """No package of ours but jaxtyping and numpy beside torch: the rest cannot be imported here."""
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(ABSENT)!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from pipelines.bench.op.command import main
sys.exit(main(["--repeats", "1", "--queries", "decoder", "--threads", "1", "--types", "float32",
               "--json", {str(tmp_path / "op.json")!r}]))
"""
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "decoder" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["op.json"]


def test_as_a_module_it_shows_a_user_error_without_a_traceback() -> None:
    command = (sys.executable, "-m", "pipelines.bench.op", "--repeats", "0")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: repeats: 0; give at least 1\n")


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--queries", "all"], ["--json", "/no/folder/op.json"]])
def test_the_command_takes_the_config_and_refuses_the_same(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli.main import main as cli

    try:
        code = cli(["bench", "op", *arguments])
    except SystemExit as error:
        code = int(str(error.code))
    shown = capsys.readouterr()
    assert code == 2
    assert not shown.out
    assert arguments[0][2:] in shown.err
