"""`bertnli tune`: a search for training options, by Optuna."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bertnli.cli.config import read_toml, run_toml
from bertnli.cli.loading import find_device
from bertnli.cli.output import state_file
from bertnli.cli.reports import print_json
from bertnli.cli.train import Job, prepare
from bertnli.cli.training_run import Run
from bertnli.data.arguments import nearest
from bertnli.data.extras import from_extra
from bertnli.data.html import table
from bertnli.inference.predict import NotFiniteError
from bertnli.report.page import Section
from bertnli.runtime import distributed
from bertnli.training.callbacks import Callback
from bertnli.training.history import LOWER_IS_BETTER, Evaluation
from bertnli.training.loop import fit
from bertnli.training.options import TrainingOptions

_OWN = ("search", "trials", "timeout")  # options of this command that `train` has not


def tune(args: SimpleNamespace) -> None:
    optuna = _import_optuna()
    if distributed.rank_and_size()[1] > 1:
        raise ValueError("tune runs in one process; its trials may run on one GPU each with --device")
    space = read_space(args.search, args.options)
    job = prepare(args)
    if job.dev_data is None:
        raise ValueError("tune needs dev data (--dev) to compare trials by")
    if args.overwrite and not args.resume:
        state_file(args).unlink(missing_ok=True)
    metric = args.metric or job.model.metric
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(state_file(args))))
    study = optuna.create_study(
        storage=storage, study_name="bertnli", load_if_exists=True,
        direction="minimize" if metric in LOWER_IS_BETTER else "maximize",
    )  # fmt: skip
    done = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=args.seed + done)  # other trials than before
    deadline = math.inf if args.timeout is None else time.monotonic() + 60 * args.timeout
    for _ in range(args.trials - done):
        if time.monotonic() >= deadline:
            break
        study.optimize(lambda trial: _try(args, job, space, trial), n_trials=1, catch=NotFiniteError)
        _print_trial(args, study.trials[-1])
    _print_table(args, study, metric)


def _import_optuna() -> Any:
    with from_extra("tune", "bertnli tune"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _try(args: SimpleNamespace, job: Job, space: dict[str, Any], trial: Any) -> float:
    """Train with the options of a trial; its best dev score. A run that is the best so far is written to --output."""
    import optuna

    found = {name: _suggest(trial, name, values) for name, values in space.items()}
    model = copy.deepcopy(job.model)
    evaluations: list[Evaluation] = []

    def prune(evaluation: Evaluation) -> None:
        evaluations.append(evaluation)
        trial.report(evaluation.score, len(evaluations))
        if trial.should_prune():
            raise optuna.TrialPruned

    history = fit(
        model, job.train_data, job.dev_data, args.options.changed(found), device=find_device(args.device),
        progress=not args.quiet, callbacks=[Callback(on_eval=prune)],
    )  # fmt: skip
    kept = history.best if args.keep_best else history.evaluations[-1]
    if kept is None or math.isnan(kept.score):
        raise NotFiniteError(f"dev {evaluations[0].metric} is undefined")
    before = [t.value for t in trial.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])]
    lower = kept.metric in LOWER_IS_BETTER
    if all(kept.score < score if lower else kept.score > score for score in before):
        params = {name: value for name, value in args.params.items() if name not in _OWN} | found
        Run(
            SimpleNamespace(**vars(args) | {"params": params, "json": False}), model, job.tokenizer, history, job.dev,
            job.dev_data, [_section(trial.study, trial.number)], config=run_toml("train", params),
        ).save()  # fmt: skip
    return kept.score


# ---- ranges ---------------------------------------------------------------------------------------------------------


def read_space(path: Path, options: TrainingOptions) -> dict[str, Any]:
    """What the table [search] of a TOML file says of each option: {"low", "high", "log"} or a list of values.

    Raises ValueError naming the file for an option that there is not, for one that no trial can have, and for a table
    without low and high.
    """
    try:
        found = read_toml(path.read_text(encoding="utf-8"))
        space = found.pop("search", None)
        if not isinstance(space, dict) or not space or found:
            raise ValueError(
                "expected one table [search] of options, such as lr = {low = 1e-5, high = 1e-3, log = true}"
            )
        known = [field.name for field in fields(TrainingOptions) if field.name != "seed"]
        for name, values in space.items():
            if name not in known:
                raise ValueError(f"training has no option {name!r}; {nearest(name, known, 'options')}")
            for value in _ends(name, values):
                options.changed({name: value})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return space


def _ends(name: str, values: Any) -> Iterable[Any]:
    """The values to check: all of a list, the ends of a range."""
    if isinstance(values, list) and values:
        return values
    if not isinstance(values, dict) or not {"low", "high"} <= set(values) <= {"low", "high", "log"}:
        raise ValueError(f"{name} must be a list of values, or {{low = ..., high = ..., log = true}}; found {values!r}")
    low, high, log = values["low"], values["high"], values.get("log", False)
    if not isinstance(log, bool) or any(
        isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)
    ):
        raise ValueError(f"{name}: low and high must be numbers, log true or false; found {values!r}")
    if not low <= high or (log and low <= 0):
        raise ValueError(f"{name}: low must be at most high, and above 0 with log; found {values!r}")
    return low, high


def _suggest(trial: Any, name: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    low, high, log = values["low"], values["high"], values.get("log", False)
    whole = isinstance(low, int) and isinstance(high, int)
    return (trial.suggest_int if whole else trial.suggest_float)(name, low, high, log=log)


# ---- results --------------------------------------------------------------------------------------------------------


def _print_trial(args: SimpleNamespace, trial: Any) -> None:
    state = trial.state.name.lower()
    print_json(args, {"trial": trial.number + 1, "state": state, "score": trial.value, **trial.params})
    shown = state if trial.value is None else f"{trial.value:.4f}"
    print(f"trial {trial.number + 1}: {shown}, {_shown(trial.params)}", flush=True)


def _shown(params: dict[str, Any]) -> str:
    return ", ".join(f"{name} {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in params.items())


def _ranked(study: Any) -> list[Any]:
    """The trials that ended, the best first; then those that were pruned or failed."""
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    complete = [trial for trial in trials if trial.value is not None and trial.state.name == "COMPLETE"]
    return sorted(complete, key=lambda trial: sign * trial.value) + [t for t in trials if t not in complete]


def _print_table(args: SimpleNamespace, study: Any, metric: str) -> None:
    trials = _ranked(study)
    if not trials or trials[0].state.name != "COMPLETE":
        raise ValueError(f"none of {len(trials)} trials ended with a dev {metric}: widen the ranges, or lower lr")
    print(f"{'trial':>5}  {metric:>10}  options")
    for trial in trials:
        score = f"{trial.value:.4f}" if trial.state.name == "COMPLETE" else trial.state.name.lower()
        print(f"{trial.number + 1:5}  {score:>10}  {_shown(trial.params)}")
    best = trials[0]
    print_json(args, {"best": best.number + 1, "score": best.value, **best.params, "output": str(args.output)})
    print(f"checkpoint, run.toml and report.html of trial {best.number + 1}: {args.output}")


def _section(study: Any, number: int) -> Section:
    """The trials before this one, for the report of its run."""
    trials = [trial for trial in _ranked(study) if trial.number != number]
    names = sorted({name for trial in trials for name in trial.params})
    rows = [[t.number + 1, t.state.name.lower(), t.value, *(t.params.get(name) for name in names)] for t in trials]
    note = f"<p>This run is that of trial {number + 1}, better than those before it.</p>"
    return Section("Search", note + (table(["trial", "state", "score", *names], rows) if rows else ""))
