"""The documentation's numbers match the shipped results."""

import json
import re
import shlex

import pytest
import yaml
from helpers import ROOT
from shipped import (
    AGAIN,
    BENCH_ROWS,
    COLUMNS,
    IMAGE_REGIMES,
    LANGUAGE_MODEL,
    REGIMES,
    RESULTS,
    TRUE,
    TRUE_REGIMES,
    TUNED_REGIMES,
    bench_rows,
    headroom_rows,
    image_rows,
    learning_rows,
    target_rows,
    tried_rows,
    true_results,
    tuned_results,
    tuned_rows,
    worth_rows,
)

from trl_credit.bench.baselines import baselines
from trl_credit.bench.served import served_methods
from trl_credit.bench.true.report import sentences_of
from trl_credit.comparison.plan import parse_methods, read_recipe
from trl_credit.statistics.paired import paired


TEXT = (ROOT / "docs" / "choosing.md").read_text()
CERTAINTY = (ROOT / "docs" / "certainty.md").read_text()
SECTION = TEXT.partition("## Where the weight goes: CreditBench")[2].partition("\n## ")[0]


def test_tables_are_those_of_the_results():
    rows = [
        *headroom_rows(),
        *worth_rows(),
        *tuned_rows(),
        *target_rows(),
        *learning_rows(),
        *image_rows(),
        *bench_rows(),
    ]
    for row in rows:
        assert row in TEXT.splitlines(), row
    for row in tried_rows():
        assert row in CERTAINTY.splitlines(), row


def test_every_method_of_the_benchmark_has_a_row():
    """What is scored today, as far as the shipped run goes, and whatever it left out is said."""
    bench = json.loads((RESULTS / "bench" / "bench.json").read_text())
    assert {label for label, _ in BENCH_ROWS} == set(bench["scores"])
    served, left_out = served_methods("a later policy")
    assert bench["settings"]["methods"] == list(served)
    assert set(bench["baselines"]) == {*baselines(), "shuffled gcpo"}
    for name, reason in left_out.items():
        assert f"No {name}: it {reason}." in bench["notes"]
        assert f"`{name}`" in SECTION, name
    assert not re.search(r"/(tmp|work|home|root)/", (RESULTS / "bench" / "bench.json").read_text())


def test_no_other_tables_of_numbers():
    numbers = [line for line in TEXT.splitlines() if line.startswith("|") and re.search(r"\d\.\d\d\d", line)]
    assert len(numbers) == len(REGIMES) + 1 + len(BENCH_ROWS) + len(image_rows()) - 2 + 2 * len(tuned_rows()) - 4


@pytest.mark.parametrize("regime", [*REGIMES, *IMAGE_REGIMES])
def test_results_are_of_the_recipes(regime):
    """At least ten seeds of every method, made by the command that stands beside them from the recipe as it is."""
    comparison = json.loads((RESULTS / regime / "comparison.json").read_text())
    recipe, section = read_recipe(ROOT / "recipes" / "compare" / f"{regime}.yaml")
    methods, _ = parse_methods(section["methods"])
    made = [m.credit | ({"settings": m.settings} if m.settings else {}) for m in methods]
    assert [(m["label"], m["credit"]) for m in comparison["methods"]] == [
        (m.label, credit) for m, credit in zip(methods, made, strict=True)
    ]
    assert all(len(m["seeds"]) >= 10 and not m["missing"] for m in comparison["methods"])
    for name in (
        "max_steps",
        "learning_rate",
        "num_generations",
        "per_device_train_batch_size",
        "generated_dataset_config",
    ):
        assert comparison["settings"].get(name) == recipe.get(name), name
    command = shlex.split(comparison["command"])
    assert command[:4] == ["trl-credit", "compare", "--config", f"recipes/compare/{regime}.yaml"]
    assert not re.search(r"/(tmp|work|home|root)/", (RESULTS / regime / "comparison.json").read_text())


def test_claims_hold():
    """The sentences of the summary, where the results can say."""
    verdicts = {}
    for regime in REGIMES:
        comparison = json.loads((RESULTS / regime / "comparison.json").read_text())
        for row in comparison["differences"]:
            if row["quantity"] == "mean_reward":
                verdicts[regime, row["label"]] = row["verdict"]
    assert "better" not in verdicts.values()
    assert all(verdicts[regime, "dgpo adaptive"] == "worse" for regime in REGIMES)
    again = json.loads((RESULTS / AGAIN / "comparison.json").read_text())
    assert not {*again["seeds"]} & {*json.loads((RESULTS / "long" / "comparison.json").read_text())["seeds"]}
    assert {label for _, label in verdicts} == set(COLUMNS)


