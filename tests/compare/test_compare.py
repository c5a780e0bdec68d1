"""Pooling, pairing, labels, fairness and the verdict."""

import numpy as np
import pytest

from metarun.compare import compare
from metarun.errors import ConfigError, DataError
from metarun.report import tables
from metarun.report.runs import load
from metarun.report.statistics import mean_ci, paired
from metarun.report.verdict import verdict
from metarun.report.words import score


def compared(*folders, reference=None):
    return compare(load(list(folders)), reference)


def scores_of(folder, metric="accuracy"):
    (run,) = load([folder]).runs
    return run.scores[:, run.step]


def test_one_seed_each_is_the_plain_paired_comparison(make_run):
    maml, transfer = make_run("m"), make_run("t", "transfer")
    (section,) = compared(maml, transfer).sections
    (pair,) = section.pairs
    expected = paired(scores_of(maml), scores_of(transfer))
    assert (pair.a, pair.b, section.reference) == ("maml", "transfer", "transfer")
    assert (pair.difference, pair.ci95, pair.p_value, pair.tasks) == expected
    assert pair.advantage == pair.difference > 0
    assert pair.seeds_ci95 is None
    entry = section.entry("maml")
    assert (entry.mean, entry.ci95) == mean_ci(scores_of(maml))
    assert entry.seeds_ci95 is None
    assert entry.by_step[entry.chosen[0]["steps"]] == pytest.approx(entry.mean)


def test_three_seeds_are_pooled_by_task_and_reported_apart(sweep):
    comparison = compared(sweep)
    (section,) = comparison.sections
    maml = section.entry("maml")
    seeds = [scores_of(sweep / f"maml-s{seed}") for seed in (0, 1, 2)]
    assert (maml.mean, maml.ci95) == pytest.approx(mean_ci(np.mean(seeds, axis=0)))
    assert maml.seeds == (0, 1, 2)
    assert maml.seed_means == pytest.approx([s.mean() for s in seeds])
    means = np.array(maml.seed_means)
    assert maml.seeds_ci95 == pytest.approx(4.30265 * means.std(ddof=1) / 3**0.5, 1e-5)
    pair = section.against_reference("maml")
    first = paired(seeds[0], scores_of(sweep / "transfer-s0"))
    assert (pair.per_seed[0].difference, pair.per_seed[0].ci95) == first[:2]
    assert pair.seeds_ci95 > 0
    assert len(section.pairs) == 10
    assert all(p.p_holm >= p.p_value for p in section.pairs)
    assert [e.mean for e in section.entries] == sorted(e.mean for e in section.entries)[::-1]
    assert len(comparison.runs) == 15
    assert len(comparison.left_out) == 1


def test_pairing_shrinks_the_interval(sweep):
    (section,) = compared(sweep).sections
    pair = section.against_reference("maml")
    alone = np.hypot(section.entry("maml").ci95, section.entry("transfer").ci95)
    assert pair.ci95 < 0.5 * alone


def test_regression_turns_the_sign_of_the_advantage(make_run):
    runs = [make_run(a, a, metric="mse") for a in ("transfer", "maml", "scratch")]
    (section,) = compared(*runs).sections
    pair = section.against_reference("maml")
    assert pair.difference < 0 < pair.advantage
    assert [e.label for e in section.entries] == ["maml", "transfer", "scratch"]
    said = verdict(section)
    assert said.answer == "Yes"
    assert "lower" in said.evidence
    assert section.against_reference("scratch").advantage < 0


def test_different_tasks_are_never_paired(make_run):
    maml, transfer = make_run("m"), make_run("t", "transfer", task_list="b")
    comparison = compared(maml, transfer)
    assert [s.reference for s in comparison.sections] == ["maml", "transfer"]
    assert all(section.pairs == () for section in comparison.sections)
    (notice,) = comparison.notices
    assert "never paired: 2 sections" in notice
    assert "\n" not in notice


def test_same_hash_with_other_tasks_is_damage(make_run):
    other = make_run("t", "transfer", edit=lambda _, a: a.update(task=a["task"] + 1))
    comparison = compared(make_run("m"), other)
    assert [e.label for e in comparison.sections[0].entries] == ["maml"]
    assert "its tasks are not those of" in comparison.left_out[0].reason


