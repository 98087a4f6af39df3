from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard

from hf_rmt.plan import CompressionPlan, Outcome
from hf_rmt.report import CardMetadata, model_card
from hf_rmt.report.verdicts import VERDICTS
from hf_rmt.spectra import Phase
from tests.report.card.cards import CONFIG, card, front_matter, section
from tests.report.samples import dense_plan, layer_plan


def test_front_matter_carries_base_model_and_licence_over(plan):
    head = front_matter(card(plan, base_model="org/base", license="cc-by-nc-4.0"))
    assert head == {
        "library_name": "transformers",
        "license": "cc-by-nc-4.0",
        "base_model": "org/base",
        "base_model_relation": "quantized",
        "tags": ["hf_rmt", "random-matrix-theory", "compression"],
    }


def test_front_matter_quotes_what_yaml_would_misread(plan):
    assert front_matter(card(plan, license="no", base_model="1.0"))["license"] == "no"
    assert front_matter(card(plan, base_model="1.0"))["base_model"] == "1.0"


@pytest.mark.parametrize("base", [None, "/home/someone/model", "./model", "a/b/c", ""])
def test_what_is_no_hub_id_stays_out(plan, base):
    text = card(plan, base_model=base, config={**CONFIG, "base_model": base})
    assert "base_model" not in front_matter(text)
    assert "base_model_relation" not in text
    assert base is None or base == "" or base not in text


def test_what_was_done(plan):
    text = card(plan, base_model="org/base")
    assert "2 of 3 layers" in text
    assert "3 to 7 directions" in text
    assert "is stored as 8-bit integers" in text
    assert "estimates free of the noise" not in text
    assert text.count("\n# small\n") == 1


@pytest.mark.parametrize(
    ("recover", "noise", "expected"),
    [(None, "drop", True), (None, "int8", False), (True, "int8", True), (False, "drop", False)],
)
def test_recovered_spikes_are_mentioned(recover, noise, expected):
    text = card(CompressionPlan((layer_plan(noise=noise),)), config={"recover_spikes": recover})
    assert ("estimates free of the noise" in text) == expected


def test_layers_and_sizes(plan):
    text = card(plan, sizes={"before": 90_000_000, "after": 30_000_000})
    assert "| all weights in the file | 90.0 MB | 30.0 MB | 0.333 |" in section(text, "Size")
    assert "compressed layers | 32 | 10 | 0.312 |" in section(text, "Size")
    layers = section(text, "Layers")
    assert "| `blocks.0.mlp` | 100 x 200 | 7 | int8 | 10 | 25 % | 0 % | bulk+spikes |" in layers
    assert "| `blocks.1.key` | 100 x 200 | - | dense | - | 0 % | - |" in layers
    assert "nothing gained" in layers
    assert "<details>" not in layers


def test_long_tables_are_folded():
    text = card(CompressionPlan(tuple(layer_plan(f"blocks.{k}.key") for k in range(13))))
    layers = section(text, "Layers")
    assert "<summary>All 13 layers</summary>\n\n| layer" in layers
    assert layers.rstrip().split("</details>")[0].endswith("\n\n")


def test_sizes_must_be_before_and_after(plan):
    with pytest.raises(ValueError, match=r"got \['before'\]"):
        card(plan, sizes={"before": 1})


def test_picture_only_where_there_is_one(plan):
    assert "](spectrum.png)" in card(plan, picture="spectrum.png")
    assert "![" not in card(plan)


def test_loading_names_the_class_that_keeps_the_head(plan):
    loading = section(card(plan, auto_class="AutoModelForCausalLM"), "How to load it")
    assert loading.count("import AutoModelForCausalLM\n") == 2
    assert loading.count("AutoModelForCausalLM.from_pretrained(") == 2
    assert "AutoModel." not in loading
    assert "of your task" not in loading
    assert "of your task in place of `AutoModel`" in section(card(plan), "How to load it")


def ternary(name, **changes):
    return layer_plan(name, kind="ternary", noise="drop", rank=0, phase="", **changes)


