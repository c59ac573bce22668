"""action.yml and docs/ci.md: they parse, and the steps do what a runner would make them do."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from segdeploy.workflows.run_config import load_run_config
from segdeploy.workflows.run_tables import Stage

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ci.md"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ACTION["runs"]["steps"]
    return found


def test_the_action_is_a_composite_one_by_githubs_rules() -> None:
    assert {"name", "description", "inputs", "outputs", "runs"} <= set(ACTION)
    assert ACTION["runs"]["using"] == "composite"
    for step in steps():
        assert ("run" in step) != ("uses" in step)
        assert "shell" in step or "uses" in step  # Composite steps have no default shell.
    for each in ACTION["inputs"].values():
        assert isinstance(each["default"], str)
        assert each["description"]
    ids = {step["id"] for step in steps() if "id" in step}
    for each in ACTION["outputs"].values():
        (used,) = re.findall(r"steps\.([\w-]+)\.outputs", each["value"])
        assert used in ids


def test_inputs_are_known_used_and_never_pasted_into_a_script() -> None:
    text = (ROOT / "action.yml").read_text()
    used = set(re.findall(r"inputs\.([\w-]+)", text))
    assert used == set(ACTION["inputs"])
    for step in steps():
        assert "${{" not in step.get("run", "")


def runner_environment(step: dict[str, Any], inputs: dict[str, str], place: Path) -> dict[str, str]:
    """What GitHub's runner would set for a step."""

    def replaced(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m[1]], text)

    given = {name: replaced(str(value)) for name, value in step.get("env", {}).items()}
    own = {
        "GITHUB_OUTPUT": str(place / "output"),
        "GITHUB_STEP_SUMMARY": str(place / "summary.md"),
        "GITHUB_ACTION_PATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **own, **given}


def run_step(
    place: Path, folder: Path, **changes: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run the step `run` as the runner does, and return its outputs."""
    inputs = {name: each["default"] for name, each in ACTION["inputs"].items()} | changes
    step = next(each for each in steps() if each.get("id") == "run")
    script = place / "step.sh"
    script.write_text(step["run"])
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=folder, env=runner_environment(step, inputs, place), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    written = (place / "output").read_text().splitlines()
    return done, dict(line.split("=", 1) for line in written)


def test_the_run_step_sets_its_outputs(place: Path, tmp_path: Path) -> None:
    done, outputs = run_step(tmp_path, place, args="--only export --out runs/x")
    assert done.returncode == 0, done.stderr
    assert outputs == {"verdict": "passed", "exit-code": "0", "junit": "segdeploy-junit.xml"}
    assert (place / "segdeploy-junit.xml").is_file()
    assert (place / "runs/x/tiny/onnx-fp32/manifest.json").is_file()
    assert "segdeploy run: passed" in (tmp_path / "summary.md").read_text()


def test_the_run_step_fails_with_the_commands_code(place: Path, tmp_path: Path) -> None:
    done, outputs = run_step(tmp_path, place, baseline="absent; touch hacked")
    assert done.returncode == 2
    assert (outputs["verdict"], outputs["exit-code"]) == ("error", "2")
    assert "absent; touch hacked" in done.stderr
    assert not (place / "hacked").exists()
    summary = (tmp_path / "summary.md").read_text()
    assert "## segdeploy run: error" in summary
    assert "    The baseline absent; touch hacked is neither a folder" in summary
    (annotation,) = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert annotation.startswith("::error title=segdeploy::The baseline absent; touch hacked is")
    assert annotation.endswith("or an artifact of one.")
    assert "%0A" in annotation


def test_a_run_that_was_done_keeps_its_own_summary(place: Path, tmp_path: Path) -> None:
    config = place / "segdeploy.toml"
    config.write_text(config.read_text().replace('["onnx-fp32"]', '["onnx-fp32", "tensorrt-fp32"]'))
    done, outputs = run_step(tmp_path, place, args="--only export")
    assert outputs["verdict"] == "error"
    assert "::error title=segdeploy::exit code 4; see the summary." in done.stdout
    assert (tmp_path / "summary.md").read_text().count("## ") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("""--only 'export,bench' --out "a  b" $HOME *""",
         ["--only", "export,bench", "--out", "a  b", "$HOME", "*"]),
        ("", []),
        ("  ", []),
        ("--only 'export", ["--only 'export"]),
    ],
)  # fmt: skip
def test_arguments_are_words_as_in_a_shell_and_nothing_is_expanded(
    tmp_path: Path, args: str, words: list[str]
) -> None:
    step = next(each for each in steps() if each.get("id") == "run")
    inputs = {name: each["default"] for name, each in ACTION["inputs"].items()} | {"args": args}
    stub = 'segdeploy() { printf "%s\\n" "$@" > words; echo "{}"; }\n'
    subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", stub + step["run"]],
        cwd=tmp_path, env=runner_environment(step, inputs, tmp_path), check=True,
    )  # fmt: skip
    ours = ["run", "segdeploy.toml", "--json", "--junit", "segdeploy-junit.xml"]
    assert (tmp_path / "words").read_text().splitlines() == ours + words


def test_the_run_step_tells_a_plan_and_a_junit_of_another_name(place: Path, tmp_path: Path) -> None:
    done, outputs = run_step(tmp_path, place, args="--dry-run")
    assert done.returncode == 0, done.stderr
    assert outputs == {"verdict": "planned", "exit-code": "0", "junit": ""}
    for args in ("--only export --junit=other.xml", "--junit other.xml --only export"):
        (place / "other.xml").unlink(missing_ok=True)
        _, outputs = run_step(tmp_path, place, args=args)
        assert (outputs["verdict"], outputs["junit"]) == ("passed", "other.xml")
        assert (place / "other.xml").is_file()


def test_the_run_step_shows_nothing_of_an_earlier_step(place: Path, tmp_path: Path) -> None:
    (place / "segdeploy-junit.xml").write_text("<testsuites/>")
    (place / "segdeploy-run.json").write_text('{"verdict": "passed"}')
    (place / "segdeploy.toml").write_text("[")
    done, outputs = run_step(tmp_path, place)
    assert done.returncode == 2
    assert outputs == {"verdict": "error", "exit-code": "2", "junit": ""}
    assert not (place / "segdeploy-junit.xml").exists()


@pytest.mark.parametrize(("is_strict", "code"), [("false", 0), ("true", 3)])
def test_an_inconclusive_gate_is_an_annotation_unless_asked_otherwise(
    tmp_path: Path, is_strict: str, code: int
) -> None:
    """The command's answer is given: what the step makes of exit code 3 is tested."""
    program = tmp_path / "bin" / "segdeploy"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho \'{"verdict": "inconclusive"}\'\nexit 3\n')
    program.chmod(0o755)
    python = shutil.which("python", path=str(Path(sys.executable).parent))
    assert python is not None
    (tmp_path / "bin" / "python").symlink_to(python)
    inputs = {name: each["default"] for name, each in ACTION["inputs"].items()}
    step = next(each for each in steps() if each.get("id") == "run")
    environment = runner_environment(
        step, {**inputs, "fail-on-inconclusive": is_strict}, tmp_path
    ) | {"PATH": f"{program.parent}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert ("::warning" in done.stdout) == (code == 0)
    assert "verdict=inconclusive" in (tmp_path / "output").read_text()


def test_the_install_step_names_this_package_with_its_extras() -> None:
    step = next(each for each in steps() if each.get("name") == "Install segdeploy")
    words = shlex.split(step["run"])
    assert words[-1] == "${GITHUB_ACTION_PATH}[${EXTRAS}]"
    done = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\n' \"$@\"; }}; {step['run']}"],
        env={"GITHUB_ACTION_PATH": "/action", "EXTRAS": "torch,cpu", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "/action[torch,cpu]"


def test_the_pages_workflow_gives_the_action_inputs_that_it_has() -> None:
    workflow = yaml.safe_load(blocks("yaml")[0])
    used = workflow["jobs"]["gate"]["steps"]
    ours = [step for step in used if step.get("uses", "").startswith("segdeploy/")]
    assert len(ours) == 2
    for step in ours:
        assert set(step["with"]) <= set(ACTION["inputs"])
    # The base of the pull request that brings the file has none.
    assert ours[0]["if"] == "hashFiles('base/segdeploy.toml') != ''"
    assert ours[0]["if"] in ours[1]["with"]["baseline"]
    history = yaml.safe_load(blocks("yaml")[2])["jobs"]["bench"]["steps"]
    (step,) = [step for step in history if step.get("uses", "").startswith("segdeploy/")]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert [step["with"]["path"] for step in history if "cache" in step.get("uses", "")] == [
        "bench.jsonl", "bench.jsonl",
    ]  # fmt: skip


def test_the_pages_gitlab_job_uses_flags_that_exist(cli: Any) -> None:
    job = yaml.safe_load(blocks("yaml")[1])["model"]
    lines = [line for line in job["script"] if "segdeploy run" in line]
    known = cli("run", "--help")[1]
    for line in lines:
        for flag in re.findall(r"--[\w-]+", line.partition("segdeploy run")[2]):
            assert flag in known
        subprocess.run(["bash", "-nc", line], check=True)
    assert job["allow_failure"] == {"exit_codes": [3]}
    assert job["artifacts"]["reports"]["junit"] in lines[-1]


@pytest.mark.parametrize("has_file", [False, True])
def test_the_pages_gitlab_job_gates_where_the_base_has_the_file(
    tmp_path: Path, has_file: bool
) -> None:
    job = yaml.safe_load(blocks("yaml")[1])["model"]
    start = job["script"].index("gate=")
    (tmp_path / "base").mkdir()
    if has_file:
        (tmp_path / "base" / "segdeploy.toml").touch()
    stub = f'segdeploy() {{ echo "$PWD $*" >> {tmp_path}/asked; }}'
    subprocess.run(
        ["bash", "-ec", "\n".join([stub, *job["script"][start:]])], cwd=tmp_path, check=True
    )
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 1 + has_file
    assert asked[0].startswith(f"{tmp_path}{'/base' if has_file else ''} run")
    assert ("--baseline runs/base" in asked[-1]) is has_file


def test_the_pages_worktree_is_made_anew_by_each_pipeline_of_a_runner(tmp_path: Path) -> None:
    job = yaml.safe_load(blocks("yaml")[1])["model"]
    (line,) = [line for line in job["script"] if "worktree" in line]
    own = {
        f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }

    def sh(command: str, **more: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, env={**os.environ, **own, **more},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    sh("git init --quiet && git commit --quiet --allow-empty --message one")
    for _ in range(2):
        commit = sh("git commit --quiet --allow-empty --message next && git rev-parse HEAD")
        sh(line, CI_MERGE_REQUEST_DIFF_BASE_SHA=commit)
        assert sh("git -C base rev-parse HEAD") == commit
        shutil.rmtree(tmp_path / "base")  # As the runner's `git clean -ffdx` does.


def test_the_pages_settings_are_valid_and_its_tree_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "segdeploy.toml").write_text(blocks("toml")[0])
    config = load_run_config(tmp_path / "segdeploy.toml", {"gate": {"baseline": "runs/base"}})
    assert config.stages_of(config.model[0]) == tuple(Stage)
    assert config.gate.limits.mean_iou == 0.5
    tree = PAGE.read_text()
    for name in ("segdeploy.toml", "test_latency.py", ".github/workflows/model.yml"):
        assert tree.count(name) >= 2


def test_the_pages_python_is_python() -> None:
    assert [ast.parse(block) for block in blocks("python")]


def test_the_json_of_a_refused_run_is_an_error_document(place: Path, cli: Any) -> None:
    (place / "segdeploy.toml").write_text("[run]\n")
    code, out, _ = cli("run", "--json")
    assert code == 2
    assert json.loads(out)["error"]["kind"] == "ConfigError"


@pytest.mark.slow
def test_the_pages_test_is_run_by_pytest(place: Path, cli: Any, make_model: Any) -> None:
    """The names are this run's, and a size is the limit: nothing is timed here."""
    assert cli("run", "--out", "runs/base", "--only", "export")[0] == 0
    (place / "model.onnx").write_bytes(make_model(extra=6).SerializeToString())
    assert cli("run", "--out", "runs/head", "--only", "export")[0] == 0
    text = blocks("python")[0].replace("street/onnx-int8+360x480", "tiny/onnx-fp32")
    for limit, code in (("1000%", 0), ("10%", 1)):
        changed = text.replace('"5%"', f'"off", limits={{"size": "{limit}"}}')
        (place / "test_latency.py").write_text(changed)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:segdeploy", "-p",
             "segdeploy.cli.pytest_plugin", "-p", "no:cacheprovider", "-W", "error"],
            cwd=place, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        assert "segdeploy gates" in done.stdout
    assert "regression: size" in done.stdout
