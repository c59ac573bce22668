"""`segdeploy run` as a CI job: a slow change is caught, a documentation change passes.

    .venv/bin/python benchmarks/ci_trial.py [--docs 50] [--slow 5] [--budget 20s] [--threads 1]

A real git repository holds `model.onnx` (LRASPP trained on CamVid, at 224x224) and segdeploy.toml.
Each job clones it, checks out the base and a head commit side by side, and runs the shell of
`action.yml`'s step for both, as `docs/ci.md` does. Heads are changes of README.md, one commit each,
and one in which the graph has convolutions by the identity added: same answers, more work. The base
commit's run is made once, as a CI cache would keep it; the gate runs both sides in every job.

Run it on an idle machine; about half a minute a job. Resumable: jobs that are done are kept in
`--work`. Writes benchmarks/results/ci_trial.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from onnx import helper, numpy_helper

from segdeploy.core.files import write_json
from segdeploy.core.folder import load_checkpoint
from segdeploy.measure.environment import describe_environment

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "lraspp_mobilenet_v3_large-camvid"
ACTION = HERE.parent / "action.yml"
PLANTED = 1.12  # The least slowdown that is planted; the limit is 5 %.
SETTINGS = """[run]
out = "runs/head"

[[model]]
name = "street"
checkpoint = "model.onnx"
targets = ["onnx-fp32"]
onnx = {{ classes = {classes}, scale = {scale}, mean = {mean}, std = {std} }}

[bench]
threads = {threads}
seconds = 0.5
warmup = 0.2

[gate]
latency = "5%"
budget = "{budget}"
"""


def git(place: Path, *arguments: str) -> str:
    own = ["-c", "user.name=trial", "-c", "user.email=trial@localhost", "-c", "gc.auto=0"]
    done = subprocess.run(
        ["git", *own, *arguments],  # noqa: S607  the user's own
        cwd=place, check=True, capture_output=True, text=True
    )  # fmt: skip
    return done.stdout.strip()


def make_repository(work: Path, *, num_docs: int, budget: str, threads: int) -> dict[str, Any]:
    """Make the repository with its branches, or find it; return what was planted."""
    place, facts = work / "repository", work / "facts.json"
    if facts.is_file():
        found: dict[str, Any] = json.loads(facts.read_text())
        return found
    shutil.rmtree(work, ignore_errors=True)
    place.mkdir(parents=True)
    model = export_model(work)
    spec = load_checkpoint(CHECKPOINT).manifest
    git(place, "init", "--quiet", "--initial-branch=main")
    onnx.save(model, place / "model.onnx")
    (place / "README.md").write_text("# Street model\n")
    (place / "segdeploy.toml").write_text(
        SETTINGS.format(
            classes=json.dumps(list(spec.classes)),
            scale=spec.preprocess.scale,
            mean=json.dumps(spec.preprocess.mean),
            std=json.dumps(spec.preprocess.std),
            threads=threads,
            budget=budget,
        )
    )
    commit(place, "The base")
    slow, num_added, ratio = add_work(model)
    git(place, "checkout", "--quiet", "-b", "slow")
    onnx.save(slow, place / "model.onnx")
    commit(place, "A graph with more work")
    git(place, "checkout", "--quiet", "-b", "docs", "main")
    for index in range(num_docs):
        with (place / "README.md").open("a") as stream:
            stream.write(f"\nParagraph {index}.\n")
        commit(place, f"Documentation {index}")
    planted = {"ratio": ratio, "num_convolutions": num_added, "budget": budget, "threads": threads}
    write_json(facts, planted)
    return planted


def commit(place: Path, message: str) -> None:
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--no-gpg-sign", "--message", message)


def export_model(work: Path) -> onnx.ModelProto:
    out = work / "export"
    command = ["export", str(CHECKPOINT), "--target", "onnx-fp32", "--size", "224x224"]
    segdeploy = Path(sys.executable).with_name("segdeploy")
    subprocess.run([segdeploy, *command, "--no-verify", "--out", str(out)], check=True)
    model: onnx.ModelProto = onnx.load(next(out.glob("onnx-fp32*/model.onnx")))
    return model


def add_work(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int, float]:
    """Return the graph with convolutions by the identity on its input: at least PLANTED times."""
    for number in range(2, 64, 2):
        slow = with_convolutions(model, number)
        ratio = ratio_of(model, slow)
        if ratio >= PLANTED:
            return slow, number, ratio
    raise SystemExit("No number of added convolutions makes the graph slow enough.")


def with_convolutions(model: onnx.ModelProto, number: int) -> onnx.ModelProto:
    slow = onnx.ModelProto()
    slow.CopyFrom(model)
    graph = slow.graph
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = [f"same{number - 1}" if each == name else each for each in node.input]
    eye = np.eye(3, dtype=np.float32)[:, :, None, None]
    graph.initializer.append(numpy_helper.from_array(eye, "identity"))
    for index in range(number):
        before = name if index == 0 else f"same{index - 1}"
        added = helper.make_node("Conv", [before, "identity"], [f"same{index}"])
        graph.node.insert(index, added)
    return slow


def ratio_of(first: onnx.ModelProto, second: onnx.ModelProto) -> float:
    """Return the ratio of least times, of both in turn, in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(
            each.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for each in (first, second)
    ]
    name = first.graph.input[0].name
    batch = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    given = [session.run(None, {name: batch})[0] for session in sessions]
    if not np.array_equal(*given):
        raise SystemExit("The added work changed the answers.")
    least = [np.inf, np.inf]
    for _ in range(100):
        for index, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(None, {name: batch})
            least[index] = min(least[index], time.perf_counter() - start)
    return float(least[1] / least[0])


