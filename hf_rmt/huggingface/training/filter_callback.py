"""`RMTCallback` removes noise from weights during fine-tuning and logs numbers about them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, Literal, Self

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_rmt.checks import check_choice
from hf_rmt.compression.execution.agreement import agreed
from hf_rmt.compression.execution.rendezvous import collective
from hf_rmt.compression.targets.selection import compressible_layers
from hf_rmt.huggingface.api import check_compressible
from hf_rmt.huggingface.compat import trainer_holding
from hf_rmt.huggingface.conclude import conclude
from hf_rmt.huggingface.config import RMTConfig
from hf_rmt.huggingface.training.anneal import Anneal
from hf_rmt.huggingface.training.annealed_filter import AnnealedFilter
from hf_rmt.huggingface.training.callback_arguments import (
    TARGETS,
    check_arguments,
    check_same,
    dosed_schedule,
    filter_config,
    resolved_schedule,
)
from hf_rmt.huggingface.training.choice import Size
from hf_rmt.huggingface.training.scheduled_filter import ScheduledFilter
from hf_rmt.huggingface.training.spectral_logs import summary
from hf_rmt.huggingface.training.trained_layers import refuse_adapter, trained_layers
from hf_rmt.huggingface.training.trainer import check_alone, check_whole_weights
from hf_rmt.report import CompressionReport

logger = logging.getLogger(__name__)

Schedule = Literal["epoch", "end"] | int


class RMTCallback(TrainerCallback, ExportableState):
    """Takes the noise out of a model's weights while `Trainer` fine-tunes it.

    By default the training goes on as usual for three fifths of its steps. By then the weights have
    learnt the task, and the last batches have shown the inputs of each layer. Now the directions
    (parts of rank one) that matter to the loss are chosen in each weight. The rest of the weight,
    its noise, is scaled down step by step and is gone after 95 % of the steps. The last steps train
    the model without noise. Half-way through the scaling and at its end, the directions are chosen
    again, because the model has learnt more. Weights keep their shape until training ends, so
    optimizer, checkpoints and resuming work as usual. Then the layers become `SpikedLinear`, and
    `trainer.save_model()` writes the compact model.

    `RMTCallback.published()` is the filter of Wu, Zhu & Li (ICML 2025): it uses only the weights
    and removes the noise at once.

    Args:
        config: Which layers to filter, and the rule that finds their ranks if no size is given.
            None: `RMTConfig(noise="drop")` with `size="auto"`. Weights are filtered at once, at the
            times of `schedule`, if the config stores the noise, has `recover_spikes`, or keeps
            single entries of a weight instead of directions.
        target: `"weights"`, or `"update"`: filter only what training added, the update W - W_start,
            and leave the pretrained part W_start alone. The model then stays dense for every value
            of `noise`, because W_start has noise too. W_start is kept on the CPU, and beside the
            checkpoints so that a run can be resumed.
        size: Share of the layers' parameters that is kept, in (0, 1]. Ranks are shared out over the
            layers by what each direction is worth to the loss. `"auto"` is the smallest share that
            keeps 99.95 % of what all directions are worth. This share is small if a task needs few
            directions, and large if the network is narrow for its task.
        anneal: When the noise begins to shrink, and when it is gone: `(0.6, 0.95)` means parts of
            the run, two integers mean update steps, and `(1, 3, "epochs")` means epochs. If both
            are equal, the noise is removed at once.
        schedule: When to filter at once, from the weights alone, instead of annealing (scaling down
            slowly): `"epoch"` after each epoch, `"end"` only at the end, or an integer n: after
            every n update steps. The first time decides how many directions a layer keeps. None:
            anneal if that is possible; if not, `"epoch"`.
        dose: A remedy for wrong labels that is applied when training ends, with `target="update"`.
            `"auto"` keeps the part of each layer's update that lies in the leading directions
            (singular vectors) of the early update, the update after a quarter of the training. What
            is learnt first is signal, and wrong labels are memorised later. If the early update has
            the singular values s, the number of leading directions is (sum s^2)^2 / sum s^4.
            `"auto"` does harm if the labels are right, or if a quarter of the training is too short
            to learn the task. So give the Trainer an `eval_dataset`, with clean or wrong labels. If
            the model gets worse on it (by accuracy, or by loss if there is no accuracy), the model
            stays as it was trained. A number in (0, 1] scales what training added to every
            parameter.
        log: What is logged under `rmt/`. True: four summary curves. `"layers"`: also the curves of
            each layer, and the number of layers in each phase (a verdict on the eigenvalues of the
            weight; see `SpectrumFit`). False: nothing. The curves of layers go to the reports
            (TensorBoard, W&B, `log_history`), but not to the progress bar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is unknown or two values contradict each other. When training begins,
            if the model is compressed, has an adapter, or is sharded (FSDP, DeepSpeed), if the
            Trainer has another `RMTCallback`, or if a run is resumed with other settings.
        RuntimeError: On every process, if filtering failed on one process. When training begins, if
            the callback has made the model compact already.

    Examples:
        >>> callback = RMTCallback()
        >>> callback.size, callback.anneal.steps(max_steps=100, epochs=2)
        ('auto', (60, 95))
        >>> RMTCallback.published().schedule
        'epoch'
    """

    def __init__(
        self,
        config: RMTConfig | Mapping[str, Any] | None = None,
        *,
        target: Literal["weights", "update"] = "weights",
        size: float | Literal["auto"] | None = None,
        anneal: Anneal | tuple[Any, ...] | None = None,
        schedule: Schedule | None = None,
        dose: float | Literal["auto"] | None = None,
        log: bool | Literal["layers"] = True,
    ) -> None:
        check_choice("target", target, TARGETS)
        self.target = target
        check_arguments(config, schedule, size, log)
        self.config = filter_config(config)
        schedule = dosed_schedule(self.target, schedule, dose)
        self.schedule = resolved_schedule(self.config, self.target, schedule, size, anneal)
        self.dose = dose
        self.anneal = Anneal.of(DEFAULT_ANNEAL if anneal is None else anneal)
        self.size: Size = "auto" if _is_default(config, size, self.schedule) else size
        self.log = log
        self.memory: dict[str, Any] = {}
        self._filter = self._made()
        self._logged_at = -1
        self._report: CompressionReport | None = None

    @classmethod
    def published(
        cls, config: RMTConfig | None = None, *, schedule: Schedule = "epoch", **options: Any
    ) -> Self:
        """Make a callback that filters as Wu, Zhu & Li (ICML 2025) do, by the weights alone.

        It removes all noise at once. In a pretrained transformer, this is two thirds of the energy
        (the squared norm of the weights), so the model is destroyed. The callback then logs a
        warning when it removes noise for the first time.

        Args:
            config: What to filter. None: `RMTConfig(noise="drop")`.
            schedule: When to remove noise: `"epoch"` after each epoch, `"end"` only at the end, or
                an integer n: after every n update steps.
            **options: Other arguments of `RMTCallback`: target, log.

        Returns:
            The callback.
        """
        return cls(config, schedule=schedule, **options)

    def state(self) -> dict[str, Any]:
        """The state of the callback that a checkpoint stores."""
        annealed = isinstance(self._filter, AnnealedFilter)
        anneal = (self.anneal.start, self.anneal.stop, self.anneal.unit)
        return {
            "args": {
                "config": self.config.to_dict(),
                "target": self.target,
                "size": self.size,
                "anneal": list(anneal) if annealed else None,
                "schedule": self.schedule,
                "dose": self.dose,
                "log": self.log,
            },
            "attributes": {"memory": self._filter.memory},
        }

    def on_init_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Refuse settings and models that cannot work, before any time is spent on them."""
        check_alone(self, state)
        check_whole_weights(self, args, state, model)
        refuse_adapter(model)

    @collective
    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Find the layers to filter; store the weights at the start, or load the saved state."""
        self.on_init_end(args, state, control, model)
        if self._report and getattr(model, "compression_report", None) is self._report:
            raise RuntimeError(
                f"RMTCallback made this {type(model).__name__} compact in an earlier training, and "
                "the optimizer of this Trainer still holds the old weights; make a new Trainer "
                "without RMTCallback to continue training the compact layers"
            )
        check_compressible(model, self.config)
        given = {key: value for key, value in self.state()["args"].items() if key != "config"}
        names = agreed(model, lambda: compressible_layers(model, self.config), self.config, given)
        trained = trained_layers(model, names)
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        saved = saved[-1] if isinstance(saved, list) else saved
        if saved:
            check_same(self.state()["args"], saved["args"])
        self._filter.stop()
        self._filter, self._logged_at = self._made(), -1
        state.stateful_callbacks.setdefault(type(self).__name__, {})  # a checkpoint may lack it
        memory = copy.deepcopy(saved["attributes"]["memory"]) if saved else None
        scheduled = isinstance(self._filter, ScheduledFilter)
        self._filter.begin(args, state, model, trained if scheduled else names, memory)
        if scheduled and self.log and self.target == "weights" and not state.global_step:
            self._log(state, control, self._filter.observe(model))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure inputs and gradients if directions (see `RMTCallback`) will be chosen soon."""
        self._filter.step_begins(state)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """If it is time, remove noise from weights after an update step, before they are saved."""
        self._log(state, control, self._filter.step_ends(args, state, control, model))

    def on_epoch_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Remove noise if an epoch stopped before its last batch; log spectra when training ends.

        A spectrum is the set of eigenvalues (squared singular values) of a weight.
        """
        self._log(state, control, self._filter.epoch_ends(state, control, model))
        last = control.should_training_stop and self._logged_at != state.global_step
        if last and self.log and isinstance(self._filter, ScheduledFilter):
            self._log(state, control, self._filter.observe(model))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save with a checkpoint what was measured to choose directions (see `RMTCallback`)."""
        self._filter.saved(args, state)

    @collective
    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Remove noise after training from the last model, or from the best one if it was loaded.

        Then make the layers compact, unless only updates of weights were filtered.
        """
        loaded_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        report = self._filter.finish(args, state, model, loaded_best=loaded_best)
        if report is not None:
            annealed = isinstance(self._filter, AnnealedFilter)
            self._report = conclude(model, self.config, report, learnt=annealed)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Remove the values of single layers from the logs before the progress bar shows them."""
        for key in set(logs) - set(summary(logs)):
            del logs[key]

    def _made(self) -> AnnealedFilter | ScheduledFilter:
        if self.schedule is None:
            return AnnealedFilter(self.config, self.anneal, self.size)
        return ScheduledFilter(self.config, self.schedule, self.target, self.dose)

    def _log(self, state: Any, control: Any, logs: dict[str, float] | None) -> None:
        """Log numbers through the Trainer, so that reports such as TensorBoard get them."""
        if not logs or not self.log:
            return
        logs = logs if self.log == "layers" else summary(logs)
        self._logged_at = state.global_step
        trainer = trainer_holding(state)
        if trainer is None:
            state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
            return
        wanted = control.should_log
        trainer.log(logs)
        control.should_log = wanted  # trainer.log resets should_log, which the step's own log needs


DEFAULT_ANNEAL = (0.6, 0.95)
"""`RMTCallback()` scales the noise down from 60 % to 95 % of the steps of a run.

Directions (parts of rank one of a weight) that are chosen early are based on a less trained model.
If noise is removed late, no steps are left to adapt. In runs of 188 steps on SST-2 with 35 % of the
parameters, the accuracy is 0.8 points higher than with (0.2, 0.8), and 0.3 points higher than with
(0.75, 1.0)."""


def _is_default(config: Any, size: Size, schedule: Any) -> bool:
    return config is None and size is None and schedule is None
