"""The training loop in a run directory: evaluation, checkpoints, exact resume, samples and metrics around it.

Every training verb goes through `fit`; they differ in the model, the batches and the objective that they hand over.
"""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

from lamoid.checkpoints.run_directory import RunDirectory
from lamoid.checkpoints.store import atomic_file
from lamoid.errors import UsageError
from lamoid.recipes.forecast import compare, forecast, remembered
from lamoid.recipes.ready import BYTES_PER_PARAMETER, Training
from lamoid.recipes.recipe import dump, say
from lamoid.recipes.resume import RECIPE_FILE, Standing, read_checkpoint, with_earlier, write_checkpoint
from lamoid.recipes.settings import FinetuneSettings, PretrainSettings
from lamoid.training.distributed import current, processes, reshard, shard
from lamoid.training.interrupt import Interrupt
from lamoid.training.loop import Progress, StepReport, train
from lamoid.training.metrics import Display, MetricsLog, peak_memory_bytes, step_record
from lamoid.training.optim import make_optimizer, make_schedule

S = TypeVar("S", bound=PretrainSettings | FinetuneSettings)


def fit_in_directory(recipe: S, ready: Callable[[S], Training]) -> int:
    """Make the run of these settings ready and train it in its --out, in every process that torchrun started."""
    with (
        processes(recipe.rank_timeout_s) as world,
        RunDirectory(Path(recipe.out), keep=recipe.keep, notify=say, leads=world.leads) as directory,
    ):
        training = ready(with_earlier(recipe, directory.path))
        code = fit(training, directory)
    if training.compare is not None and world.leads and directory.steps()[-1:] == [training.settings.max_steps]:
        training.compare()
    if code == 0 and world.leads:
        say(f"the best model is in {recipe.out}; try: {training.hint}")
    return code


def fit(training: Training, directory: RunDirectory) -> int:
    """Train to the end, to the patience's end, or to a signal; returns the exit code. Goes on from the newest checkpoint."""
    world, model, form, sample = current(), training.model, training.form, training.sample
    s, identity = world.same((training.settings, training.identity))
    if identity["data"] != training.identity["data"]:
        raise UsageError("this process has read other data than the first; let all machines see the same files")
    max_steps, eval_every, sample_every = s.max_steps, s.eval_every, s.sample_every
    assert max_steps and eval_every and s.learning_rate and s.schedule and s.warmup_steps is not None
    if s.parallel == "sharded" and world.size > 1:
        shard(model, world)
        sample = None  # it walks through whole weights, which no process has
    optimizer = make_optimizer(
        model.named_parameters(),
        kind=s.optimizer,  # type: ignore[arg-type]
        eps=s.adam_eps,
        weight_decay=s.weight_decay,
    )
    predicted, seconds = forecast(training, remembered(training)), list[float]()
    directory.require_space(sum(p.numel() for p in model.parameters() if p.requires_grad) * BYTES_PER_PARAMETER)
    checkpoint = world.same(Path(s.resume) if s.resume else directory.newest())
    standing = Standing(Progress((0, 0)))
    if checkpoint is not None:
        standing = read_checkpoint(checkpoint, form, model, optimizer, identity, force=s.force, notify=directory.notify)
        directory.notify(f"going on from step {standing.progress.step:,} of {max_steps:,}")
    if world.leads:
        with atomic_file(directory.path / RECIPE_FILE) as temporary:
            temporary.write_text(dump(s), encoding="utf-8")
    display = Display(max_steps, standing.progress.step, training.counted)
    log = MetricsLog(directory.path, standing.progress.step, writes=world.leads)
    interrupted, began_at = Interrupt(), standing.progress.position
    should_stop = world.any(interrupted)

    def save(*, show: bool) -> None:
        def write(folder: Path) -> None:
            write_checkpoint(folder, form, model, optimizer, standing, identity)

        directory.save(standing.progress.step, write, show=show)

    def evaluate_and_save() -> bool:
        """Returns whether the patience is at its end."""
        result = world.same(training.evaluate(should_stop))
        reshard(model)
        standing.evaluated = result is not None
        if result is None:
            return False
        is_best = standing.best is None or result.loss < standing.best
        standing.best = result.loss if is_best else standing.best
        standing.evaluations_since_best = 0 if is_best else standing.evaluations_since_best + 1
        log.write(step=standing.progress.step, heldout_loss=result.loss, **result.figures)
        figures = "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in result.figures.items())
        best = ", the best so far" if is_best else ""
        display.note(f"step {standing.progress.step:,}: held-out loss {result.loss:.4f}{figures}{best}")
        save(show=is_best)
        return 0 < s.patience <= standing.evaluations_since_best

    def after_step(report: StepReport) -> bool:
        nonlocal began_at
        log.write(**step_record(report, standing.progress.tokens), position=began_at)
        began_at = standing.progress.position
        display.step(report)
        seconds.append(report.seconds)
        step = standing.progress.step
        if sample is not None and world.leads and sample_every and step % sample_every == 0 and step < max_steps:
            display.note(f"sample: {sample()}")
        return (step % eval_every == 0 or step == max_steps) and evaluate_and_save()

    with closing(display), closing(log), interrupted:
        if s.tensorboard:
            log.add_tensorboard()
        if not standing.evaluated:
            evaluate_and_save()
        out_of_patience = 0 < s.patience <= standing.evaluations_since_best
        if not out_of_patience:
            train(
                model,
                world.share(training.batches),
                world.join(training.objective),
                optimizer,
                schedule=make_schedule(s.schedule, s.learning_rate, s.warmup_steps, max_steps),
                max_steps=max_steps,
                progress=standing.progress,
                accumulate=s.accumulate,
                clip_norm=s.clip_norm,
                after_step=after_step,
                should_stop=should_stop,
                sum_up=partial(world.sum_up, model),
            )
        if should_stop():
            save(show=standing.best is None)
            display.note(f"stopped at step {standing.progress.step:,}; the same command goes on from there")
        for line in compare(predicted, peak_memory_bytes(), sum(seconds), len(seconds)):
            display.note(line)
    return interrupted.exit_code
