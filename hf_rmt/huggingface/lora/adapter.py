"""A LoRA adapter from fine-tuned weights, and its files, which PEFT loads without this package."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from safetensors.torch import save_file
from torch import Tensor

from hf_rmt.checks import check_folder
from hf_rmt.compression.calibration.low_rank import LowRankUpdate
from hf_rmt.huggingface.saving.card import hub_id
from hf_rmt.report.tables import aligned_table, markdown_table, percent, shape_text
from hf_rmt.staging import staged

PREFIX = "base_model.model."
"""The prefix that PEFT adds to a model's names in a saved adapter."""


@dataclass(frozen=True)
class ExtractedAdapter:
    """A LoRA adapter in memory: low-rank updates, and the other trained tensors.

    Attributes:
        updates: The update of each layer, as two low-rank factors. An update is what fine-tuning
            added to the weight.
        carried: Other tensors of the tuned model, such as biases and heads, by their names in the
            adapter's file.
        modules_to_save: Names of modules that are copied whole, such as new heads and norms.
        base_model: Folder or Hub id of the base model, if known.
        task_type: PEFT's name of the task, or None.
    """

    updates: tuple[LowRankUpdate, ...]
    carried: Mapping[str, Tensor] = field(repr=False)
    modules_to_save: tuple[str, ...]
    base_model: str | None
    task_type: str | None

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer's update, by the name of the layer.

        An update is what fine-tuning added to the weight. Its rank is 0 if no part of the update is
        worth the parameters that it takes.
        """
        return {update.name: update.rank for update in self.updates}

    @property
    def parameters(self) -> int:
        """Number of parameters of all low-rank factors of the adapter."""
        return sum(update.parameters for update in self.updates)

    @property
    def size(self) -> float:
        """Parameters of the low-rank factors, divided by those of the matrices that they update."""
        return self.parameters / sum(update.dense_parameters for update in self.updates)

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer: shape, rank, parameters, kept share of the update's squared norm.

        The update is what fine-tuning added to the weight of the layer.
        """
        return [
            {
                "layer": update.name,
                "shape": shape_text(update.shape),
                "rank": update.rank,
                "parameters": update.parameters,
                "energy": update.energy,
            }
            for update in self.updates
        ]

    def summary(self) -> str:
        """One sentence: the ranks, the size, and how many other parameters are copied."""
        ranks = [update.rank for update in self.updates]
        carried = sum(tensor.numel() for tensor in self.carried.values())
        return (
            f"{len(ranks)} updates at ranks {min(ranks)} to {max(ranks)}: {self.parameters} "
            f"parameters, {percent(self.size)} of the matrices; {carried} more in norms, biases "
            "and heads"
        )

    def __str__(self) -> str:
        return f"{aligned_table(self.rows())}\n\n{self.summary()}"

    def to_json(self) -> str:
        """The sizes of the adapter, and one row per layer under `layers`, as JSON text."""
        payload = {
            "base_model": self.base_model,
            "task_type": self.task_type,
            "parameters": self.parameters,
            "size": self.size,
            "carried_parameters": sum(tensor.numel() for tensor in self.carried.values()),
            "modules_to_save": self.modules_to_save,
            "layers": self.rows(),
        }
        return json.dumps(payload, indent=2)

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """Write `adapter_config.json`, `adapter_model.safetensors` and a card.

        `PeftModel.from_pretrained(base, save_directory)` loads them without this package.

        Args:
            save_directory: The folder; it is made if it does not exist.

        Raises:
            NotADirectoryError: If the path is a file or lies below a file.
            ValueError: If the name is empty.
        """
        check_folder("save_directory", save_directory)
        self._save(Path(save_directory), self.base_model)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload LoRA adapter",
    ) -> str:
        """Push the adapter. If the base model is a local folder, the pushed files do not name it.

        Args:
            repo_id: `owner/name`, or a name in the user's own account.
            private: Whether a new repository is private.
            token: Token of the Hub; the stored token by default.
            commit_message: Message of the commit.

        Returns:
            Address of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), hub_id(self.base_model), repo_id)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message
            )
        return str(commit.commit_url)

    def _save(self, folder: Path, base_model: str | None, repo_id: str | None = None) -> None:
        with staged(folder) as aside:
            self._peft_config(base_model).save_pretrained(str(aside))
            tensors = {key: value.contiguous() for key, value in self._tensors().items()}
            save_file(tensors, aside / "adapter_model.safetensors", metadata={"format": "pt"})
            self._card(hub_id(base_model), repo_id).save(aside / "README.md")

    def _peft_config(self, base_model: str | None) -> Any:
        """PEFT's config of the adapter, with a rank for each layer.

        PEFT scales an adapter by `lora_alpha` / rank. Both are equal here, so the scale is 1.
        """
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ImportError("a LoRA adapter is saved by PEFT: pip install peft") from error
        ranks = {update.name: update.rank for update in self.updates if update.rank}
        pattern = {"^" + re.escape(name): rank for name, rank in ranks.items()}
        biased = any(key.endswith(".bias") for key in self.carried)
        return LoraConfig(
            r=max(ranks.values()),
            lora_alpha=max(ranks.values()),
            rank_pattern=pattern,
            alpha_pattern=dict(pattern),
            target_modules=list(ranks),
            modules_to_save=list(self.modules_to_save) or None,
            bias="all" if biased else "none",
            task_type=self.task_type,
            base_model_name_or_path=base_model,
            inference_mode=True,
        )

    def _tensors(self) -> dict[str, Tensor]:
        tensors = dict(self.carried)
        for update in self.updates:
            name = PREFIX + update.name
            if update.rank and update.embedding:
                tensors[f"{name}.lora_embedding_A"] = update.left.T
                tensors[f"{name}.lora_embedding_B"] = update.right.T
            elif update.rank:
                tensors[f"{name}.lora_A.weight"] = update.right
                tensors[f"{name}.lora_B.weight"] = update.left
        return tensors

    def _card(self, base_model: str | None, repo_id: str | None) -> ModelCard:
        data = ModelCardData(library_name="peft", base_model=base_model, tags=["lora", "hf_rmt"])
        base, adapter = base_model or "path/to/base", repo_id or "path/to/this/folder"
        load = (
            "```python\nfrom peft import PeftModel\n\n"
            f'model = PeftModel.from_pretrained(base, "{adapter}")  # base: {base}\n```'
        )
        title = f"# {repo_id.split('/')[-1] if repo_id else 'LoRA adapter'}"
        text = (
            "Fine-tuned minus pretrained weights, extracted by hf_rmt; each layer has its own "
            f"rank. {self.summary()}."
        )
        parts = [f"---\n{data.to_yaml()}\n---", title, text, load, markdown_table(self.rows())]
        return ModelCard("\n\n".join(parts) + "\n")
