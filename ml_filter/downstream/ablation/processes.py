"""Train several models at the same time, each in a process with one thread, or one for each GPU.

One thread for each model, so that its weights do not depend on the number of cores.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized

from ml_filter.downstream.ablation.config import TrainingConfig
from ml_filter.downstream.ablation.training import TrainedModel, TrainingJob, train_model
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.device import choose_device
from ml_filter.progress import progress
from ml_filter.scoring.cores import usable_cores

_POLL_S = 1.0
_steps: Synchronized[int]
"""In a worker: the steps that all workers have done, for the progress of the parent."""


def devices_and_workers(config: TrainingConfig) -> tuple[list[str], int]:
    """The devices that models take turns with, and how many models to train at once.

    Raises:
        ConfigError: this machine does not have the device.
    """
    import torch

    device = choose_device(config.device)
    if device.type != "cuda":
        return [str(device)], config.workers or (usable_cores() if device.type == "cpu" else 1)
    several = config.device in ("auto", "cuda")
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if several else [str(device)]
    return devices, config.workers or len(devices)


def train_models(jobs: Sequence[TrainingJob], workers: int) -> Iterator[TrainedModel]:
    """Train the models in this order, with one worker in this process; yields each when it is finished.

    Raises:
        InputError: a process died.
        ConfigError: the device has too little memory, or a model has diverged.
    """
    if not jobs:
        return
    if workers == 1:
        yield from _train_here(jobs)
        return
    context = multiprocessing.get_context("spawn")
    steps: Synchronized[int] = context.Value("q", 0)
    executor = ProcessPoolExecutor(workers, context, _start_worker, (steps,))
    try:
        with progress("Training", sum(job.steps for job in jobs), lambda: f"{len(jobs)} models") as bar:
            waiting: set[Future[TrainedModel]] = {executor.submit(_train, job) for job in jobs}
            while waiting:
                done, waiting = wait(waiting, _POLL_S, FIRST_COMPLETED)
                bar.advance(steps.value - bar.done)
                for future in done:
                    yield future.result()
    except BaseException as error:
        for process in list((executor._processes or {}).values()):  # they have their checkpoints; none is waited for
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "a process that trains a model died, often because memory ran out; run the same command again to "
                "resume, with fewer workers"
            ) from error
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _train_here(jobs: Sequence[TrainingJob]) -> Iterator[TrainedModel]:
    import torch

    threads = torch.get_num_threads()
    with progress("Training", sum(job.steps for job in jobs), lambda: f"{len(jobs)} models") as bar:
        for job in jobs:
            torch.set_num_threads(1)
            try:
                model = _train_on(job, bar.advance)
            finally:
                torch.set_num_threads(threads)
            yield model


def _start_worker(steps: Synchronized[int]) -> None:
    global _steps  # noqa: PLW0603 - an initializer has no other way to pass it on
    _steps = steps
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train(job: TrainingJob) -> TrainedModel:
    return _train_on(job, _count)


def _train_on(job: TrainingJob, advance: Callable[[int], None]) -> TrainedModel:
    import torch

    try:
        return train_model(job, advance)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"{job.device} has too little memory for models of depth {job.dial.depth}; use a smaller depth, or fewer "
            "workers"
        ) from None


def _count(steps: int) -> None:
    with _steps.get_lock():
        _steps.value += steps
