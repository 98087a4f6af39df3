from __future__ import annotations

from workbench.data.entailment import KINDS, entailment


def test_the_built_in_set_is_true_balanced_and_split_by_verb() -> None:
    splits = entailment()
    kinds = {thing: kind for kind, things in KINDS.items() for thing in things}
    verbs = {}
    for name, rows in splits.items():
        assert sorted(rows["label"]).index("not_entailment") == len(rows) / 2
        verbs[name] = {text.split()[2] for text in rows["text"]}
        for row in rows:
            said, claimed = (
                " ".join(row[key].rstrip(".").split()[3:]) for key in ("text", "text2")
            )
            assert (kinds[said] == claimed) == (row["label"] == "entailment")
    assert not verbs["train"] & verbs["dev"]