@pytest.mark.parametrize("key", ["dataset", "metric"])
def test_other_data_or_metric_is_another_section(make_run, key):
    other = make_run("o", **{key: {"dataset": "omniglot", "metric": "mse"}[key]})
    assert len(compared(make_run("m"), other).sections) == 2


def test_one_run_alone_is_reported_without_pairs(make_run):
    (section,) = compared(make_run("m")).sections
    assert section.pairs == ()
    assert section.reference == "maml"
    assert verdict(section).answer == ""
    assert "nothing to compare it with" in verdict(section).evidence
    assert (section.fair, section.fairness) == (True, "")


def test_the_same_run_twice_counts_once(make_run):
    first, second = make_run("a/m"), make_run("b/m")
    comparison = compared(first, second)
    assert comparison.sections[0].entries[0].seeds == (0,)
    assert comparison.left_out[0].status == "duplicate"
    assert str(first) in comparison.left_out[0].reason


def test_settings_that_differ_name_the_methods(make_run):
    def inner(lr, steps):
        return {"algo": {"inner_lr": lr, "steps": steps}, "outer": {"clip": None}}

    runs = [make_run("a", config=inner(0.4, 3)), make_run("b", config=inner(0.1, 3))]
    runs.append(make_run("c", config=inner(0.4, 3) | {"outer": {"clip": 10.0}}))
    runs.append(make_run("d", "transfer", config=inner(9.0, 9)))
    (section,) = compared(*runs).sections
    assert {e.label for e in section.entries} == {
        "transfer",
        "maml inner_lr=0.4 outer.clip=null",
        "maml inner_lr=0.1 outer.clip=null",
        "maml inner_lr=0.4 outer.clip=10",
    }


def test_another_option_of_a_group_stands_for_all_its_keys(make_run):
    def model(name, **keys):
        return {
            "choices": {"algo": "maml", "dataset": "glyphs", "model": name},
            "model": {"_target_": f"metarun.models.{name}.{name}", **keys},
        }

    runs = [make_run("a", config=model("conv4", filters=64)), make_run("b", config=model("mlp"))]
    (section,) = compared(*runs).sections
    assert {e.label for e in section.entries} == {"maml model=conv4", "maml model=mlp"}


def test_a_setting_that_a_run_does_not_have_is_not_said_of_it(make_run):
    algo = {"_target_": "metarun.algorithms.maml.maml", "inner_lr": 0.4}
    runs = [
        make_run(str(number), config={"algo": algo | {"estimator": estimator}})
        for number, estimator in enumerate(["adjoint", {"last": 1}, {"last": 2}])
    ]
    (section,) = compared(*runs).sections
    said = {"maml estimator=adjoint", "maml estimator.last=1", "maml estimator.last=2"}
    assert {e.label for e in section.entries} == said


def test_seed_name_and_hardware_do_not_name_methods(make_run):
    runs = [
        make_run("a", config={"hardware": {"threads": 1, "dtype": "float32"}, "name": "a"}),
        make_run("b", seed=1, config={"hardware": {"threads": 2, "dtype": "float32"}}),
    ]
    assert [e.label for e in compared(*runs).sections[0].entries] == ["maml"]


def test_precision_is_a_setting_like_any_other(make_run):
    before = {"hardware": {"dtype": "float32"}}  # a run of before there was the setting
    rounded = {"hardware": {"dtype": "float32", "precision": "bf16"}}
    runs = [make_run("full", config=before), make_run("rounded", config=rounded)]
    (section,) = compared(*runs).sections
    assert {e.label for e in section.entries} == {"maml precision=full", "maml precision=bf16"}


def test_reference_by_default_by_name_and_by_algorithm(make_run, sweep):
    assert compared(sweep, reference="scratch").sections[0].reference == "scratch"
    no_transfer = [make_run("m"), make_run("s", "scratch")]
    assert compared(*no_transfer).sections[0].reference == "scratch"
    variants = [make_run(f"v{lr}", config={"algo": {"lr": lr}}) for lr in (1, 2)]
    assert compared(*variants, reference="maml lr=2").sections[0].reference == "maml lr=2"
    with pytest.raises(ConfigError, match=r"is one of maml lr=., maml lr=.; give it whole"):
        compared(*variants, reference="maml")


def test_a_reference_that_took_no_part_is_refused_with_the_nearest(sweep):
    with pytest.raises(ConfigError, match=r"reference=trasfer: .*did you mean transfer\?") as error:
        compared(sweep, reference="trasfer")
    assert "\n" not in str(error.value)