def times(regime: str, label: str) -> float:
    """How many times as many completions a method is worth."""
    return 1 / true_results(regime)["gradients"]["methods"][label]["share"]["mean"]


def below(regime: str, label: str, other: str) -> float:
    """Standard errors by which a method's cosine is below another's, of unpaired ones."""
    rows = true_results(regime)["gradients"]["methods"]
    own, more = rows[label]["cosine"], rows[other]["cosine"]
    return (more["mean"] - own["mean"]) / (own["stderr"] ** 2 + more["stderr"] ** 2) ** 0.5


def surely(regime: str, label: str) -> int:
    """1 or -1 if the cosine is above or below uniform's beyond noise, else 0."""
    row = true_results(regime)["gradients"]["methods"][label]["cosine"]
    return 0 if row["p_holm"] >= 0.05 else 1 if row["difference"]["mean"] > 0 else -1


def test_claims_about_the_truth_hold():
    """The sentences about gradients in the summary and the two sections below it."""
    summary, words = (" ".join(part.split()) for part in (TEXT.partition("## Choosing")[0], TEXT))
    oracle = [true_results(regime)["gradients"]["methods"]["oracle"]["share"] for regime in TRUE_REGIMES]
    told = [f"{1 / share['mean']:.0f} ({1 / share['high']:.2g} or more)" for share in oracle]
    assert (
        f"worth {told[0]} times as many completions with irrelevant letters and {told[1]} times as many without"
        in summary
    )
    assert all(share["low"] <= 0 for share in oracle)
    true = {regime: true_results(regime)["gradients"]["methods"][TRUE]["cosine"] for regime in TRUE_REGIMES}
    assert true["letters"]["difference"]["low"] > 0 > true["plain"]["difference"]["low"]
    assert f"worth {times('letters', TRUE):.1f} times as many where half of the tokens decide nothing" in summary
    told = [f"{times('letters', label):.1f}" for label in ("certainty", "gcpo + certainty")]
    plain = [f"{times('plain', label):.2g}" for label in ("certainty", "gcpo + certainty")]
    assert f"worth {told[0]} and {told[1]} times as many completions with irrelevant letters" in summary
    assert f"{plain[0]} and {plain[1]} times as many without" in summary
    assert all(surely(r, label) == 1 for r in TRUE_REGIMES for label in ("certainty", "gcpo + certainty", "oracle"))
    assert f"worth {times('letters', 'gcpo'):.1f} times as many" in summary
    assert (surely("letters", "gcpo"), surely("plain", "gcpo")) == (1, 0)
    assert f"**OTB helps where all tokens decide**: it is worth {times('plain', 'otb'):.0f} times as many" in summary
    assert f"decide nothing, it is worth {times('letters', 'otb'):.1f} times as many, and its" in summary
    alike = [times("letters", label) for label in ("certainty", "mean_share share=0.5", TRUE)]
    assert "are worth {:.1f}, {:.1f} and {:.1f} times as many completions; in training".format(*alike) in summary
    for regime in TRUE_REGIMES:
        found = true_results(regime)
        assert sentences_of(found) == found["sentences"]
    worse = [times(regime, label) for regime in TRUE_REGIMES for label in ("rlsd", "delta")]
    assert all(surely(regime, label) == -1 for regime in TRUE_REGIMES for label in ("rlsd", "delta"))
    assert f"({min(worse):.2f} to {max(worse):.2f})" in summary
    assert true_results("letters")["gradients"]["methods"]["forking"]["cosine"]["high"] < 0.01
    for regime, length in (("letters", 96), ("plain", 40)):
        found = true_results(regime)
        assert found["settings"]["generated_dataset_config"]["style"] == regime
        assert found["settings"]["max_completion_length"] == length
        assert found["gradients"]["completions"] == 64
        assert not re.search(r"/(tmp|work|home|root)/", json.dumps(found))
    assert "--num_prompts 128 --max_completion_length 96 # 192 prompts and 40 tokens for plain" in words
    assert [true_results(regime)["settings"]["num_prompts"] for regime in TRUE_REGIMES] == [128, 192]