def test_a_ternary_head_is_told_of_in_its_own_words():
    step = {"module": "act", "thresholds": [0.0], "heights": [0.0, 1.0]}
    text = card(CompressionPlan((ternary("pooler", step=step), ternary("out"))), config={})
    assert "The weights of 2 layers are -1, 0 and 1" in text
    assert "activations after 1 of them" in text
    assert "low-rank factors" not in text
    assert "What was lost" not in text
    assert "hf-rmt export" not in text


def test_a_step_before_a_function_is_told_of():
    step = {"function": "tanh", "thresholds": [0.0], "heights": [-1.0, 1.0], "gain": 1.0}
    step |= {"values": [-0.76, 0.76], "slopes": [0.42, 0.42]}
    text = card(CompressionPlan((ternary("dense", step=step), ternary("out"))), config={})
    assert "activations after 1 of them are steps" in text
    assert "calls its activation as a function (tanh), the step is in the layer" in text
    assert "hf-rmt export" not in text


def test_layers_compressed_in_two_ways_are_told_of_in_both():
    body = layer_plan(dropped_energy=0.1, rank=4)
    head = ternary("head", dropped_energy=0.7)
    text = card(CompressionPlan((body, head)))
    assert "2 of 2 layers" in text
    assert "(4 directions in each layer)" in text
    assert "is stored as 8-bit integers." in text
    assert "The weights of 1 layer are -1, 0 and 1" in text
    assert "lost 10 % of its squared norm" in section(text, "What was lost")
    assert "last of several compressions" in section(text, "Settings")
    assert "last of several" not in card(CompressionPlan((body, layer_plan("other"))))


def test_three_ways_of_loading_and_the_warning(plan):
    loading = section(card(plan), "How to load it")
    with_package, remote, dense = re.findall(r"```\w+\n(.*?)```", loading, re.S)
    assert "import hf_rmt" in with_package
    assert 'from_pretrained("me/small")' in with_package
    assert "trust_remote_code=True" in remote
    assert "hf_rmt" not in remote
    assert dense.startswith("hf-rmt export me/small ")
    assert "Plain loading fails" in loading


@pytest.mark.parametrize(("dropped", "much"), [(4e-3, False), (0.6, True)])
def test_fine_tuning_is_expected_where_much_was_lost(dropped, much):
    plan = CompressionPlan((layer_plan(dropped_energy=dropped), layer_plan("worst")))
    lost = section(card(plan), "What was lost")
    assert f"{50 * dropped:.3g} % of" in lost
    assert f"at most {100 * dropped:.3g} % (`{'blocks.0.key'}`)" in lost
    assert ("fine-tune" in lost) == much


def test_nothing_compressed_is_said_plainly():
    text = card(CompressionPlan((dense_plan(),)))
    assert "0 of 1 layers" in text
    assert "What was lost" not in text
    assert "## Size" not in text


def test_settings_leave_the_records_out(plan):
    settings = section(card(plan), "Settings")
    assert '"noise": "int8"' in settings
    assert "layers" not in settings
    assert "max_rank" not in settings


def test_a_setting_of_single_layers_is_on_the_card(plan):
    text = card(plan, config={**CONFIG, "noise_removal": {"encoder.query": 0.25}})
    assert '"encoder.query": 0.25' in section(text, "Settings")


@pytest.mark.parametrize(
    ("error", "cosine"),
    [(1e-7, "above 0.99999"), (0.0, "of about 1.00000"), (0.02, f"of about {0.98**0.5:.5f}")],
)
def test_a_cosine_below_one_is_not_rounded_to_one(error, cosine):
    text = card(CompressionPlan((layer_plan(rounding_error=error),)))
    assert f"a cosine {cosine})" in section(text, "What was lost")


@pytest.mark.parametrize("name", ["a\nb", "a`b", "a``b", "a|b"])
def test_a_strange_name_does_not_break_the_card(name):
    worst = layer_plan(name, dropped_energy=0.1, rounding_error=0.1)
    text = card(CompressionPlan((worst, layer_plan("plain", rounding_error=0.0))))
    rows = [line for line in section(text, "Layers").splitlines() if line]
    assert len(rows) == 4
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    lost = section(text, "What was lost")
    ticks = max(map(len, re.findall("`+", name)), default=0) + 1
    shown = name.replace("\n", "\\n")
    shown = f" {shown} " if "`" in shown else shown
    assert lost.count(f"({'`' * ticks}{shown}{'`' * ticks})") == 2


