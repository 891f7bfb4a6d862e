"""Profiles, and what is planned from them: no SLURM needed."""

from __future__ import annotations

import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.config.file import load as load_experiment
from bench.core.errors import BadValue, BenchError
from bench.launch.plan import make_plan
from bench.launch.slurm import job_status, profile, queue, submission
from bench.launch.slurm import submit as slurm
from bench.launch.slurm.job import Job
from bench.launch.slurm.job_status import JobStatus
from bench.launch.slurm.profile import Profile, minutes
from bench.launch.slurm.queue import expanded
from bench.launch.slurm.submission import JobSettings, Note, Submission
from bench.store.run_folder import Store


@pytest.fixture(autouse=True)
def _no_profile_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def write_profile(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "site.toml"
        path.write_text(text)
        return path

    return write


# ---- profiles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("90", 90), ("1:30", 2), ("10:00", 10), ("1:30:00", 90), ("0:00:61", 2), ("2-12", 3600)),
        *(("2-12:30", 3630), ("1-00:00:01", 1441)),
    ],
)
def test_time_limits_as_slurm_writes_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1h", "-5", "0", "0:59", "1:2:3:4", "1-"])
def test_what_is_no_time_limit(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        minutes(text)


def test_a_file_and_flags_over_it(write_profile: Callable[[str], Path]) -> None:
    path = write_profile("""
        [slurm]
        partition = "gpu"
        time = "1-00:00:00"
        gpus = 2
        jobs_per_gpu = 3
        mem_gb = 12
        setup = ["module load cuda"]
        sbatch = { mail_type = "END", nice = 5 }
    """)
    found = profile.load(path, {"partition": "debug", "sbatch": {"nice": "10"}, "account": None})
    assert (found.partition, found.time, found.at_once(), found.pack()) == ("debug", 1440, 6, 6)
    assert found.sbatch == {"mail-type": "END", "nice": "10"}
    assert found.parameters() == {
        "partition": "debug",
        "time": 1440,
        "mem": "12288M",
        "gpus_per_node": 2,
        "cpus_per_task": 1,
        "setup": ["module load cuda"],
        "signal_delay_s": 120,
    }


def test_the_users_own_file_is_found_and_no_file_is_no_fault(tmp_path: Path) -> None:
    assert profile.load() == Profile()
    path = tmp_path / "config" / "sam-bench" / "slurm.toml"
    path.parent.mkdir(parents=True)
    path.write_text('[slurm]\nqos = "long"\n')
    assert profile.load().qos == "long"


def test_everything_that_is_wrong_is_told_at_once(write_profile: Callable[[str], Path]) -> None:
    path = write_profile("""
        [slurm]
        partitoin = "gpu"
        time = "soon"
        gpus = "two"
        mem_gb = 0
        runs_per_job = 0
        setup = "module load cuda"
        sbatch = { output = "x" }
    """)
    with pytest.raises(BadValue) as caught:
        profile.load(path)
    assert caught.value.source == str(path)
    message = str(caught.value)
    assert "7 problems" in message
    assert 'slurm.partitoin: unknown key; did you mean "partition"?' in message
    assert 'slurm.time: must be minutes, "HH:MM:SS" or "D-HH:MM:SS", got \'soon\'' in message
    assert "slurm.gpus: must be a valid integer, got 'two'" in message
    assert "slurm.setup: must be a valid list" in message
    assert 'slurm.sbatch: "output" is set by bench' in message


def test_named_parameters_belong_to_their_settings() -> None:
    with pytest.raises(BadValue, match='sbatch: "partition" has its own setting'):
        profile.load(None, {"sbatch": {"partition": "gpu"}})


def test_the_grace_time_fits_into_the_time_limit() -> None:
    assert [profile.load(None, {"time": time}).grace for time in (1, 2, 60)] == [30, 60, 120]
    with pytest.raises(BadValue, match="grace_seconds: 120 s are not less than the time limit of 2 min"):
        profile.load(None, {"time": 2, "grace_seconds": 120})


def test_foreign_tables_broken_and_missing_files(write_profile: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(BadValue, match='slrum: unknown table; did you mean "slurm"'):
        profile.load(write_profile("[slrum]\n"))
    with pytest.raises(BadValue, match="slurm: must be a table, got 3"):
        profile.load(write_profile("slurm = 3\n"))
    with pytest.raises(BenchError, match=r"site\.toml: 1 problem\n  broken TOML"):
        profile.load(write_profile("slurm = [\n"))
    with pytest.raises(BenchError, match="no such profile"):
        profile.load(tmp_path / "nowhere.toml")


# ---- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "0,x"], "must be whole numbers"),
        (["--gpus", "1,1"], "the same GPU twice"),
        (["--gpus", "0", "--on", "slurm"], "SLURM decides which GPUs"),
        (["--partition", "gpu", "--wait"], "--wait --partition: 1 problem\n  only with --on slurm"),
        (["--on", "slurm", "--time", "soon"], "--time soon: 1 problem"),
        (["--on", "slurm", "--sbatch", "=3"], "must be KEY=VALUE"),
        (["--on", "slurm", "--profile", "nowhere.toml"], "nowhere.toml: no such profile"),
        (["--on", "slurm"], "no sbatch on PATH"),
    ],
)
def test_wrong_flags_are_one_message_before_anything_starts(
    flags: list[str],
    message: str,
    tiny: Any,
    write_experiment: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write_experiment(tiny())
    done = CliRunner().invoke(cli, ["run", str(path), "--out", str(tmp_path / "out"), *flags])
    assert isinstance(done.exception, BenchError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


# ---- planning ------------------------------------------------------------------------------------------------


FAKE = """#!/bin/sh
case "$(basename "$0")" in
  squeue) cat "{folder}/queue" 2> /dev/null || true ;;
  scontrol) echo "MaxArraySize            = 2" ;;
  sacct) cat "{folder}/accounts" ;;
  sbatch) echo "$*" >> "{folder}/calls"; [ -e "{folder}/full" ] && {{ echo "sbatch: error: QOSMaxSubmit" >&2; exit 1; }}
    n=$(wc -l < "{folder}/calls"); [ "$n" = 2 ] && touch "{folder}/full"; echo "Submitted batch job $n" ;;
esac
"""


def live_runs(store: Store) -> set[str]:
    return {run for run, status in job_status.by_run(job_status.look(store)).items() if status.live}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM of shell scripts: arrays of two jobs at most, and full after two of them."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel", "sacct"):
        script = folder / name
        script.write_text(FAKE.format(folder=folder))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_a_site_that_refuses_half_way_has_told_what_it_took_and_keeps_it(
    fake: Path, tiny: Any, write_experiment: Any, tmp_path: Path
) -> None:
    experiment = load_experiment(write_experiment(tiny({"seeds": 3})))
    store = Store(tmp_path / "out")
    plan = make_plan(experiment, store)
    with pytest.raises(BenchError, match=r"QOSMaxSubmit; submitted before that: 1_0 \.\.\. 2_1 \(4 jobs\)"):
        slurm.submit(plan, Profile())
    first, second = submission.read_all(store)
    assert (first.job_ids, second.job_ids) == (["1_0", "1_1"], ["2_0", "2_1"])

    (fake / "full").unlink()
    (fake / "queue").write_text(
        f"1_0|RUNNING|n1|me|{first.name}|None\n1_1|FAILED|n1|me|{first.name}|None\n"
        "2_[0-1%2]|PENDING||me|another-job|None\n"
    )
    assert live_runs(store) == set(first.tasks[0])
    submitted = slurm.submit(plan, Profile(max_array_size=100, runs_per_job=4))
    assert len(submitted.new) == 8
    assert submitted.queued == set(first.tasks[0])


def test_a_submission_that_died_before_it_knew_its_ids_finds_them_by_name(
    fake: Path, tiny: Any, write_experiment: Any, tmp_path: Path
) -> None:
    store = Store(tmp_path / "out")
    plan = make_plan(load_experiment(write_experiment(tiny({"seeds": 1}))), store)
    slurm.submit(plan, Profile(runs_per_job=2))
    (known,) = submission.read_all(store)
    submission.with_job_ids(known, [])
    (fake / "queue").write_text(f"7_[0-1]|PENDING||me|{known.name}|Priority\n")
    assert live_runs(store) == {run for runs in known.tasks for run in runs}
    assert submission.read_all(store)[0].job_ids == ["7_0", "7_1"]


def test_a_local_launch_asks_the_queue_about_runs_that_were_submitted(
    fake: Path, tiny: Any, write_experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "out")
    plan = make_plan(load_experiment(write_experiment(tiny({"seeds": 1}))), store)
    every = {run.spec.run_id for run in plan.to_do}
    assert job_status.elsewhere(store, every) == (set(), "")
    slurm.submit(plan, Profile(runs_per_job=2, max_array_size=1))
    first, second = submission.read_all(store)
    (fake / "queue").write_text(f"1|PENDING||me|{first.name}|Priority\n2|FAILED|n1|me|{second.name}|None\n")
    assert job_status.elsewhere(store, every) == (set(first.tasks[0]), "")
    assert job_status.elsewhere(store, second.tasks[0]) == (set(), "")
    second.write_note(0, Note(1, "failed"))
    monkeypatch.setenv("PATH", "/nowhere")
    found, trouble = job_status.elsewhere(store, every)
    assert not found
    assert trouble.startswith("2 runs submitted to SLURM may be in its queue: no s")
    first.write_note(0, Note(1, "done"))
    assert job_status.elsewhere(store, every) == (set(), "")


def test_a_job_at_its_limit_is_queued_again_as_long_as_it_gets_further(
    fake: Path, tiny: Any, write_experiment: Any, tmp_path: Path
) -> None:
    store = Store(tmp_path / "out")
    plan = make_plan(load_experiment(write_experiment(tiny({"seeds": 1}))), store)
    slurm.submit(plan, Profile(runs_per_job=9, time=10))
    (one,) = submission.read_all(store)

    def stopped(job: Job, after_minutes: float) -> Job | None:
        """What a job is queued again as, when its signal comes so long after its start."""
        job._started, job._progress = time.monotonic() - 60 * after_minutes, one.progress(0)
        with restored_sigterm():
            again = job.checkpoint()
        return None if again is None else again.function  # type: ignore[return-value]

    job = Job(one.folder, 0, one.code)
    for after, idle in ((7.1, 1), (0.5, 1), (6.9, 1), (7.1, 2)):  # the limit is at 10 - 2, and up to a minute early
        job = stopped(job, after)  # type: ignore[assignment]
        assert job.idle == idle, after
    assert stopped(job, 7.1) is None
    job._started, job._progress = time.monotonic() - 600, one.progress(0)
    checkpoint = store.run(one.tasks[0][1]).checkpoint
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with restored_sigterm():
        again = job.checkpoint()
    assert again is not None
    assert again.function.idle == 0  # type: ignore[attr-defined]


def test_what_the_controller_has_forgotten_is_asked_of_the_accounts(
    fake: Path, tiny: Any, write_experiment: Any, tmp_path: Path
) -> None:
    """The answer is one of sacct 22.05 on such jobs, with other numbers."""
    store = Store(tmp_path / "out")
    plan = make_plan(load_experiment(write_experiment(tiny({"seeds": 1}))), store)
    slurm.submit(plan, Profile(runs_per_job=2))
    (one,) = submission.read_all(store)
    (fake / "accounts").write_text("1_0|CANCELLED by 0\n1_1|OUT_OF_MEMORY\n")
    standings = job_status.statuses(store)
    assert [standings[runs[0]].state for runs in one.tasks] == ["CANCELLED", "OUT_OF_MEMORY"]
    assert "never started: out of memory" in standings[one.tasks[1][0]].words()
    (fake / "sacct").write_text("#!/bin/sh\necho Slurm accounting storage is disabled >&2; exit 1\n")
    assert {standing.state for standing in job_status.statuses(store).values()} == {""}


def test_many_jobs_are_asked_for_in_parts(monkeypatch: pytest.MonkeyPatch, fake: Path) -> None:
    asked: list[list[str]] = []

    def call(command: list[str], seconds: float = 0) -> str:
        ids = command[-1].split(",")
        asked.append(ids)
        return "".join(f"{job}|COMPLETED\n" for job in ids)

    monkeypatch.setattr(queue, "call", call)
    jobs = [f"7_{number}" for number in range(2500)]
    assert queue.accounted(jobs) == dict.fromkeys(jobs, "COMPLETED")
    assert [len(ids) for ids in asked] == [500] * 5


@contextmanager
def restored_sigterm() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        ({"nodes": 2}, {1}, "train.processes = 1: must be a multiple of the 2 nodes"),
        ({"nodes": 2, "gpus": 1}, {4}, "train.processes = 4: needs a GPU for each, 2 a node, and a job has 1 there"),
        ({"gpus": 2}, {4}, "train.processes = 4: needs a GPU for each, 4 a node, and a job has 2 there"),
        ({"gpus": 2}, {1, 2}, "train.processes: on GPUs all must have as many"),
    ],
)
def test_runs_that_a_job_has_no_room_for_are_told_before_anything_is_submitted(
    settings: dict[str, Any],
    processes: set[int],
    message: str,
    fake: Path,
    tiny: Any,
    write_experiment: Any,
    tmp_path: Path,
) -> None:
    document = tiny({"train.processes": min(processes), "optimizers.sam.train.processes": max(processes)})
    plan = make_plan(load_experiment(write_experiment(document)), Store(tmp_path / "out"))
    with pytest.raises(BadValue, match=message):
        slurm.submit(plan, Profile(**settings))
    with pytest.raises(BadValue, match=message):
        next(slurm.scripts(plan, Profile(**settings)))
    assert not (tmp_path / "out").exists()