def test_claims_about_baselines_hold():
    """The sentences of docs/certainty.md below its table, in their order."""
    share = "mean_share share={}".format
    small = (share(0.0), "whole_completion", "otb", "certainty")
    assert all(abs(below("plain", label, "oracle")) < 2 for label in small)
    others = [times("letters", label) for label in small[:3]]
    assert f"fall back to {min(others):.1f} to {max(others):.1f}" in " ".join(CERTAINTY.split())
    assert f"{times('letters', 'certainty'):.1f}" == "1.9"
    assert all(abs(below(regime, "odds others=False", "certainty")) < 1 for regime in TRUE_REGIMES)
    assert f"{times('letters', share(0.5)):.1f}" == "1.8"
    assert f"{times('plain', share(0.5)):.0f}" == "5"
    assert times("plain", share(0.0)) > times("plain", share(0.5))
    assert times("letters", share(0.0)) < times("letters", share(0.5))
    assert all(times(regime, "odds others=True") < times(regime, "odds others=False") for regime in TRUE_REGIMES)
    assert f"{times('letters', 'gcpo + certainty'):.1f}" == "3.2"
    assert times("letters", "gcpo + certainty") > times("letters", TRUE)
    assert f"{times('letters', 'oracle'):.0f}" == "22"


@pytest.mark.parametrize("regime", [*TUNED_REGIMES, LANGUAGE_MODEL])
def test_tuned_results_are_of_the_recipes(regime):
    comparison = tuned_results(regime)
    recipe, section = read_recipe(ROOT / "recipes" / "compare" / f"headroom_{regime}.yaml")
    methods, _ = parse_methods(section["methods"])
    credit = {m["label"]: {k: v for k, v in m["credit"].items() if k != "settings"} for m in comparison["methods"]}
    assert credit == {method.label: method.credit for method in methods}
    tuned = {m["label"]: m["credit"]["settings"] for m in comparison["methods"]}
    assert all({*tuned[method.label]} == {*method.settings, "learning_rate"} for method in methods)
    assert all(method.settings.items() <= tuned[method.label].items() for method in methods)
    assert all(len(m["seeds"]) >= 10 and not m["missing"] for m in comparison["methods"])
    tuning = comparison["tuning"]
    assert tuning["values"] == section["tune"]
    assert len(tuning["seeds"]) == section["tuning_seeds"]
    assert not {*tuning["seeds"]} & {*comparison["seeds"]}
    assert comparison["ceiling"] == section["ceiling"] == "oracle"
    assert comparison["target_reward"] == section["target_reward"]
    for name in ("max_steps", "num_generations", "per_device_train_batch_size", "generated_dataset_config"):
        assert comparison["settings"].get(name) == recipe.get(name), name
    command = shlex.split(comparison["command"])
    assert command[:4] == ["trl-credit", "compare", "--config", f"recipes/compare/headroom_{regime}.yaml"]
    assert not re.search(r"/(tmp|work|home|root)/", (RESULTS / f"headroom_{regime}" / "comparison.json").read_text())
    head = (ROOT / "recipes" / "compare" / f"headroom_{regime}.yaml").read_text().partition("model_name")[0]
    runs = len(methods) * (section["seeds"] + len(section["tune"]["learning_rate"]) * section["tuning_seeds"])
    assert f"{runs} runs of about {'four minutes' if regime == LANGUAGE_MODEL else 'a minute'}" in head


class Tuned:
    """What one regime's comparison says."""

    def __init__(self, regime: str):
        self.comparison = tuned_results(regime)
        self.methods = {m["label"]: m for m in self.comparison["methods"]}
        self.shares = {row["label"]: row for row in self.comparison["shares"]}

    def row(self, label: str, quantity: str = "mean_reward") -> dict:
        rows = self.comparison["differences"]
        (row,) = [row for row in rows if (row["label"], row["quantity"]) == (label, quantity)]
        return row

    def share(self, label: str, key: str = "share") -> str:
        return f"{100 * self.shares[label][key]:.0f}"

    def mean(self, label: str, quantity: str) -> float:
        return self.methods[label]["quantities"][quantity]["mean"]

    def pair(self, one: str, other: str, quantity: str = "mean_reward"):
        """The paired comparison of a method with one before it."""
        before, after = (self.methods[label]["quantities"][quantity]["by_seed"] for label in (one, other))
        return paired([before[seed] for seed in before], [after[seed] for seed in before])


def gcpo_beats() -> set[str]:
    """The regimes in which GCPO is above uniform beyond noise, each at its own learning rate."""
    return {regime for regime in TUNED_REGIMES if Tuned(regime).row("gcpo")["verdict"] == "better"}


