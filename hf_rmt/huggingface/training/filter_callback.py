"""`RMTCallback`: fine-tune with the noise filtered, and watch the spectra while it happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_rmt.compression.apply import compress_shared
from hf_rmt.compression.decision import Decision
from hf_rmt.compression.parallel import WorkResult, matrix_cost, share
from hf_rmt.compression.refilter import filter_weight, first_plan
from hf_rmt.compression.spectrum import spectrum
from hf_rmt.compression.targets import compressible_layers
from hf_rmt.huggingface.api import check_compressible
from hf_rmt.huggingface.conclude import conclude
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.training.spectral_logs import spectral_logs, without_layers
from hf_rmt.huggingface.training.start_weights import digest, load_start, save_start
from hf_rmt.huggingface.training.trainer import calling_trainer, check_alone, check_whole_weights
from hf_rmt.nn.counterparts import weight_matrix
from hf_rmt.nn.dense_matrix import set_matrix
from hf_rmt.plan import CompressionPlan, LayerPlan
from hf_rmt.settings import CompressionSettings
from hf_rmt.settings.method import method_of


class RMTCallback(TrainerCallback, ExportableState):
    """Filters the noise out of a model's weights while `Trainer` fine-tunes it.

    Each filter replaces the weights by their filtered version at their old shape, so optimizer,
    checkpoints and resuming see nothing unusual. The first filter of a layer decides how many
    directions it keeps; a layer without spikes is left alone. When training ends, after the best
    model was loaded, the layers become `SpikedLinear` as `hf_rmt.compress` makes them:
    `trainer.save_model()` then writes the compact model.

    Args:
        config: What to filter, and how the noise is stored. None: `RMTConfig(noise="drop")`.
        schedule: When: `"epoch"`, `"end"` only, or every so many update steps.
        of: `"weights"`, or `"update"`: filter what training added, W - W_start, and leave the
            pretrained part alone. The model then stays dense, whatever the noise: the weights at
            the start have noise of their own. They are kept on the CPU, and beside the
            checkpoints for a run that is resumed.
        log: Log spikes, upper edge, signal energy, stable rank and phase (0 random,
            1 bulk+spikes, 2 heavy-tailed, 3 degenerate) of what is filtered, as it is before
            each filter, at the start and at the end, under `rmt/`. Single layers reach the
            reports (TensorBoard, W&B, `log_history`), not the progress bar.

    Raises:
        TypeError: If the config is no `RMTConfig` or the schedule no name or number.
        ValueError: If `schedule` or `of` is unknown; when training begins, if the model is
            compressed, an adapter, or sharded (FSDP, DeepSpeed), the Trainer has another
            `RMTCallback`, or a run is resumed with another `of` or config.
        RuntimeError: On every process, if filtering failed on one.

    Examples:
        >>> callback = RMTCallback(RMTConfig(noise="drop", noise_removal=0.7), schedule=100)
        >>> callback.config.noise_removal
        0.7
    """

    def __init__(
        self,
        config: RMTConfig | Mapping[str, Any] | None = None,
        *,
        schedule: Literal["epoch", "end"] | int = "epoch",
        of: Literal["weights", "update"] = "weights",
        log: bool = True,
    ) -> None:
        _check_arguments(config, schedule, of)
        self.config = filter_config(config)
        self.schedule, self.of, self.log = schedule, of, log
        self.first_filter: int | None = None
        self.first_plans: dict[str, dict[str, Any]] = {}
        self.start_digest: str | None = None
        self._start: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._filtered_at = self._logged_at = -1

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback."""
        return {
            "args": {
                "config": self.config.to_dict(),
                "schedule": self.schedule,
                "of": self.of,
                "log": self.log,
            },
            "attributes": {
                "first_filter": self.first_filter,
                "first_plans": self.first_plans,
                "start_digest": self.start_digest,
            },
        }

    def on_init_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Refuse what cannot work before anything is spent on it."""
        check_alone(self)
        check_whole_weights(self, args, model)
        _refuse_adapter(model)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Find the layers; keep the start, or pick up what a checkpoint kept."""
        check_alone(self)
        check_whole_weights(self, args, model)
        _refuse_adapter(model)
        check_compressible(model, self.config)
        self._names = compressible_layers(model, self.config)
        self._filtered_at = self._logged_at = -1
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        saved = saved[-1] if isinstance(saved, list) else saved
        if saved:
            self._check_same(saved["args"])
        blank: dict[str, Any] = {"first_filter": None, "first_plans": {}, "start_digest": None}
        self.__dict__.update(saved["attributes"] if saved else blank)
        if self.of == "update":
            self._keep_start(args, model, resumed=saved is not None)
        elif self.log and state.global_step == 0:
            self._observe(state, control, model)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Filter after an update that the schedule names, before anything is saved."""
        every = self.schedule if isinstance(self.schedule, int) else None
        epoch_ends = self.schedule == "epoch" and float(state.epoch).is_integer()
        if epoch_ends or (every and state.global_step % every == 0):
            self._filter(state, control, model)

    def on_epoch_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Filter an epoch that ended before its time, and log the last spectra of all."""
        step = state.global_step
        if control.should_training_stop:
            if self.log and self._logged_at != step:
                self._observe(state, control, model)
        elif self.schedule == "epoch" and self._filtered_at != step:
            self._filter(state, control, model)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Filter the model that training leaves, be it the best or the last, and compact it."""
        loaded_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        step = (state.best_global_step or 0) if loaded_best else state.global_step
        if self.first_filter is not None and step < self.first_filter:
            self.first_filter, self.first_plans = None, {}
        if self.of == "weights":
            self._compact(model)
        elif loaded_best or self._filtered_at != step:
            self._filter(state, control, model, log=False)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Spare the progress bar, which comes after the reports, the single layers."""
        for key in set(logs) - set(without_layers(logs)):
            del logs[key]

    def _check_same(self, saved: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings than those under which the checkpoint was made."""
        found = {"of": saved["of"], **filter_config(saved["config"]).to_dict()}
        own = {"of": self.of, **self.config.to_dict()}
        for key in (key for key in own if own[key] != found[key]):
            raise ValueError(
                f"{key} must stay {found[key]!r}, which the run that is resumed began with, got "
                f"{own[key]!r}; pass that, or start anew"
            )

    def _keep_start(self, args: Any, model: nn.Module, *, resumed: bool) -> None:
        """Hold the weights at the start: the model's, or those beside the checkpoint."""
        if resumed:
            self._start = load_start(args.output_dir, self.start_digest)
            return
        weights = {name: _weight(model, name) for name in self._names}
        self._start = {
            name: weight.to("cpu", copy=True).contiguous() for name, weight in weights.items()
        }
        self.start_digest = digest(self._start)
        if args.should_save and args.save_strategy != "no":
            save_start(self._start, args.output_dir)

    def _filter(self, state: Any, control: Any, model: nn.Module, *, log: bool = True) -> None:
        """Filter all layers in place, shared out over the processes."""

        def work(name: str) -> WorkResult:
            matrix = self._matrix(model, name)
            result = self._decide(name, matrix, self.config)
            filtered = result.dense(matrix)
            plan = first_plan(result, self.config) if name not in self.first_plans else None
            return (result.fit, plan), {} if filtered is None else {"weight": filtered}

        fits, plans = {}, []
        for name, ((fit, plan), tensors) in zip(
            self._names, self._shared(model, work), strict=True
        ):
            fits[name] = fit
            if tensors:
                self._replace(model, name, tensors["weight"])
            if plan is not None:
                plans.append(plan)
        self.first_plans = self.first_plans | CompressionPlan(tuple(plans)).to_dict()
        if self.first_filter is None:
            self.first_filter = state.global_step
        self._filtered_at = state.global_step
        if self.log and log:
            self._log(state, control, spectral_logs(fits))

    def _observe(self, state: Any, control: Any, model: nn.Module) -> None:
        """Log the spectra as they are."""

        def work(name: str) -> WorkResult:
            return spectrum(self._matrix(model, name), self.config), {}

        outcomes = self._shared(model, work)
        fits = {name: fit for name, (fit, _) in zip(self._names, outcomes, strict=True)}
        self._log(state, control, spectral_logs(fits))

    def _compact(self, model: Any) -> None:
        report = compress_shared(model, self._names, self.config, decide=self._decide)
        conclude(model, self.config, report)

    def _decide(self, name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        first = self._first_plan(name)
        return filter_weight(name, weight, settings, first, of_update=self.of == "update")

    def _first_plan(self, name: str) -> LayerPlan | None:
        entry = self.first_plans.get(name)
        return None if entry is None else CompressionPlan.from_dict({name: entry}).layers[0]

    def _matrix(self, model: nn.Module, name: str) -> Tensor:
        """What is filtered: a weight, or what training added to it."""
        weight = _weight(model, name)
        return weight if self.of == "weights" else weight - self._start[name].to(weight)

    def _replace(self, model: nn.Module, name: str, matrix: Tensor) -> None:
        whole = matrix if self.of == "weights" else self._start[name].to(matrix) + matrix
        set_matrix(model.get_submodule(name), whole)

    def _shared(self, model: nn.Module, work: Any) -> Any:
        weights = [_weight(model, name) for name in self._names]
        costs = [matrix_cost(weight.shape) for weight in weights]
        return share(work, self._names, costs, device=weights[0].device)

    def _log(self, state: Any, control: Any, logs: dict[str, float]) -> None:
        """Log as the Trainer does, which hands the numbers to every report."""
        self._logged_at = state.global_step
        trainer = calling_trainer()
        if trainer is None:
            state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
            return
        wanted = control.should_log
        trainer.log(logs)
        control.should_log = wanted  # logging takes the wish for the step's own log away


def _check_arguments(config: Any, schedule: Any, of: Any) -> None:
    if config is not None and not isinstance(config, RMTConfig | Mapping):
        raise TypeError(f"config must be an RMTConfig, got {config!r}")
    if isinstance(schedule, bool) or not isinstance(schedule, str | int):
        raise TypeError(f"schedule must be 'epoch', 'end' or a number of steps, got {schedule!r}")
    if (schedule < 1) if isinstance(schedule, int) else schedule not in ("epoch", "end"):
        raise ValueError(
            f"schedule must be 'epoch', 'end' or at least 1 step, got {schedule!r}; "
            "pass schedule='end' to filter once"
        )
    if of not in ("weights", "update"):
        raise ValueError(f"of must be 'weights' or 'update', got {of!r}")


def _refuse_adapter(model: nn.Module) -> None:
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"RMTCallback filters weights that are trained, and those of this "
            f"{type(model).__name__} are frozen beneath an adapter; merge_and_unload() it first, "
            "or compress the base model and train the adapter on top: see lora_targets"
        )


def _weight(model: nn.Module, name: str) -> Tensor:
    """The weight of a layer as a matrix, without a gradient."""
    return weight_matrix(model.get_submodule(name))


def filter_config(config: RMTConfig | Mapping[str, Any] | None) -> Any:
    """The config of a filter: a mapping is one that a checkpoint's state kept.

    Raises:
        ValueError: If its method looks at no spectrum.
    """
    if config is None:
        return RMTConfig(noise="drop")
    made: Any = RMTConfig.from_dict(config) if isinstance(config, Mapping) else config
    if why := method_of(made).why_no_filter():
        raise ValueError(why)
    return made