def test_weights_filtered_in_place_are_told_of():
    pruned = CompressionPlan(
        (dense_plan(outcome=Outcome.REWRITTEN, dropped_energy=0.25, nonzero=5_000),)
    )
    text = model_card(pruned, config={"method": "magnitude"})
    assert "1 stay dense, filtered in place" in text
    assert "lost 25 % of its squared norm" in text


def test_nothing_dropped_is_not_nothing_changed():
    lost = section(card(CompressionPlan((layer_plan(),))), "What was lost")
    assert "Nothing was dropped" in lost
    assert "not measured" in lost
    layers = (layer_plan("a", rounding_error=0.01), layer_plan("b", rounding_error=0.03))
    lost = section(card(CompressionPlan(layers)), "What was lost")
    assert f"differ by {100 * 0.02**0.5:.3g} % of" in lost
    assert f"{0.98**0.5:.5f}" in lost
    assert f"at most {100 * 0.03**0.5:.3g} % (`b`)" in lost
    assert "rounds it" not in card(CompressionPlan((layer_plan(noise="drop"),)))


@pytest.mark.parametrize("dropped", [-1.54e-15, 1e-16])
def test_rounding_errors_never_show_as_a_loss(dropped):
    text = card(CompressionPlan((layer_plan(dropped_energy=dropped),)))
    assert "e-1" not in text
    assert "-1" not in text


def test_sizes_come_file_first_and_name_the_share_of_the_model():
    plan = CompressionPlan((layer_plan(), dense_plan()))
    pair = {"before": 2_000_000, "after": 999}
    size = section(card(plan, sizes=pair, model_parameters=80_000), "Size")
    places = [size.index(x) for x in ("| all weights", "| bits per", "Share of the model")]
    assert "| 2.00 MB | 999 B |" in size
    assert places == sorted(places)
    assert "Share of the model covered: 25 % (the other 75 % stays as it was)." in size


def test_every_verdict_is_explained(plan):
    text = section(card(plan), "What the verdicts mean")
    assert f"- **bulk+spikes** (3 layers): {VERDICTS[Phase.SPIKED]}" in text


@pytest.mark.parametrize("processor", ["AutoTokenizer", "AutoImageProcessor"])
def test_snippets_load_what_prepares_the_inputs(plan, processor):
    text = card(plan, processor=processor, auto_class="AutoModelForCausalLM")
    loading = section(text, "How to load it")
    for snippet in re.findall(r"```python\n(.*?)```", loading, re.S):
        names = {}
        exec(snippet.replace("import hf_rmt", ""), {**FAKE_IMPORT}, names)
        assert names["tokenizer" if processor == "AutoTokenizer" else "processor"] == "me/small"
    assert "processor" not in section(card(plan), "How to load it")


class FakeTransformers:
    """Stands for every Auto class: loading returns the repository's name."""

    @staticmethod
    def from_pretrained(repo, **_):
        return repo

    def __getattr__(self, name):
        return self


FAKE_IMPORT = {
    "__builtins__": {"__import__": lambda *_: FakeTransformers(), "__build_class__": None}
}


@pytest.mark.parametrize(
    ("repo", "base", "expected"),
    [
        ("me/small", "org/base", "small"),
        (None, "org/base", "base, compressed"),
        (None, "/home/x", "Compressed model"),
    ],
)
def test_title(plan, repo, base, expected):
    text = card(plan, repo_id=repo, base_model=base)
    assert f"\n# {expected}\n" in text


def test_the_hub_reads_task_languages_data_and_metrics(plan):
    metadata = CardMetadata(
        pipeline_tag="text-classification",
        language=["en", "no"],
        datasets=["glue"],
        metrics=["f1"],
    )
    text = card(plan, metadata=metadata)
    data = ModelCard(text).data
    assert (data.pipeline_tag, data.language, data.datasets) == (
        *("text-classification", ["en", "no"], ["glue"]),
    )
    assert data.metrics == ["f1"]
    assert "pipeline_tag" not in front_matter(card(plan))


def test_a_text_for_a_list_is_refused():
    with pytest.raises(TypeError, match=r"language must be a list of texts.*\['en'\]"):
        CardMetadata(language="en")