def test_claims_about_long_chains_hold():
    words = " ".join(TEXT.split())
    regime = Tuned("long")
    labels = own, half, mixed = "certainty", "half the mean", "gcpo + certainty"
    assert (
        "`certainty` has {} %, half the mean {} % and `[gcpo, certainty]` {} %.** The three do not differ".format(
            *(regime.share(label) for label in labels)
        )
        in words
    )
    pairs = [(own, half), (mixed, half), (own, mixed)]
    assert all(regime.pair(*pair).p_value > 0.5 for pair in pairs)
    assert all(regime.row(label)["verdict"] == "better" for label in (*labels, "oracle"))
    gcpo, (note,) = regime.row("gcpo"), [n for n in regime.comparison["notes"] if n.startswith("Gradients, relative")]
    times = re.search(r"gcpo ([\d.]+) times as long", note).group(1)
    lead = "{} % ({} to {} %) of the oracle's lead".format(*(regime.share("gcpo", k) for k in ("share", "low", "high")))
    assert f"by {gcpo['mean']:.3f} (p = {gcpo['p_holm']:.3f}), with {lead} and {times} times" in words
    assert f"and on long chains {gcpo['mean']:.3f} above (p = {gcpo['p_holm']:.3f}), with {lead}" in words
    assert gcpo_beats() == {"long"}
    settings = regime.comparison["settings"]
    assert settings["generated_dataset_config"] == {"num_terms": 5}
    assert (settings["max_steps"], settings["per_device_train_batch_size"]) == (40, 64)
    rates = {label: method["credit"]["settings"]["learning_rate"] for label, method in regime.methods.items()}
    assert {label for label, rate in rates.items() if rate == 5e-5} == {"uniform"}
    sooner = regime.row(half, "updates_to_target")
    fewer = 100 * (1 - regime.mean(half, "updates_to_target") / regime.mean("uniform", "updates_to_target"))
    ends = [f"{regime.row(label, 'last_reward')['mean']:.3f}" for label in labels]
    assert (
        f"On long chains, half the mean needs {fewer:.0f} % fewer (p = {sooner['p_holm']:.3f}), and `certainty`, half the "
        "mean and `[gcpo, certainty]` are {}, {} and {} above uniform at the end.".format(*ends)
    ) in words
    assert all(regime.row(label, "last_reward")["verdict"] == "better" for label in labels)


def test_claims_about_the_language_model_hold():
    words, regime = " ".join(TEXT.split()), Tuned(LANGUAGE_MODEL)
    own, half, oracle = (regime.row(label) for label in ("certainty", "half the mean", "oracle"))
    share = "{} % ({} to {} %)".format(*(regime.share("certainty", key) for key in ("share", "low", "high")))
    assert (
        f"the oracle is {oracle['mean']:.3f} and `certainty` {own['mean']:.3f} above uniform (p = {oracle['p_holm']:.3f} "
        f"and {own['p_holm']:.3f})**, which is {share} of the lead. Half the mean is {half['mean']:.3f} above it; ten seeds "
        f"do not establish that (p = {half['p_holm']:.3f}), nor that it differs from `certainty` "
        f"(p = {regime.pair('half the mean', 'certainty').p_value:.2f})."
    ) in words
    assert [row["verdict"] for row in (own, half, oracle)] == ["better", "noise", "better"]
    ends = {label: regime.row(label, "last_reward") for label in ("certainty", "half the mean", "oracle")}
    assert {row["verdict"] for row in ends.values()} == {"noise"}
    assert f"the oracle's lead is gone ({ends['oracle']['mean']:.3f})".replace("-", "\u2212") in words
    rates = {label: method["credit"]["settings"]["learning_rate"] for label, method in regime.methods.items()}
    greatest = max(regime.comparison["tuning"]["values"]["learning_rate"])
    assert {label for label, rate in rates.items() if rate == greatest} == {"uniform", "half the mean", "oracle"}
    (note,) = [n for n in regime.comparison["notes"] if n.startswith("Gradients, relative")]
    cut = re.search(r", (\d+) % of the updates cut .*certainty [\d.]+ times as long, (\d+) % cut", note).groups()
    assert "{} % of uniform's updates were cut at `max_grad_norm`, {} % of `certainty`'s".format(*cut) in words
    settings = regime.comparison["settings"]
    assert (settings["max_steps"], settings["per_device_train_batch_size"], settings["num_generations"]) == (16, 16, 4)
    assert "16 updates of 16 completions, which is four prompts" in words
    assert "the best of three for it on two other seeds (`smollm2`: one); ten fresh seeds decide" in words
    summary = words.partition("## Choosing")[0]
    assert f"On SmolLM2-135M, `certainty` had {share}." in summary
    assert (
        f"On SmolLM2-135M it was {half['mean']:.3f} above uniform, which ten seeds do not establish "
        f"(p = {half['p_holm']:.3f})"
    ) in summary
    # The answer in bold
    assert all(Tuned(name).row("certainty")["verdict"] == "better" for name in (*TUNED_REGIMES, LANGUAGE_MODEL))
    assert "ahead of uniform in all five regimes in which it was trained, GCPO in one of four" in summary
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"`certainty` was ahead, too (p = {own['p_holm']:.3f}), with {share} of that gain" in readme
    assert f"`certainty` has {share} of the oracle's lead" in " ".join(CERTAINTY.split())