def test_nothing_usable_is_an_error_that_gives_the_reasons(make_run):
    bad = make_run("m", edit=lambda o, _: o.update(status="diverged", reason="loss is NaN"))
    with pytest.raises(DataError, match="diverged, loss is NaN"):
        compared(bad)


def test_unequal_budgets_are_named_and_weaken_the_verdict(make_run):
    runs = [make_run("s", "scratch"), make_run("t", "transfer"), make_run("m", budget=2000)]
    (section,) = compared(*runs).sections
    assert not section.fair
    assert section.fairness == (
        "Not the same budget: maml (2,000 meta-steps) against 1,000 meta-steps for the rest."
    )
    assert "not a fair contest" in verdict(section).cost


def test_equal_budgets_are_said_to_be_equal(sweep):
    (section,) = compared(sweep).sections
    assert section.fair
    assert section.fairness == "The same budget for every method: 1,000 meta-steps."
    assert section.notices == ()


def test_whatever_else_differs_is_noticed(make_run):
    def other(outcome, _):
        outcome.update(normalisation="none", model="resnet12")
        outcome["hardware"]["device"] = "cuda"
        outcome["divergence"]["skipped_steps"] = 3

    runs = [make_run("m", tasks=50), make_run("t", "transfer", seed=1, tasks=50, edit=other)]
    (section,) = compared(*runs).sections
    text = " ".join(section.notices)
    for expected in (
        "Normalisation: not the same for all: batch, transductive (maml); none (transfer).",
        "Model: not the same for all: conv4 (maml); resnet12 (transfer).",
        "Training seeds: not the same for all: 0 (maml); 1 (transfer).",
        "seconds do not compare",
        "transfer: 3 skipped steps while training.",
        "Only 50 test tasks",
    ):
        assert expected in text


def test_verdicts(make_run):
    maml, transfer, imaml = make_run("m"), make_run("t", "transfer"), make_run("i", "imaml")
    (section,) = compared(maml, transfer, imaml).sections
    said = verdict(section)
    assert said.question == "Is the meta-learned start better than the pre-trained one?"
    assert said.answer == "Yes"
    assert "p < 0.001" in said.evidence
    assert said.cost.startswith("It took 3.8 times the compute (11.0 TFLOP against 2.9 TFLOP)")
    (section,) = compared(maml, imaml, reference="maml").sections
    assert verdict(section).question == "Is imaml better than maml?"
    assert verdict(section).answer == "No"


def test_no_difference_gets_no_verdict(make_run):
    def same(outcome, _):
        outcome.update(algo="transfer")

    (section,) = compared(make_run("a", "maml"), make_run("b", "maml", edit=same)).sections
    assert verdict(section).answer == "Not clear"
    assert section.pairs[0].p_value == 1.0
    assert "the same compute" in verdict(section).cost


def test_families_and_clusters_are_shown_where_there_are_some(make_run):
    modes = ("sinusoid", "line", "quadratic")
    runs = [make_run(a, a, metric="mse", modes=modes) for a in ("maml", "clustered", "transfer")]
    (section,) = compared(*runs).sections
    (run,) = load([runs[0]]).runs
    assert section.modes == modes
    expected = [run.scores[run.mode == m, run.step].mean() for m in range(3)]
    assert section.entry("maml").per_mode == pytest.approx(expected)
    rows = [run.scores[run.mode == m, run.step] for m in range(3)]
    half = [1.96 * own.std(ddof=1) / len(own) ** 0.5 for own in rows]
    assert section.entry("maml").ci95_per_mode == pytest.approx(half)
    (told,) = [row for row in tables.families(section).rows if row[0] == "maml"]
    assert told[1:] == tuple(map(score, expected, half, ["mse"] * 3))
    assert all(" ± " in cell for cell in told[1:])
    assert section.entry("maml").clusters is None
    clusters = section.entry("clustered").clusters
    assert (clusters["purity"], clusters["nmi"], clusters["ari"]) == (0.9, 0.81, 0.79)
    assert sum(clusters["usage"][0]) == pytest.approx(1)


def test_curves_of_unequal_length_are_cut_to_the_shorter_seed(make_run):
    runs = [make_run("a", steps=10), make_run("b", seed=1, steps=5)]
    (section,) = compared(*runs).sections
    assert len(section.entries[0].by_step) == 6
