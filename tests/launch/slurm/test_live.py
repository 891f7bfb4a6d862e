"""Which submitted runs count as alive, and what `bench cancel` does, on a SLURM of shell scripts."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.file import load
from bench.core.errors import BenchError, counted
from bench.launch.plan import Plan, make_plan
from bench.launch.slurm import job, job_status, profile, queue, submission
from bench.launch.slurm import submit as slurm
from bench.launch.slurm.job import Job
from bench.launch.slurm.job_status import JobStatus
from bench.launch.slurm.profile import Profile
from bench.launch.slurm.submission import JobSettings, Note, Submission
from bench.store.run_folder import Store
from tests.launch.slurm.test_profile import restored_sigterm

SHELL = """#!/bin/sh
name=$(basename "$0"); echo "$name $*" >> "{folder}/calls"; env > "{folder}/$name.env"
case $name in
  squeue) cat "{folder}/queue" 2> /dev/null || true ;;
  scontrol) cat "{folder}/config" ;;
  sacct) exit 1 ;;
  scancel) if [ -e "{folder}/denied" ]; then echo "scancel: error: Access/permission denied" >&2; exit 1; fi ;;
  sbatch) n=$(grep -c ^sbatch "{folder}/calls"); cp "$2" "{folder}/script-$n"
    if [ -e "{folder}/late" ]; then
      job_name=$(sed -n 's/^#SBATCH --job-name=//p' "$2")
      if [ -s "{folder}/late" ]; then echo "${{n}}_[0-1]|PENDING||$USER|$job_name|None" >> "{folder}/queue"; fi
      echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1
    fi
    echo "$n" ;;
esac
"""

CONFIG = "ClusterName             = alpha\nPrivateData             = none\nMaxArraySize            = 1001\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a SLURM called alpha: calls, the queue's answer, and what sbatch was given."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "config").write_text(CONFIG)
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel", "sacct"):
        script = folder / name
        script.write_text(SHELL.format(folder=folder))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(slurm, "LOOKS", (0.0,))
    return folder


@pytest.fixture
def plan(tiny: Any, write_experiment: Any, tmp_path: Path) -> Plan:
    """Three runs."""
    return make_plan(load(write_experiment(tiny({"seeds": 1}))), Store(tmp_path / "out"))


Submit = Callable[..., Submission]


@pytest.fixture
def submit(site: Path, plan: Plan) -> Submit:
    """Submit what is missing of the plan; its submission, changed, as another user or cluster would have left it."""

    def call(**changes: Any) -> Submission:
        slurm.submit(plan, Profile(runs_per_job=2))
        newest = replace(submission.read_all(plan.store)[-1], **changes)
        newest.write()
        return newest

    return call


def lines(one: Submission, state: str, user: str = "ada") -> str:
    return "".join(f"{job}|{state}|n1|{user}|{one.name}|None\n" for job in one.job_ids)


# ---- a cancelled job stays dead ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "restarts", "verdict"),
    [
        ("JobState=RUNNING Reason=None Restarts=0", "", "again"),
        ("JobState=SUSPENDED Reason=None Restarts=2", "2", "again"),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=0", "", "again"),  # SLURM was late with its warning
        ("JobState=COMPLETING Reason=None Restarts=0", "", "cancelled"),
        ("JobState=COMPLETING Reason=None Restarts=2", "2", "cancelled"),
        ("JobState=CANCELLED Reason=None Restarts=0", "", "cancelled"),
        ("JobState=COMPLETING Reason=None Restarts=1", "", "SLURM did it"),  # preempted; perhaps cancelled since
        ("JobState=PENDING Reason=BeginTime Restarts=3", "2", "SLURM did it"),
        ("", "", "again"),  # the controller does not answer
    ],
)
def test_a_job_that_slurm_is_ending_for_good_is_not_queued_again(
    shown: str, restarts: str, verdict: str, site: Path, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = submit()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")  # the last job of an array: 8 alone would be all of them
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts or "0")
    (site / "config").write_text(f"JobId=8 {shown}\n")
    work = Job(one.folder, 1, one.code)
    with restored_sigterm():
        if verdict == "SLURM did it":
            with pytest.raises(SystemExit):
                work.checkpoint()
        else:
            assert (work.checkpoint() is None) == (verdict == "cancelled")
    assert "scontrol show job 8_1\n" in (site / "calls").read_text()


def test_cancel_leaves_a_mark_that_every_stop_and_every_start_heeds(
    site: Path, submit: Submit, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = submit()
    (site / "queue").write_text(lines(one, "RUNNING"))
    assert job_status.cancel(plan.store).jobs == one.job_ids
    assert one.cancelled
    (site / "config").write_text("JobState=RUNNING Reason=None Restarts=0")
    with restored_sigterm():
        assert Job(one.folder, 0, one.code).checkpoint() is None

    monkeypatch.setattr(Job, "_launch", lambda *arguments: pytest.fail("it works"))
    with restored_sigterm(), pytest.raises(BenchError, match="started again after `bench cancel`"):
        Job(one.folder, 0, one.code)()
    assert (one.note(0).state, one.note(0).starts) == ("cancelled", 1)


def test_a_cancelled_job_that_waits_again_holds_no_run_back(site: Path, submit: Submit, plan: Plan) -> None:
    one = submit()
    one.mark_cancelled()
    (site / "config").write_text(CONFIG)
    (site / "queue").write_text(lines(one, "PENDING"))
    assert {status.live for status in job_status.look(plan.store)} == {False}
    assert job_status.look(plan.store)[0].words() == f"job {one.job_ids[0]} never started: cancelled"
    one.write_note(0, Note(starts=1, state="stopped"))
    assert "which will end at once" in job_status.look(plan.store)[0].words()
    assert len(slurm.submit(plan, Profile()).new) == 3
    assert job_status.cancel(plan.store).jobs == one.job_ids, "it is taken out of the queue all the same"
    (site / "queue").write_text(lines(one, "RUNNING"))
    assert {status.live for status in job_status.look(plan.store) if status.submission.name == one.name} == {True}


def test_the_mark_comes_before_scancel(site: Path, submit: Submit, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    one = submit()
    (site / "queue").write_text(lines(one, "RUNNING"))
    seen: list[bool] = []
    monkeypatch.setattr(queue, "scancel", lambda ids: seen.append(one.cancelled))
    job_status.cancel(plan.store)
    assert seen == [True]


def test_a_job_told_to_end_waits_for_slurm_alone_and_not_for_its_array(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own number the last job of an array is asked for as the whole array, which says more than one state."""
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    (site / "queue").write_text("COMPLETING\n")
    job._wait_while_running()
    assert "--jobs=8_1\n" in (site / "calls").read_text()