def test_claims_about_tuned_methods_in_the_summary_hold():
    summary = " ".join(TEXT.partition("## Choosing")[0].split())
    both = letters, plain = Tuned("letters"), Tuned("plain")
    ranges = ["{} % ({} to {} %)".format(*(r.share("certainty", k) for k in ("share", "low", "high"))) for r in both]
    assert (
        f"`certainty` had {ranges[0]} of the oracle's lead over uniform with letters and {ranges[1]} without" in summary
    )
    assert "`[gcpo, certainty]` {} % and {} %".format(*(r.share("gcpo + certainty") for r in both)) in summary
    small = Tuned("small")
    assert (
        "In batches of two prompts they had {} % and {} %".format(
            *(small.share(label) for label in ("certainty", "gcpo + certainty"))
        )
        in summary
    )
    half = [r.share("half the mean") for r in (*both, small)]
    ahead = small.pair("certainty", "half the mean")
    assert ahead.mean > 0
    assert (
        f"{half[2]} % in small batches, where it was ahead of `certainty` (p = {ahead.p_value:.3f}), and"
    ) in summary
    assert f"half the group's mean reward as the baseline of every token had {half[0]} % and {half[1]} %" in summary
    assert "At the end of these runs it was nowhere behind by more than 0.001." in summary
    for regime in map(Tuned, TUNED_REGIMES):
        assert regime.pair("certainty", "half the mean", "last_reward").mean > -0.001
    above = [f"{letters.row(label)['mean']:.3f}" for label in ("certainty", "half the mean", "true advantages")]
    assert f"their mean rewards were {above[0]}, {above[1]} and {above[2]} above uniform's" in summary
    gcpo = [r.row("gcpo") for r in both]
    assert [row["verdict"] for row in gcpo] == ["noise", "worse"]
    assert f"its mean reward was {-gcpo[0]['mean']:.3f} below uniform's with letters, which is noise" in summary
    assert f"and {-gcpo[1]['mean']:.3f} below without (p = {gcpo[1]['p_holm']:.3f})" in summary
    gcpo = small.row("gcpo")
    assert gcpo["verdict"] == "noise"
    assert f"In small batches it was {gcpo['mean']:.3f} above, which is noise" in summary
    assert f"and had {plain.share('otb')} % of the oracle's lead" in summary
    assert [r.row("otb")["verdict"] for r in both] == ["noise", "better"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    chains = Tuned("long")
    assert (
        "on long chains, where success is rare, {} % and {} %".format(
            *(chains.share(label) for label in ("certainty", "gcpo + certainty"))
        )
        in summary
    )
    half.append(chains.share("half the mean"))
    assert f"and {half[-1]} % on long chains." in summary
    own = [r.share("certainty") for r in (*both, small, chains)]
    assert f"in all four of these, with {min(own)} to {max(own)} % of what perfect credit gained" in readme
    assert f"as the baseline of every token, which costs nothing, with {min(half)} to {max(half)} %" in readme
    assert len(TUNED_REGIMES) == 4
    assert gcpo_beats() == {"long"}


def test_claims_about_tuned_methods_hold():
    """Of learning with letters and with plain sums, in the page's order."""
    words = " ".join(TEXT.split())
    both = letters, plain = Tuned("letters"), Tuned("plain")
    lead = [f"{r.row('oracle')['mean']:.3f}" for r in both]
    assert f"the oracle's mean reward is {lead[0]} above uniform's with letters and {lead[1]} without" in words
    own, mixed, half = (
        " and ".join(r.share(label) for r in both) for label in ("certainty", "gcpo + certainty", "half the mean")
    )
    assert f"has {own} % of it, `[gcpo, certainty]` {mixed} %**, all beyond noise (p below 0.02)" in words
    for regime in both:
        rows = [regime.row(label) for label in ("certainty", "gcpo + certainty", "half the mean", "oracle")]
        assert all(row["verdict"] == "better" and row["p_holm"] < 0.02 for row in rows)
    assert f"the baseline of every token has {half} %" in words
    over, same = (r.pair("half the mean", "certainty") for r in both)
    assert f"`certainty` is {over.mean:.3f} above it, which is not established: p is {over.p_value:.3f}" in words
    assert abs(same.mean) < 0.001
    assert same.p_value > 0.5
    small = Tuned("small")
    assert (
        "In small batches, half the mean has {} %, `[gcpo, certainty]` {} % and `certainty` {} %.**".format(
            *(small.share(label) for label in ("half the mean", "gcpo + certainty", "certainty"))
        )
        in words
    )
    rows = [small.row(label) for label in ("half the mean", "gcpo + certainty", "certainty", "oracle")]
    assert all(row["verdict"] == "better" for row in rows)
    over = small.pair("certainty", "half the mean")
    assert f"Half the mean is {over.mean:.3f} above it (p = {over.p_value:.3f}, of this one comparison)" in words
    assert small.row("otb")["verdict"] == "noise"
    assert f"**OTB has {plain.share('otb')} % where every token decides.**" in words
    assert [r.row("otb")["verdict"] for r in both] == ["noise", "better"]
    assert all(r.row("true advantages")["verdict"] == "noise" for r in both)
    over = letters.pair("true advantages", "certainty")
    assert f"`certainty` is {over.mean:.3f} better than they are with letters (p = {over.p_value:.3f})" in words
    lengths = []
    for regime in both:
        (note,) = [n for n in regime.comparison["notes"] if n.startswith("Gradients, relative to uniform's")]
        lengths += re.findall(r"gcpo ([\d.]+) times as long, (\d+) % cut", note)
    assert {length for length, _ in lengths} == {"2.3"}
    assert (
        "gradients are 2.3 times as long** as uniform's, so {} and {} % of its updates".format(
            *(cut for _, cut in lengths)
        )
        in words
    )
    gcpo = plain.row("gcpo")
    assert (
        f"it was {-gcpo['mean']:.3f} below uniform (p = {gcpo['p_holm']:.3f}), in small batches "
        f"{small.row('gcpo')['mean']:.3f} above, which is noise"
    ) in words
    assert abs(plain.row("uniform unscaled")["mean"]) < 0.002
    least = [
        {
            label
            for label, method in r.methods.items()
            if method["credit"]["settings"]["learning_rate"] == min(r.comparison["tuning"]["values"]["learning_rate"])
        }
        for r in (*both, small)
    ]
    assert least == [{"gcpo", "gcpo + certainty", "half the mean"}, {"gcpo"}, {"gcpo", "certainty", "uniform"}]
    assert (
        "for GCPO everywhere but on long chains, with letters for `[gcpo, certainty]` and half the mean, in small batches "
        "for `certainty` and uniform, and on long chains for uniform."
    ) in words
    settings = small.comparison["settings"]
    assert (settings["max_steps"], settings["per_device_train_batch_size"]) == (120, 16)
    assert "`small`: with letters, 120 updates of 16 completions, which is two prompts" in words


def test_claims_about_how_soon_and_how_far_hold():
    words = " ".join(TEXT.split())
    both = letters, plain = Tuned("letters"), Tuned("plain")
    small = Tuned("small")
    assert all(r.comparison["window"] * 10 == r.comparison["updates"] for r in (*both, small))

    def fewer(regime: Tuned, label: str) -> str:
        own, uniform = (regime.mean(name, "updates_to_target") for name in (label, "uniform"))
        return f"{100 * (1 - own / uniform):.0f} %"

    p = [f"{r.row('certainty', 'updates_to_target')['p_holm']:.3f}" for r in both]
    assert (
        f"`certainty` needs {fewer(letters, 'certainty')} fewer updates than uniform with letters and "
        f"{fewer(plain, 'certainty')} fewer without (p = {p[0]} and {p[1]}), half the mean {fewer(plain, 'half the mean')} "
        f"fewer without (p = {plain.row('half the mean', 'updates_to_target')['p_holm']:.3f})"
    ) in words

    def ahead(label: str) -> list[str]:
        rows = [r.row(label, "last_reward") for r in both]
        return ["{mean:.3f} ({low:.3f} to {high:.3f})".format(**row).replace("-", "\u2212") for row in rows]

    rows = [small.row(label, "updates_to_target") for label in ("gcpo + certainty", "half the mean")]
    assert (
        f"half the mean need {fewer(small, 'gcpo + certainty').split()[0]} and {fewer(small, 'half the mean')} fewer"
        in words
    )
    assert {f"{row['p_holm']:.3f}" for row in rows} == {"0.023"}
    last = {label: small.row(label, "last_reward")["verdict"] for label in small.methods if label != "uniform"}
    assert {label for label, verdict in last.items() if verdict != "noise"} == {"oracle"}
    own, half = ahead("certainty"), ahead("half the mean")
    assert f"At the end, `certainty` is {own[0]} above uniform with letters and {own[1]} without" in words
    assert f"half the mean {half[0]} and {half[1]}, the oracle" in words
    assert "the oracle {:.3f} and {:.3f}.".format(*(r.row("oracle", "last_reward")["mean"] for r in both)) in words
    assert all(r.pair("certainty", "half the mean", "last_reward").mean > 0 for r in both)


def test_claims_of_the_page_of_certainty_hold():
    page = " ".join(CERTAINTY.split())
    both = _, plain = Tuned("letters"), Tuned("plain")
    own, mixed, half = (
        " and ".join(r.share(label) for r in both) for label in ("certainty", "gcpo + certainty", "half the mean")
    )
    assert f"`certainty` has {own} % of the oracle's lead over uniform" in page
    assert f"half the mean {half} %, and OTB {plain.share('otb')} % without letters" in page
    assert f"`[gcpo, certainty]` has {mixed} %" in page
    small = Tuned("small")
    assert f"`certainty` has {small.share('certainty')} % and half the mean {small.share('half the mean')} %" in page


def test_claims_about_where_credit_goes_hold():
    """Each sentence of the section, in its order."""
    bench = json.loads((RESULTS / "bench" / "bench.json").read_text())
    said = " ".join(SECTION.split())
    drift = bench["drift"]

    def auroc(label: str, updates: str = "0") -> dict[str, float]:
        return {task: row["auroc"]["mean"] for task, row in drift[updates]["scores"][label].items()}

    def span(values) -> str:
        return f"{min(values):.3f} to {max(values):.3f}"

    assert bench["settings"]["seed"] == 0
    assert set(auroc("teacher", "80").values()) == set(auroc("dgpo").values()) == {0.5}
    beats = {
        (label, task, updates)
        for updates, entry in drift.items()
        for label, tasks in entry["verdicts"].items()
        for task, verdict in tasks.items()
        if verdict["beats"]
    }
    style = "own_error_style"
    assert beats == {("gcpo", style, n) for n in ("0", "20", "80")} | {("dgpo", style, n) for n in ("20", "80")}
    leads = [auroc("gcpo", n)[style] - auroc("surprisal", n)[style] for n in ("0", "20", "80")]
    assert 0 < leads[0] < leads[1] < leads[2]
    assert "{:.3f}, {:.3f} and {:.3f} after 0, 20 and 80 updates".format(*leads) in said
    delta, surprisal = auroc("delta"), auroc("surprisal")
    alone = ("planted_error", "length_1x", "length_2x", "length_4x", "own_error")
    assert max(abs(delta[task] - surprisal[task]) for task in alone) < 2e-3
    assert delta[style] > auroc("delta", "20")[style] > auroc("delta", "80")[style]
    assert f"({delta[style]:.3f} before training, {auroc('delta', '80')[style]:.3f} after)" in said
    assert f"at {span(auroc('teacher').values())}, without" in said
    assert f"less than most ({span(auroc('rlsd').values())})" in said
    assert max(auroc("rlsd").values()) < 0.5
    assert f"is at chance ({span(auroc('rlcsd').values())})" in said
    assert f"than the error itself ({span(auroc('otb').values())})" in said
    assert f"still wrong ({span(auroc('certainty').values())}, before training)" in said
    forking = auroc("forking")
    assert f"without style ({span([forking[task] for task in alone])})" in said
    assert f"where there are any ({forking['style']:.3f})" in said
    assert f"{forking[style]:.3f}" == f"{forking['style']:.3f}"
    for label in ("random", "shuffled gcpo"):
        assert all(abs(value - 0.5) < 0.05 for value in auroc(label).values())

    swept = {(entry["method"], entry["parameter"]): entry for entry in bench["sweeps"]}
    means = {
        key: {
            task: dict(zip(map(str, entry["values"]), [row["auroc"]["mean"] for row in rows], strict=True))
            for task, rows in entry["scores"].items()
        }
        for key, entry in swept.items()
    }
    assert all(row["full"] < row["sampled"] for row in means["gcpo", "divergence"].values())
    gate = means["dgpo", "entropy_exponent"]["style"]
    assert f"`entropy_exponent: 0` has {gate['0.0']:.3f}, the default {gate['1.0']:.3f}" in said
    for key in (("gcpo", "top_fraction"), ("gcpo", "top_mass"), ("dgpo", "temperature")):
        for row in means[key].values():
            assert max(row.values()) - min(row.values()) < 2e-3, key

    gradients = bench["gradients"]
    assert (gradients["groups"], gradients["after"], gradients["target_groups"]) == (256, 20, 1024)
    rows = gradients["methods"]

    def closer(label: str, size: str) -> bool:
        own, uniform = rows[label]["cosine"][size], rows["uniform"]["cosine"][size]
        return own["mean"] - uniform["mean"] > 2 * (own["stderr"] ** 2 + uniform["stderr"] ** 2) ** 0.5

    assert {label for label in rows if any(closer(label, size) for size in ("1", "8"))} == {
        "teacher",
        "otb",
        "certainty",
    }
    assert all(
        max(rows, key=lambda label: rows[label]["cosine"][size]["mean"]) == "certainty" for size in ("1", "8", "64")
    )
    told = {label: {size: f"{row['cosine'][size]['mean']:.3f}" for size in ("1", "8")} for label, row in rows.items()}
    own, uniform = told["certainty"], told["uniform"]
    assert f"single groups, {own['1']} against {uniform['1']}; batches of 8, {own['8']} against {uniform['8']}" in said
    assert f"`teacher` (in batches of 8, {told['teacher']['8']})" in said
    assert f"`otb` (single groups, {told['otb']['1']})" in said
    bias = {label: f"{row['bias_cosine']:.2f} ± {row['bias_cosine_stderr']:.2f}" for label, row in rows.items()}
    assert f"{bias['rlsd']} with uniform's" in said
    assert f"({bias['delta']}, {bias['forking']})" in said
    biased = {label for label, row in rows.items() if row["bias_cosine"] < 1 - 2 * row["bias_cosine_stderr"]}
    assert biased == {"rlsd", "delta", "forking"}
    relative = [f"{rows[label]['relative_variance_over_uniform']:.1f}" for label in ("random", "shuffled gcpo")]
    assert "have {} and {} times uniform's relative variance".format(*relative) in said


def test_claims_about_images_hold():
    """Each sentence of the section, in its order."""
    found = {name: json.loads((RESULTS / name / "comparison.json").read_text()) for name in IMAGE_REGIMES}
    rows = {
        name: {(row["quantity"], row["label"]): row for row in comparison["differences"]}
        for name, comparison in found.items()
    }
    means = {
        name: {m["label"]: m["quantities"]["mean_reward"]["mean"] for m in comparison["methods"]}
        for name, comparison in found.items()
    }
    two_out, equal = "uniform, 2 steps out", "pcpo equal steps"
    everything = means["digits_all_steps"]
    assert everything["uniform"] < everything["pcpo"] < everything["uniform, 1 step out"] < everything[two_out]
    assert rows["digits"]["mean_reward", "pcpo"]["verdict"] == "noise"
    assert rows["digits"]["updates_to_target", "pcpo"]["verdict"] == "better"
    updates = {m["label"]: m["quantities"]["updates_to_target"]["mean"] for m in found["digits"]["methods"]}
    assert round(100 * (1 - updates["pcpo"] / updates["uniform"])) == 9
    assert abs(means["digits"]["pcpo"] - means["digits"][two_out]) < 1e-3
    forms = ("pcpo", "pcpo ratio", "pcpo advantage")
    assert all(rows["digits_reuse"]["mean_reward", label]["verdict"] == "better" for label in forms)
    assert max(rows["digits_reuse"]["mean_reward", label]["p_holm"] for label in forms) < 0.028
    updates = {m["label"]: m["quantities"]["updates_to_target"]["mean"] for m in found["digits_reuse"]["methods"]}
    assert [round(100 * (1 - updates[label] / updates["uniform"])) for label in forms] == [5, 11, 11]
    assert means["digits_reuse"][two_out] > max(means["digits_reuse"][label] for label in forms)
    assert all(rows[name]["mean_reward", equal]["verdict"] == "better" for name in IMAGE_REGIMES)
    assert all(means[name][equal] > means[name][two_out] for name in IMAGE_REGIMES)
    distance = "at_target/frechet_distance"
    assert all(rows[name][distance, two_out]["verdict"] == "lower" for name in IMAGE_REGIMES)
    assert all(rows[name][distance, "pcpo"]["verdict"] == "noise" for name in IMAGE_REGIMES)


def test_pictures_and_links_are_there():
    for text, folder in ((TEXT, ROOT / "docs"), ((ROOT / "README.md").read_text(), ROOT)):
        for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
            assert (folder / target).exists(), target
    assert yaml.safe_load((ROOT / "recipes" / "compare" / "plain.yaml").read_text())["compare"]["seeds"] >= 10