def test_nodes_of_a_job(fake: Path, tiny: Any, write_experiment: Any, tmp_path: Path) -> None:
    found = profile.load(None, {"nodes": 2, "gpus": 2, "cpus": 8})
    assert (found.at_once(4), found.pack(4)) == (1, 1)
    assert [Profile(gpus=4, cpus=8).at_once(processes) for processes in (1, 2, 4)] == [4, 2, 1]
    assert [Profile(cpus=4).pack(processes) for processes in (1, 2, 8)] == [4, 2, 1]
    plan = make_plan(load_experiment(write_experiment(tiny({"train.processes": 4}))), Store(tmp_path / "out"))
    script = next(slurm.scripts(plan, found))
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "--cpus-per-task=8 --ntasks=2 --export=ALL --kill-on-bad-exit=1 ",
    ):
        assert line in script
    with pytest.raises(BadValue, match="jobs: must be 1 with several nodes, which do one run at a time, got 3"):
        profile.load(None, {"nodes": 2, "jobs": 3})
    with pytest.raises(BadValue, match='sbatch: "ntasks" is set by bench'):
        profile.load(None, {"sbatch": {"ntasks": 4}})


def test_ids_of_arrays() -> None:
    assert expanded("12") == ["12"]
    assert expanded("12_3") == ["12_3"]
    assert expanded("12_[0-2,5%4]") == ["12_0", "12_1", "12_2", "12_5"]


@pytest.mark.parametrize(
    ("state", "note", "words"),
    [
        ("PENDING", Note(), "pending (job 1_0 of ada: Priority)"),
        ("PENDING", Note(starts=2), "pending, requeued 2 times (job 1_0 of ada: Priority)"),
        ("RUNNING", Note(starts=2, state="running"), "running on n1, requeued 1 time (job 1_0 of ada)"),
        ("FAILED", Note(1, "refused", "", "changed"), "refused: changed (job 1_0 of ada); log: "),
        ("CANCELLED", Note(), "job 1_0 of ada never started: cancelled"),
        ("OUT_OF_MEMORY", Note(1, "running"), "its job 1_0 of ada ended without finishing it: out of memory; log: "),
        ("", Note(1, "running"), "ended without finishing it: SLURM does not know it any more; log: "),
    ],
)
def test_the_status_of_a_job_in_words(state: str, note: Note, words: str, tmp_path: Path) -> None:
    settings = JobSettings(0, 1, 60, 120)
    one = Submission(tmp_path, "name", "now", "code", [["run"]], ["1_0"], settings, user="ada")
    assert words in JobStatus(one, 0, state, "n1", "Priority", note).words()
