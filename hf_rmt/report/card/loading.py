"""The section of a model card (README.md) about loading a compressed model."""

from __future__ import annotations


def snippet(repo: str, auto_class: str, processor: str | None, argument: str = "") -> str:
    """Lines of Python that load the model and, if there is one, its tokenizer or processor."""
    names = ", ".join(filter(None, [auto_class, processor]))
    lines = [
        f"from transformers import {names}",
        "",
        f'model = {auto_class}.from_pretrained("{repo}"{argument})',
    ]
    if processor:
        name = "tokenizer" if processor == "AutoTokenizer" else "processor"
        lines.append(f'{name} = {processor}.from_pretrained("{repo}")')
    return "\n".join(lines)


def loading_section(repo: str, auto_class: str, processor: str | None, *, exports: bool) -> str:
    """The section on the ways to load the model, and on why plain loading fails.

    Args:
        repo: Hub id or folder.
        auto_class: The Auto class that loads the model.
        processor: The Auto class of the tokenizer or processor; None if there is none.
        exports: Whether the model can be turned into a plain dense one.

    Returns:
        The section.
    """
    task = ""
    if auto_class == "AutoModel":
        task = "Use the Auto class of your task in place of `AutoModel`.\n\n"
    export = f"""To load it anywhere, turn it into dense weights once:

```bash
hf-rmt export {repo} dense
```

"""
    return f"""## How to load it

With the package (`pip install hf_rmt`):

```python
import hf_rmt  # registers the quantization method "rmt"
{snippet(repo, auto_class, processor)}
```

Without the package, by the code in this repository. Read that code first:

```python
{snippet(repo, auto_class, processor, ", trust_remote_code=True")}
```

{export if exports else ""}{task}> **Plain loading fails, by design.** Without the package
> and without `trust_remote_code=True`, transformers raises an error instead of starting from
> random weights. Do not silence it with `ignore_mismatched_sizes=True`: the layers would then
> be random."""
