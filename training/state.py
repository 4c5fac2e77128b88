"""What the training loop counts: steps, the share of the run that is over, its stage, the learning rates; and what is due when.

run = RunState(schedule, Stage(16))
run.resume(saved)                     # of a checkpoint
run.advance(signum, processes, steps_in_row)        # after every step
due = run.due(steps_in_row)           # what of logging, evaluating, saving and stopping
"""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from training.growth import Stage, fade_images, resolution_at, stage_shares

LOG_STEPS, LOG_SECONDS = 16, 20  # a row of losses.csv averages at most so many steps and seconds
QUICK = 1 / LOG_STEPS  # seconds of a step below which several processes agree once a row, since that takes a millisecond


class Schedule(NamedTuple):
    """How long a run is to train, and at which intervals it saves and evaluates."""

    epochs: int
    steps_per_epoch: int
    batch_size: int  # of all processes together
    resolution: int  # of the last stage
    grow: bool
    lr_decay: float  # share of the run over which the learning rates fall to 0
    save_every: float  # epochs; may be inf
    save_minutes: float  # may be inf
    eval_every: int  # epochs; 0: never
    max_minutes: float  # may be inf
    deadline: float  # in seconds of time.monotonic(); may be inf

    @property
    def steps(self):
        return self.epochs * self.steps_per_epoch

    @property
    def images(self):
        return self.steps * self.batch_size

    def stages(self, first_resolution):
        """{resolution of a stage: share of the run at which it ends}."""
        return stage_shares(first_resolution, self.resolution, self.grow)


class Due(NamedTuple):
    """What is to be done after a step, in all processes alike."""

    row: bool  # a row of losses.csv; always with one of the others
    evaluation: bool
    save: bool
    stop: bool