def run_step(folder: Path, *, baseline: str, arguments: str) -> int:
    """Run the shell of the action's step as the runner does."""
    action = yaml.safe_load(ACTION.read_text())
    step = next(each for each in action["runs"]["steps"] if each.get("id") == "run")
    environment = {
        **os.environ,
        "CONFIG": "segdeploy.toml", "BASELINE": baseline, "ARGS": arguments,
        "FAIL_ON_INCONCLUSIVE": "false", "GITHUB_OUTPUT": str(folder.parent / "output"),
        "GITHUB_STEP_SUMMARY": str(folder.parent / "summary.md"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],  # noqa: S607  as GitHub does
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode


def run_job(work: Path, head: str) -> dict[str, Any]:
    """Do what the workflow of docs/ci.md does for one head commit."""
    job, cache = work / "job", work / "cache"
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir()
    start = time.perf_counter()
    for side, branch in (("base", "main"), ("head", head)):
        git(job, "clone", "--quiet", "--no-local", str(work / "repository"), side)
        git(job / side, "checkout", "--quiet", branch)
    if not cache.is_dir():
        code = run_step(job / "base", baseline="", arguments="--out ../runs/base --only export")
        if code:
            raise SystemExit("The base commit could not be built.")
        shutil.copytree(job / "runs" / "base", cache)
    elif not (job / "runs" / "base").is_dir():
        shutil.copytree(cache, job / "runs" / "base")
    code = run_step(job / "head", baseline="../runs/base", arguments="--out ../runs/head")
    result = json.loads((job / "head" / "segdeploy-run.json").read_text())
    gate = next(stage for stage in result["stages"] if stage["stage"] == "gate")
    found = gate["gate"] or {}
    return {
        "head": head, "exit_code": code, "verdict": found.get("verdict", gate["status"]),
        "reason": gate["reason"], "ratio": found.get("ratio"), "ratio_ci": found.get("ratio_ci"),
        "gate_seconds": gate["seconds"], "seconds": time.perf_counter() - start,
    }  # fmt: skip


def plan_jobs(num_docs: int, num_slow: int) -> list[tuple[str, str]]:
    """Return (name, commit) of all jobs, the slow ones spread among the others."""
    docs = [(f"docs{index}", f"docs~{num_docs - 1 - index}") for index in range(num_docs)]
    every = max(1, num_docs // max(1, num_slow))
    jobs: list[tuple[str, str]] = []
    for index, job in enumerate(docs):
        jobs.append(job)
        if index % every == every - 1 and index // every < num_slow:
            jobs.append((f"slow{index // every}", "slow"))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", type=int, default=50)
    parser.add_argument("--slow", type=int, default=5)
    parser.add_argument("--budget", default="20s")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "ci-trial")
    chosen = parser.parse_args()
    work = chosen.work.resolve()
    planted = make_repository(
        work, num_docs=chosen.docs, budget=chosen.budget, threads=chosen.threads
    )
    log = work / "jobs.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    done = {each["name"]: each for each in map(json.loads, lines)}
    for name, head in plan_jobs(chosen.docs, chosen.slow):
        if name in done:
            continue
        done[name] = {"name": name, **run_job(work, head)}
        with log.open("a") as stream:
            stream.write(json.dumps(done[name]) + "\n")
        print(name, done[name]["verdict"], done[name]["ratio"], f"{done[name]['seconds']:.0f} s")
    write_json(
        HERE / "results" / "ci_trial.json",
        {"planted": planted, "jobs": list(done.values()), "environment": describe_environment()},
    )


if __name__ == "__main__":
    main()