# ---- what cannot be seen is not dead -------------------------------------------------------------------------


def test_jobs_are_asked_for_by_name_and_not_by_user(
    site: Path, submit: Submit, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = submit(user="ada")
    for name, value in {"LOGNAME": "nobody", "SQUEUE_USERS": "nobody", "SQUEUE_STATES": "FAILED"}.items():
        monkeypatch.setenv(name, value)
    (site / "queue").write_text(lines(one, "RUNNING"))
    assert {status.live for status in job_status.look(plan.store)} == {True}
    asked = [line for line in (site / "calls").read_text().splitlines() if line.startswith("squeue")]
    assert f"--name={one.name} " in asked[-1]
    assert "--user" not in asked[-1]
    assert "SQUEUE_" not in (site / "squeue.env").read_text()
    assert "of ada" in job_status.look(plan.store)[0].words()
    (site / "queue").write_text("")
    assert submit().user == queue.user() != "nobody"


@pytest.mark.parametrize(
    ("changes", "config", "hidden"),
    [
        ({}, CONFIG, False),  # ours, here: the controller forgets only jobs that have ended
        ({"cluster": "beta"}, CONFIG, True),
        ({"user": "ada"}, CONFIG, False),
        ({"user": "ada"}, CONFIG.replace("none", "accounts,jobs"), True),
        ({"cluster": "", "user": ""}, CONFIG, False),  # of an earlier version
    ],
)
def test_runs_whose_jobs_cannot_be_seen_are_not_submitted_again(
    changes: dict[str, str], config: str, hidden: bool, site: Path, submit: Submit, plan: Plan
) -> None:
    one = submit(**changes)
    (site / "config").write_text(config)
    one.write_note(0, Note(1, "running"))
    assert [status.hidden for status in job_status.look(plan.store)] == [hidden] * 2
    every = {run for runs in one.tasks for run in runs}
    taken, warning = job_status.elsewhere(plan.store, every)
    assert not taken
    assert ("3 runs may be done elsewhere too: submitted by " in warning) == hidden
    submitted = slurm.submit(plan, Profile())
    assert len(submitted.new) == (0 if hidden else 3)
    assert len(submitted.hidden) == (3 if hidden else 0)
    if hidden:
        words = job_status.describe_hidden(submitted.hidden)
        assert f"{one.user} on cluster {one.cluster}, whose jobs cannot be seen from here" in words
        assert f"delete {one.folder}" in words
        assert "cannot be seen from here; it may be alive" in job_status.statuses(plan.store)[one.tasks[0][0]].words()
        done = job_status.cancel(plan.store)
        assert not done.jobs
        assert f"{one.user} on cluster {one.cluster}" in done.others[0]


@pytest.mark.parametrize("state", ["done", "failed", "refused", "cancelled"])
def test_a_job_that_has_said_that_it_is_over_is_over_wherever_it_was(
    state: str, site: Path, submit: Submit, plan: Plan
) -> None:
    one = submit(cluster="beta")
    one.write_note(1, Note(1, state))
    assert [status.hidden for status in job_status.look(plan.store)] == [True, False]


def test_a_live_older_submission_beats_a_dead_newer_one(site: Path, submit: Submit, plan: Plan) -> None:
    older, newer = submit(), submit()
    (site / "queue").write_text(lines(older, "RUNNING") + lines(newer, "CANCELLED"))
    assert {status.submission.name for status in job_status.statuses(plan.store).values()} == {older.name}
    (site / "queue").write_text(lines(older, "FAILED") + lines(newer, "CANCELLED"))
    assert {status.submission.name for status in job_status.statuses(plan.store).values()} == {newer.name}
    replace(older, cluster="beta").write()
    (site / "queue").write_text(lines(newer, "CANCELLED"))
    assert {status.hidden for status in job_status.statuses(plan.store).values()} == {True}


def test_cancel_says_whose_jobs_it_cannot_cancel_and_leaves_them_unmarked(
    site: Path, submit: Submit, plan: Plan
) -> None:
    theirs = submit(user="ada")
    (site / "queue").write_text(lines(theirs, "RUNNING"))
    (site / "denied").touch()
    done = job_status.cancel(plan.store)
    assert not done.jobs
    assert done.others == ["1_0, 1_1 of ada: scancel failed: scancel: error: Access/permission denied"]
    assert not theirs.cancelled
    (site / "denied").unlink()  # of an administrator
    assert job_status.cancel(plan.store).jobs == theirs.job_ids
    assert theirs.cancelled


# ---- sbatch --------------------------------------------------------------------------------------------------


def test_slurms_commands_see_nothing_of_an_allocation_or_of_the_users_habits(
    site: Path, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("SLURM_NTASKS", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", "SBATCH_TIMELIMIT", "SBATCH_WAIT", "SLURMD_X")
    for name in (*names, "SQUEUE_FORMAT", "SCANCEL_STATE", "SALLOC_QOS", "SACCT_FORMAT"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURMY", "kept")
    submit()
    seen = (site / "sbatch.env").read_text().splitlines()
    of_slurm = [line for line in seen if queue.OF_SLURM.match(line)]
    assert of_slurm == ["SLURM_CONF=/etc/slurm.conf"]
    assert "SLURMY=kept" in seen


def test_variables_that_sites_have_users_set_are_below_the_file_and_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ACCOUNT": "a", "PARTITION": "b", "RESERVATION": "r", "TIMELIMIT": "3", "WAIT": "1"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    path = tmp_path / "site.toml"
    path.write_text('[slurm]\npartition = "of-file"\n')
    found = profile.load(path, {"sbatch": {"nice": "3"}})
    assert (found.account, found.partition, found.time) == ("a", "of-file", 60)
    assert found.sbatch == {"reservation": "r", "nice": "3"}
    assert profile.load(path, {"account": "of-flag"}).account == "of-flag"
    assert profile.ignored_variables() == ["SBATCH_TIMELIMIT", "SBATCH_WAIT"]


def test_a_step_has_one_process_per_node_and_the_scripts_variables(site: Path, submit: Submit) -> None:
    submit()
    script = (site / "script-1").read_text()
    assert " --ntasks=1 --export=ALL " in script


def test_sbatch_that_fails_after_it_has_submitted_is_found_out(site: Path, submit: Submit, plan: Plan) -> None:
    (site / "late").write_text("the jobs are there")
    one = submit()
    assert one.job_ids == ["1_0", "1_1"]
    assert (one.folder / "1_1_submitted.pkl").exists()
    assert not one.pickle(1).exists()


def test_sbatch_of_which_nothing_is_known_leaves_what_its_jobs_would_need(
    site: Path, submit: Submit, plan: Plan
) -> None:
    (site / "late").touch()
    with pytest.raises(BenchError, match=r"timed out on send/recv operation; it is unknown whether SLURM") as e:
        submit()
    assert "nothing was submitted" not in str(e.value)
    (one,) = submission.read_all(plan.store)
    assert one.pickle(0).exists()
    (site / "queue").write_text(f"7_1|PENDING||me|{one.name}|None\n")  # 7_0 was cancelled before it began
    assert [status.job for status in job_status.look(plan.store)] == ["7_0", "7_1"]
    assert (one.folder / "7_0_submitted.pkl").exists()
    (site / "queue").write_text("")
    replace(one, job_ids=[]).write()
    job_status.cancel(plan.store)
    assert one.cancelled, "its jobs may turn up later"


# ---- so many jobs at once ------------------------------------------------------------------------------------


def test_max_jobs_holds_over_arrays_and_submissions(
    site: Path, tiny: Any, write_experiment: Any, tmp_path: Path
) -> None:
    plan = make_plan(load(write_experiment(tiny({"seeds": 2}))), Store(tmp_path / "out"))
    slurm.submit(plan, Profile(max_array_size=2, max_jobs=3))
    first, second, third = submission.read_all(plan.store)
    scripts = [(site / f"script-{number}").read_text() for number in (1, 2, 3)]
    assert "--array=0-1%2\n" in scripts[0]
    assert "dependency" not in scripts[0]
    assert "--dependency=afterany:1\n" in scripts[1]
    assert "--dependency=afterany:2\n" in scripts[2]

    for live, limit, array, after in (
        (lines(first, "RUNNING"), 3, "--array=0-3%1\n", None),  # there is room for one beside the two
        (lines(first, "RUNNING"), 2, "--array=0-3%2\n", "1"),
        (
            lines(first, "RUNNING") + lines(second, "PENDING") + lines(third, "PENDING"),
            9,
            "",
            None,
        ),  # all is in the queue
    ):
        (site / "queue").write_text(live)
        text = "".join(slurm.scripts(plan, Profile(max_jobs=limit)))
        assert array in text
        assert ("--dependency=afterany:" in text) == (after is not None)
        if after:
            assert f"--dependency=afterany:{after}\n" in text
    (site / "queue").write_text(lines(first, "RUNNING"))
    given = Profile(max_jobs=2, sbatch={"dependency": "singleton"})
    assert "--dependency=singleton,afterany:1\n" in "".join(slurm.scripts(plan, given))


# ---- words ---------------------------------------------------------------------------------------------------


def test_a_job_that_died_before_python_started_names_its_log(tmp_path: Path) -> None:
    settings = JobSettings(0, 1, 60, 120)
    one = Submission(tmp_path, "name", "now", "code", [["run"]], ["1_0"], settings)
    assert JobStatus(one, 0, "FAILED").words() == "job 1_0 never started: failed"
    one.log(0).write_text("line\nslurm_script: line 20: python: command not found\n\n")
    words = JobStatus(one, 0, "FAILED").words()
    assert words.startswith('its job 1_0 ended before Python started: failed ("slurm_script: line 20: python: command')
    assert words.endswith(f"; log: {one.log(0)}")


@pytest.mark.parametrize(
    ("count", "noun", "text"), [(1, "run", "1 run"), (0, "run", "0 runs"), (2000, "pass", "2,000 passes")]
)
def test_a_number_with_its_noun(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text


@pytest.mark.parametrize("folder", ["50%", "a\n#SBATCH --uid=0", "a\rb"])
def test_no_path_of_results_adds_a_line_to_a_jobs_script(site: Path, plan: Plan, tmp_path: Path, folder: str) -> None:
    odd = replace(plan, store=Store(tmp_path / folder))
    for call in (lambda: slurm.submit(odd, Profile()), lambda: list(slurm.scripts(odd, Profile()))):
        with pytest.raises(BenchError, match="SLURM cannot write logs to a path with a %, a line break or another"):
            call()


# ---- damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{}", "[]", "3", "{", '{"tasks": 3}', "a field less", "ids of two jobs", "a FIFO"])
def test_a_damaged_submission_is_told_with_its_file(submit: Submit, plan: Plan, content: str) -> None:
    one = submit()
    path = one.folder / "submission.json"
    whole = json.loads(path.read_text())
    changed = {"a field less": {**whole, "settings": {"gpus": 0}}, "ids of two jobs": {**whole, "job_ids": ["1"]}}
    path.unlink()
    if content == "a FIFO":
        os.mkfifo(path)
    else:
        path.write_text(json.dumps(changed[content]) if content in changed else content)
    for look in (submission.read_all, job_status.look, lambda store: job_status.elsewhere(store, [])):
        with pytest.raises(BenchError, match=r"submission\.json is damaged"):
            look(plan.store)


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"starts": "1"}', '{"state": null}', '{"x": 1}', "a FIFO"])
def test_a_damaged_note_of_a_job_is_told_with_its_file(submit: Submit, plan: Plan, content: str) -> None:
    path = submit().folder / "job-1.json"
    if content == "a FIFO":
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(BenchError, match=r"job-1\.json is damaged"):
        job_status.look(plan.store)


@pytest.mark.parametrize("content", ["{}", "[]", '{"metric": {}, "passes": {}, "retried": [], "runs": {}}'])
def test_a_damaged_list_of_runs_is_told_with_its_file(submit: Submit, content: str) -> None:
    one = submit()
    assert len(one.runs()["runs"]) == 3
    (one.folder / "runs.json").write_text(content)
    with pytest.raises(BenchError, match=r"runs\.json is damaged"):
        one.runs()
