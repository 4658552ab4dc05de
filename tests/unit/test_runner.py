"""Processes in slots, with shell commands in the place of training."""

import signal
import subprocess
import sys
import time

import pytest

from scripts.jobs import runner as runner_module
from scripts.jobs.runner import Job, Outcome, Result, Runner, Slot, last_failed, last_line

ONE_SLOT = (Slot(),)


@pytest.fixture
def job(tmp_path):
    def make(name: str, script: str, after: str | None = None) -> Job:
        return Job(name, ("sh", "-c", script, "sh"), tmp_path / "logs" / name / "train.log", after)

    return make


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs jobs; an exit code of 0 means finished."""
    monkeypatch.setattr(runner_module, "POLL_S", 0.02)
    monkeypatch.chdir(tmp_path)
    lines = []

    def start(jobs, places=ONE_SLOT, **options):
        def judge(job: Job, code: int) -> Result:
            return Result(
                Outcome.FAILED if code else Outcome.FINISHED, f"{code}: {last_line(job.log)}"
            )

        before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
        runner = Runner(jobs, places, judge=judge, say=lines.append,
                        time_argument=lambda s: [f"{s:.0f}"], **options)  # fmt: skip
        results = runner.run()
        assert {kind: signal.getsignal(kind) for kind in before} == before
        return results

    start.lines = lines
    return start


def outcomes(results):
    return {name: result.outcome for name, result in results.items()}


def test_a_failed_job_is_tried_once_more_and_the_others_go_on(job, run, tmp_path):
    jobs = [job("bad", "echo broken; exit 3"), job("good", "echo fine"),
            job("once", "test -f tried || { touch tried; exit 1; }")]  # fmt: skip
    results = run(jobs)
    assert outcomes(results) == {"bad": "failed", "good": "finished", "once": "finished"}
    assert results["bad"].message == "3: broken"
    bad, good, _ = (one.log for one in jobs)
    assert bad.read_text().count("broken\n") == 2 and good.read_text().count("fine\n") == 1
    assert last_failed(bad) and not last_failed(good) and not last_failed(tmp_path / "none")
    said = [line for line in run.lines if line.startswith("failed bad")]
    assert "retried" in said[0] and "retried" not in said[1] and str(bad) in said[1]


def test_logs_are_appended_to(job, run):
    run([job("a", "echo first")])
    run([job("a", "echo second")])
    text = job("a", "").log.read_text()
    assert text.index("first") < text.index("second")
    assert last_line(job("a", "").log) == "second"


def test_a_job_waits_for_the_one_it_starts_from(job, run, tmp_path):
    jobs = [job("late", "test -f made", after="early"), job("early", "sleep 0.5; touch made")]
    assert outcomes(run(jobs, [Slot(), Slot()])) == {"early": "finished", "late": "finished"}
    jobs = [job("late", "touch wrong", after="early"), job("early", "exit 1")]
    results = run(jobs)
    assert outcomes(results) == {"early": "failed", "late": "failed"}
    assert "not started: early" in results["late"].message and not (tmp_path / "wrong").exists()


def test_a_job_waits_for_what_was_settled_before(job, run):
    before = {"elsewhere": Result(Outcome.ELSEWHERE), "done": Result(Outcome.FINISHED)}
    jobs = [job("a", "exit 1", after="elsewhere"), job("b", "true", after="done")]
    assert outcomes(run(jobs, settled=before)) == {
        **outcomes(before), "a": "running elsewhere", "b": "finished"}  # fmt: skip


def test_as_many_run_at_once_as_there_are_slots(job, run, tmp_path):
    script = "touch $$.on; ls *.on | wc -l; sleep 0.4; rm $$.on"
    jobs = [job(str(i), script) for i in range(5)]
    run(jobs, [Slot()] * 2)
    peaks = [int(last_line(one.log)) for one in jobs]
    assert max(peaks) == 2


def test_a_slot_tells_its_process_where_it_is(job, run):
    places = [Slot(("x",), {"CUDA_VISIBLE_DEVICES": device}) for device in "01"]
    jobs = [job(name, "echo $CUDA_VISIBLE_DEVICES $1; sleep 0.2") for name in "abcd"]
    run(jobs, places)
    assert {last_line(one.log) for one in jobs} == {"0 x", "1 x"}


def test_out_of_time_stops_what_runs_and_starts_nothing_new(job, run):
    jobs = [job("long", "echo $1; exec sleep 60"), job("next", "true")]
    began = time.monotonic()
    results = run(jobs, deadline=began + 2, overtime=0.5)
    assert time.monotonic() - began < 20
    assert set(outcomes(results).values()) == {"out of time"}
    assert last_line(jobs[0].log) in ("1", "2") and not jobs[1].log.exists()
    assert not last_failed(jobs[0].log)


def test_a_failure_is_not_hidden_by_the_time_limit(job, run):
    results = run([job("bad", "sleep 2.5; exit 1")], deadline=time.monotonic() + 2, overtime=9.0)
    assert outcomes(results) == {"bad": "failed"}


def test_a_silent_process_is_not_given_its_predecessors_words(job, run):
    silent = job("silent", "[ -e said ] && exit 1; touch said; echo an old message; exit 1")
    assert run([silent])["silent"].message == "1: "
    assert "an old message" in silent.log.read_text()


def test_a_signal_is_passed_on_and_ends_the_work(job, run):
    script = "trap 'echo kept; exit 130' TERM; kill -TERM $PPID; while :; do sleep 0.1; done"
    jobs = [job("a", script), job("b", "true")]
    assert set(outcomes(run(jobs)).values()) == {"interrupted"}
    assert last_line(jobs[0].log) == "kept"


def test_a_second_signal_kills(job, run):
    began = time.monotonic()
    stubborn = job("a", "trap '' TERM; while :; do kill -TERM $PPID; sleep 1; done")
    assert outcomes(run([stubborn])) == {"a": "interrupted"}
    assert time.monotonic() - began < 20


def test_a_signal_that_a_system_lacks_is_done_without(job, run, monkeypatch):
    """As on Windows; the others end the work."""
    monkeypatch.delattr(signal, "SIGHUP")
    assert outcomes(run([job("a", "kill -TERM $PPID; sleep 60")])) == {"a": "interrupted"}


def test_a_killed_process_is_tried_once_more(job, run):
    results = run([job("a", "test -f tried || { touch tried; kill -9 $$; }")])
    assert outcomes(results) == {"a": "finished"}
    assert any(line.startswith("failed a: -9") for line in run.lines)


def test_a_log_that_cannot_be_written_fails_its_job_alone(job, run, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a").write_text("a file where the folder should be")
    assert outcomes(run([job("a", "true"), job("b", "true")])) == {"a": "failed", "b": "finished"}


def test_an_error_of_the_runner_leaves_no_process_behind(tmp_path):
    left = []

    def say(line: str) -> None:
        left.extend(each.process for each in runner._running)
        raise BrokenPipeError

    job = Job("a", ("sleep", "60"), tmp_path / "log")
    runner = Runner([job], [Slot()], judge=lambda job, code: Result(Outcome.FAILED),
                    time_argument=lambda s: [], say=say)  # fmt: skip
    with pytest.raises(BrokenPipeError):
        runner.run()
    (process,) = left
    assert process.returncode is not None


def test_progress_is_told_now_and_then(job, run, monkeypatch):
    monkeypatch.setattr(runner_module, "PROGRESS_S", 0.3)
    run([job("a", "sleep 0.6")], progress=lambda names: f"now {names}")
    assert "now ['a']" in run.lines


def test_ignored_signals_stay_ignored(tmp_path):
    """As under nohup, or for a shell's background job."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from pathlib import Path; from scripts.jobs.runner import *\n"
        f"job = Job('a', ('sh', '-c', 'kill -HUP $PPID; sleep 0.5'), Path('{tmp_path}/log'))\n"
        "done = lambda job, code: Result(Outcome.FINISHED)\n"
        "runner = Runner([job], [Slot()], judge=done, time_argument=lambda s: [])\n"
        "print(runner.run()['a'].outcome)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "finished", done.stderr