@dataclass
class RunState:
    """Where a run is; a checkpoint keeps what is not marked as of this process alone."""

    schedule: Schedule
    stage: Stage
    first_resolution: int = field(init=False)
    step: int = 0  # steps taken, in all stages
    done: float = 0.0  # the largest share of the run that has been over, 0 to 1
    seconds: float = 0.0  # of training
    skipped: int = 0  # steps with gradients that are not finite
    lr_scale: float = 1.0  # 0.5 after the run went back to a checkpoint
    images_before: int = 0  # that the networks of --start_from had learnt from
    lr_decay: float = 1.0  # the smallest factor that the decay of the learning rates has reached
    skipped_in_a_row: int = 0  # of this process alone, as are all below
    signum: int = 0  # the signal to stop, or 0
    time_share: float = 0.0  # of the time until the deadline
    save_is_old: float = 0.0  # whether `save_minutes` have passed since the last save by time
    quick: bool = False  # whether the steps of all processes take less than QUICK

    def __post_init__(self):
        self.first_resolution = self.stage.resolution
        self.start_clock()

    def start_clock(self):
        """Begin to count the time until the deadline, in which the rest of the run is to be done."""
        self.begun = self.row_begun = self.saved = time.monotonic()
        self.done_before, self.row_is_old = self.done, False

    @property
    def images(self):
        return self.step * self.schedule.batch_size

    @property
    def images_learnt(self):
        """Images that the networks have learnt from, in the run that this one started from, too."""
        return self.images_before + self.images

    @property
    def epoch(self):
        """The number of the epoch that the last step was in, from 1 on; 0 before the first."""
        return -(-self.step // self.schedule.steps_per_epoch)

    @property
    def next_resolution(self):
        return resolution_at(self.schedule.stages(self.first_resolution), self.done)

    @property
    def stage_over(self):
        return self.next_resolution > self.stage.resolution

    @property
    def finished(self):
        """Whether all epochs are done, at the last stage's resolution."""
        return self.step >= self.schedule.steps and self.stage.resolution == self.schedule.resolution

    def position(self):
        """The first columns of a row of losses.csv or evaluations.csv."""
        return {
            "step": self.step,
            "epoch": self.step / self.schedule.steps_per_epoch,
            "images": self.images,
            "seconds": self.seconds,
            "resolution": self.stage.resolution,
        }

    def begin_stage(self):
        """Enter the stage of the next step, whose new blocks fade in."""
        self.stage, self.quick = Stage(self.next_resolution, self.images, fade_images(self.images)), False

    def rate_factor(self):
        """The factor of the learning rates for the next step; what has decayed never rises again while the decay is on."""
        decay = self.schedule.lr_decay
        done = max(self.step / self.schedule.steps, self.time_share)
        self.lr_decay = min(self.lr_decay, decay_factor(done, decay)) if decay else 1.0
        return self.lr_scale * self.lr_decay

    def advance(self, signum, processes, steps_in_row):
        """Count a step; all processes learn alike of a signal `signum` (None: none), of the time and that a row is old.

        After every step; several processes with QUICK steps only where a row is due anyway. steps_in_row: as of `due`.
        """
        self.step += 1
        self.row_is_old = self.save_is_old = False
        self._count_done()
        if processes.size == 1 or not self.quick or self.due(steps_in_row).row:
            self._agree(signum, processes, steps_in_row)
            self._count_done()

    def _count_done(self):
        by_time = self.done_before + (1 - self.done_before) * min(1.0, self.time_share)
        self.done = max(self.done, self.step / self.schedule.steps, by_time)

    def _agree(self, signum, processes, steps_in_row):
        now, total = time.monotonic(), self.schedule.deadline - self.begun
        elapsed = (now - self.begun) / total if total > 0 else 1.0
        row = now - self.row_begun
        old = row >= LOG_SECONDS, now - self.saved >= 60 * self.schedule.save_minutes
        agreed = processes.maximum(signum or 0, elapsed, *old, row / steps_in_row)
        self.signum, self.time_share, self.row_is_old, self.save_is_old, seconds = agreed
        self.saved, self.quick = now if self.save_is_old else self.saved, seconds < QUICK

    def due(self, steps_in_row):
        """What is Due after the step that `advance` has counted; steps_in_row: those since the last row of losses.csv."""
        schedule, over = self.schedule, self.stage_over
        save_every, eval_every = (epochs * schedule.steps_per_epoch for epochs in (schedule.save_every, schedule.eval_every))
        stop = bool(self.signum or self.time_share >= 1 or (self.step >= schedule.steps and not over))
        save = bool(stop or over or self.save_is_old or self.step % save_every == 0)
        evaluation = eval_every > 0 and not self.signum and (stop or self.step % eval_every == 0)
        row = bool(self.row_is_old) or save or evaluation or steps_in_row >= LOG_STEPS
        return Due(row, evaluation, save, stop)

    def end_row(self):
        """Count the time since `begin_row` as training; returns these seconds."""
        seconds = time.monotonic() - self.row_begun
        self.seconds += seconds
        return seconds

    def begin_row(self):
        """Begin to count the time of the next row of losses.csv; what came before it, such as a save, is no training."""
        self.row_begun = time.monotonic()

    SAVED = "seconds", "skipped", "lr_scale", "lr_decay", "first_resolution", "done", "images", "images_before"

    def state_dict(self):
        return {name: getattr(self, name) for name in self.SAVED} | {"stage": self.stage._asdict()}

    def resume(self, saved):
        """Continue from what `state_dict` saved; ValueError, KeyError or TypeError if that is impossible."""
        self.stage, self.first_resolution = Stage(**saved["stage"]), int(saved["first_resolution"])
        self.seconds, self.lr_scale, self.lr_decay, self.done = (
            float(saved[name]) for name in ("seconds", "lr_scale", "lr_decay", "done")
        )
        self.skipped, self.images_before = int(saved["skipped"]), int(saved["images_before"])
        self.step, self.skipped_in_a_row = saved["images"] // self.schedule.batch_size, 0
        sizes = 8 <= self.stage.resolution <= self.schedule.resolution and 0 <= self.stage.images <= saved["images"]
        shares = 0 < self.lr_scale <= 1 and 0 <= self.lr_decay <= 1 and 0 <= self.done <= 1
        if not (sizes and shares and 0 <= self.seconds < 1e10 and min(self.skipped, self.images_before) >= 0):
            raise ValueError("counters out of range")


def decay_factor(done, decay_share):
    """Factor of the learning rates when a share `done` of the run is over: 1, then linearly to 0 over the last `decay_share`."""
    return min(1.0, max(0.0, 1 - done) / decay_share)
