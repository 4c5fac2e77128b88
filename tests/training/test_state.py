"""What the loop counts: what is due when, how a run resumes from its counters, and which ones are impossible."""

import math

import pytest

from training import state
from training.distributed import Processes
from training.growth import Stage
from training.state import RunState, Schedule

ONE = Processes(None)  # a single process asks for no device
SCHEDULE = Schedule(
    epochs=6,
    steps_per_epoch=4,
    batch_size=8,
    resolution=32,
    grow=False,
    lr_decay=0.0,
    save_every=2,
    save_minutes=math.inf,
    eval_every=3,
    max_minutes=math.inf,
    deadline=math.inf,
)


def advanced(steps, schedule=SCHEDULE, stage=32, processes=ONE):
    """[(RunState's step, Due)] of so many steps, with a row whenever one is due, and stages as they come."""
    run, found, in_row = RunState(schedule, Stage(stage)), [], 0
    for _ in range(steps):
        if run.stage_over:
            run.begin_stage()
        in_row += 1
        run.advance(None, processes, in_row)
        due = run.due(in_row)
        found.append((run.step, due))
        in_row *= not due.row
    return found


def steps_with(found, name):
    return [step for step, due in found if getattr(due, name)]


def test_saves_and_evaluations_are_due_every_so_many_epochs_and_at_the_end():
    found = advanced(24, SCHEDULE._replace(epochs=5))
    assert steps_with(found, "save") == [8, 16, 20, 21, 22, 23, 24]  # the end is at 20: a loop stops there
    assert steps_with(found, "evaluation")[:2] == [12, 20] and steps_with(found, "stop")[0] == 20
    assert steps_with(advanced(24, SCHEDULE._replace(eval_every=0)), "evaluation") == []


def test_saves_are_due_every_so_many_minutes(ticking):
    schedule = SCHEDULE._replace(save_every=math.inf, save_minutes=3 / 60)  # the clock goes on by a second at each step
    assert steps_with(advanced(20, schedule), "save") == [3, 6, 9, 12, 15, 18]
    assert steps_with(advanced(7, schedule._replace(epochs=1)), "save") == [3, 4, 5, 6, 7]  # from the end on at every step


def test_rows_are_due_after_so_many_steps_or_with_anything_else(monkeypatch):
    monkeypatch.setattr(state, "LOG_STEPS", 3)
    assert steps_with(advanced(15), "row") == [3, 6, 8, 11, 12, 15]  # a save at 8, an evaluation at 12


def test_a_row_is_due_after_some_seconds_whatever_its_steps(ticking, monkeypatch):
    monkeypatch.setattr(state, "LOG_SECONDS", 5)
    assert steps_with(advanced(6), "row") == [5, 6]  # the clock goes on by one at each step


def test_a_stage_that_ends_is_saved_and_the_end_of_the_epochs_waits_for_the_last_stage():
    run = RunState(SCHEDULE._replace(grow=True), Stage(16))  # of 16x16 a fifth, of 32x32 the rest
    for _ in range(4):
        run.advance(None, ONE, 1)
        assert run.due(1) == (False, False, False, False) and not run.stage_over
    run.advance(None, ONE, 1)
    assert run.stage_over and run.due(1) == (True, False, True, False)
    run.begin_stage()
    assert run.stage == Stage(32, 40, 4) and not run.stage_over


def test_a_signal_stops_and_saves_without_an_evaluation():
    run = RunState(SCHEDULE, Stage(32))
    run.advance(15, ONE, 1)
    assert run.due(1) == (True, False, True, True) and run.signum == 15


def two_processes(monkeypatch):
    """Processes of which another one does the same, and the list of the values that they have agreed upon."""
    processes, agreed = Processes(None), []
    processes.size = 2
    monkeypatch.setattr(processes, "maximum", lambda *values: agreed.append(values) or values)
    return processes, agreed


def test_processes_with_quick_steps_agree_once_a_row(monkeypatch):
    monkeypatch.setattr(state.time, "monotonic", lambda: 0.0)
    processes, agreed = two_processes(monkeypatch)
    schedule = SCHEDULE._replace(grow=True, save_every=6, eval_every=0, epochs=12)
    alone, found = advanced(40, schedule, 16), advanced(40, schedule, 16, processes)
    assert found == alone and steps_with(found, "row") == [10, 24, 40]  # 16x16 ends at 10, 24 saves
    assert len(agreed) == 2 + 3  # and after the first step of each stage, which may be slower


def test_processes_with_slow_steps_agree_after_each(monkeypatch, ticking):
    processes, agreed = two_processes(monkeypatch)
    schedule = SCHEDULE._replace(save_every=math.inf, save_minutes=9 / 60)
    found = advanced(12, schedule, processes=processes)
    assert len(agreed) == 12 and steps_with(found, "save") == [9]


def test_a_run_resumes_from_its_counters():
    run = RunState(SCHEDULE, Stage(16, 8, 4))
    for _ in range(5):
        run.advance(None, ONE, 1)
    run.seconds, run.skipped, run.lr_scale, run.lr_decay = 12.5, 3, 0.5, 0.25
    other = RunState(SCHEDULE, Stage(32))
    other.resume(run.state_dict())
    assert other.state_dict() == run.state_dict() and other.step == 5 and other.done == 5 / 24
    other = RunState(SCHEDULE._replace(batch_size=16), Stage(32))
    other.resume(run.state_dict())
    assert other.step == 2  # whole batches of the 40 images


@pytest.mark.parametrize(
    "name, value",
    [
        *(("seconds", seconds) for seconds in (-1, math.nan, "x")),
        *(("lr_scale", scale) for scale in (0, 2)),
        *(("lr_decay", -0.1), ("done", 1.1), ("skipped", -1), ("stage", {"resolution": 64}), ("stage", {"size": 32})),
        ("stage", {"resolution": 32, "images": 1000}),
    ],
)
def test_counters_that_no_run_can_have_are_refused(name, value):
    run = RunState(SCHEDULE, Stage(32))
    with pytest.raises((ValueError, TypeError)):
        run.resume(run.state_dict() | {name: value})
