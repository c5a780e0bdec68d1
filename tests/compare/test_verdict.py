"""The verdict: which comparisons its p stands for, and how often it is wrong by chance."""

import math
from pathlib import Path

import numpy as np
import pytest

from metarun.compare import compare
from metarun.report.markdown import document
from metarun.report.pairing import section
from metarun.report.runs import Run, load
from metarun.report.statistics import holm
from metarun.report.verdict import verdict

PRE_TRAINED = ("transfer", "baselinepp", "logreg", "centroid", "an outsider's")
STARTS = dict.fromkeys(PRE_TRAINED, "pre-trained")
METHODS, TASKS, TRIALS = 12, 60, 400
SLACK = 4 * math.sqrt(0.05 * 0.95 / TRIALS)  # four standard errors of a simulated 5 %


def run(algo, scores, seed=0):
    """A run as it is loaded, of one adaptation step, without a folder."""
    outcome = {"algo": algo, "dataset": "d", "seed": seed, "task_list": "t"}
    outcome |= {"shape": {"ways": 5, "shots": 1}, "start": STARTS.get(algo, "meta-learned")}
    task = np.arange(len(scores))
    return Run(Path(algo), outcome, {}, "accuracy", 0, task, scores[:, None], np.zeros_like(task))


def sections(rng, names, better=0.0):
    """Yield sections of equal methods; the last but the reference is better by so much."""
    for _ in range(TRIALS):
        scores = 0.6 + rng.normal(0, 0.15, TASKS) + rng.normal(0, 0.05, (len(names), TASKS))
        scores[-2] += better
        yield section([run(a, s) for a, s in zip(names, scores, strict=True)], None)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["transfer", "best of all"])
def test_a_verdict_on_equal_methods_is_seldom_wrong(reference):
    names = [f"m{i}" for i in range(METHODS)] + [reference]
    cried = alone = 0
    for one in sections(np.random.default_rng(7), names):
        said = verdict(one)
        best = next(e for e in one.entries if e.label != one.reference)
        cried += said.answer != "Not clear"
        alone += one.against_reference(best.label).p_value < 0.05
    assert cried / TRIALS <= 0.05 + SLACK
    if reference == "transfer":
        assert alone / TRIALS > 0.05 + SLACK  # control: the best of twelve, unadjusted


@pytest.mark.slow
def test_a_verdict_does_not_pay_for_pairs_that_it_does_not_speak_of():
    names = [*(f"m{i}" for i in range(METHODS)), "transfer"]
    found = all_pairs = 0
    for one in sections(np.random.default_rng(8), names, better=0.035):
        pair = one.against_reference(f"m{METHODS - 1}")
        found += verdict(one).answer == "Yes"
        all_pairs += pair.p_holm < 0.05
    assert found > 1.15 * all_pairs > 0.1 * TRIALS


def test_p_is_adjusted_for_the_comparisons_with_the_reference_and_says_so(sweep):
    (one,) = compare(load([sweep])).sections
    against = [p for p in one.pairs if p.b == one.reference]
    adjusted = holm([p.p_value for p in against])
    assert [p.p_holm_reference for p in against] == pytest.approx(list(adjusted))
    assert all(p.p_holm_reference is None for p in one.pairs if p.b != one.reference)
    said = "p < 0.001 after Holm's correction for 4 comparisons"
    assert said in verdict(one).evidence
    text = document(compare(load([sweep])), [])
    assert said in text
    assert "p (Holm, 10 pairs)" in text


def test_a_single_comparison_needs_no_correction(make_run):
    (one,) = compare(load([make_run("m"), make_run("t", "transfer")])).sections
    assert "(p < 0.001). " in verdict(one).evidence


@pytest.mark.parametrize(
    ("gains", "answer", "doubtful"),
    [
        ((0.2, 0.1), "Yes", True),  # Student's interval over two seeds is wide
        ((0.16, 0.15), "Yes", False),
        ((0.1, -0.3), "No", True),
        ((0.1, -0.1), "Not clear", False),  # says enough
        ((0.15,), "Yes", False),  # see below
    ],
)
def test_a_clear_answer_that_other_seeds_may_turn_says_so(gains, answer, doubtful):
    rng = np.random.default_rng(5)
    scores = 0.5 + rng.normal(0, 0.1, TASKS)
    runs = [
        run(algo, scores + gain * (algo == "maml") + rng.normal(0, 0.01, TASKS), seed)
        for seed, gain in enumerate(gains)
        for algo in ("maml", "transfer")
    ]
    one = section(runs, None)
    said = verdict(one)
    assert said.answer == answer
    noisy = "p below 0.05 over tasks, yet within the noise of training seeds: maml."
    assert (noisy in one.notices) == doubtful
    doubt = "Over 2 training seeds that difference is uncertain by ± "
    assert (doubt in said.evidence) == doubtful


def of_seeds(rng, **seeds):
    """Runs of methods that are equal but for the noise of training, 2 points, and of tasks."""
    scores = 0.6 + rng.normal(0, 0.1, TASKS)
    return [
        run(algo, scores + rng.normal(0, 0.02) + rng.normal(0, 0.02, TASKS), seed)
        for algo, numbers in seeds.items()
        for seed in numbers
    ]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_methods_that_differ_by_their_training_only_are_seldom_told_apart_without_a_doubt(number):
    """With one seed most answers are such: what p stands for are these two networks."""
    rng = np.random.default_rng(9)
    seeds = dict(maml=range(number), transfer=range(number))
    said = [verdict(section(of_seeds(rng, **seeds), None)) for _ in range(150)]
    clear = [one.evidence for one in said if one.answer != "Not clear"]
    sure = [text for text in clear if "is not known" not in text and "otherwise" not in text]
    assert len(clear) > 0.5 * len(said)  # control: without the doubt
    assert len(sure) <= (0.05 + 4 * math.sqrt(0.05 * 0.95 / 150)) * len(said)


@pytest.mark.parametrize(
    ("seeds", "few"),
    [
        (dict(maml=[0], transfer=[0]), "One training seed"),
        (dict(maml=[0, 1, 2], transfer=[0]), "One training seed"),
        (dict(maml=[0, 1], transfer=[2, 3]), "No training seed in common"),
    ],
)
def test_a_clear_answer_of_one_training_says_that_others_are_not_known(seeds, few):
    runs = of_seeds(np.random.default_rng(2), **seeds)
    for one in runs:
        one.scores[:] += 0.2 * (one.outcome["algo"] == "maml")
    said = verdict(section(runs, None))
    assert said.answer == "Yes"
    end = f" {few}: how far others would move that difference is not known."
    assert said.evidence.endswith(end)


def test_a_reference_that_nobody_named_pays_for_all_pairs():
    """It is the best of the test tasks, and each of the others could have been."""
    rng = np.random.default_rng(4)
    trials, wrong, unpaid = 60, 0, 0
    names = [f"m{i}" for i in range(METHODS)]
    for one, _ in zip(sections(rng, names), range(trials), strict=False):
        against = [pair for pair in one.pairs if pair.b == one.reference]
        wrong += min(pair.p_holm_reference for pair in against) < 0.05
        unpaid += min(holm([pair.p_value for pair in against])) < 0.05
    assert unpaid > 0.1 * trials  # control: paying for the comparisons with it
    assert wrong <= (0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)) * trials
    scores = rng.normal(0.6, 0.1, TASKS)
    three = [run(name, scores + gain) for name, gain in dict(a=0, b=0.1, c=0.2).items()]
    assert section(three, None).notices[0] == (
        "No reference was named and neither transfer nor scratch took part: the others are set "
        "against c, the best here (reference=NAME)."
    )
    assert "after Holm's correction for 3 comparisons" in verdict(section(three, None)).evidence
    named = section(three, "b")
    assert "after Holm's correction for 2 comparisons" in verdict(named).evidence
    assert not any("the best here" in line for line in named.notices)


def test_a_better_method_of_the_reference_s_kind_is_named():
    scores = np.random.default_rng(6).normal(0.5, 0.1, TASKS)
    gains = dict(transfer=0, maml=0.1, centroid=0.2, logreg=0.15)
    runs = [run(algo, scores + gain) for algo, gain in gains.items()]
    said = verdict(section(runs, None))
    assert said.question == "Is maml better than transfer?"
    assert said.answer == "Yes"
    assert " centroid, pre-trained as well, does better than both: 71.3 ± 2.5 %." in said.evidence
    worse = [run("transfer", scores + 0.11), *runs[1:3]]
    for without in (verdict(section(runs[:2], None)), verdict(section(worse, None))):
        assert without.question == "Is the meta-learned start better than the pre-trained one?"
        assert "does better than both" not in without.evidence


@pytest.mark.parametrize("algo", PRE_TRAINED[1:])
def test_a_pre_trained_method_is_not_called_meta_learned(algo):
    scores = np.random.default_rng(6).normal(0.5, 0.1, TASKS)
    three = [run("transfer", scores), run(algo, scores + 0.1), run("maml", scores - 0.1)]
    assert verdict(section(three[:2], None)).question == f"Is {algo} better than transfer?"
    said = verdict(section(three, None))
    assert said.question == "Is the meta-learned start better than the pre-trained one?"
    assert said.evidence.startswith("maml reaches")
    against = verdict(section(three[1:], algo))
    assert against.question == "Is the meta-learned start better than the pre-trained one?"


def test_a_run_that_does_not_say_what_its_start_is_goes_by_its_name():
    """As those do that ended before it was recorded."""
    scores = np.random.default_rng(6).normal(0.5, 0.1, TASKS)
    two = [run("transfer", scores), run("maml", scores + 0.1)]
    for one in two:
        del one.outcome["start"]
    assert verdict(section(two, None)).question == "Is maml better than transfer?"


def test_a_bound_is_not_called_a_method():
    scores = np.random.default_rng(6).normal(0.5, 0.1, TASKS)
    bound = run("multi_maml", scores + 0.1)
    bound.outcome["oracle"] = True
    said = verdict(section([run("transfer", scores), bound], None))
    assert said.question == "Is multi_maml (oracle) better than transfer?"


def test_given_weights_are_named_and_their_cost_is_said_not_to_count(make_run):
    def began(outcome, arrays):
        cost = {"flops_total": 2e12, "train_seconds": 60.0}
        outcome["weights"] = {"from": "pre", "sha256": "0", "cost": cost}
        outcome["start"] = "pre-trained"

    given = make_run("s", "scratch", config={"weights": "pre"}, edit=began)
    found = compare(
        load([given, make_run("m", config={"weights": None}), make_run("t", "transfer")])
    )
    labels = {entry.label for entry in found.sections[0].entries}
    assert labels == {"scratch weights=pre", "maml", "transfer"}
    (said,) = (line for line in found.sections[0].notices if "weights" in line and "began" in line)
    assert said == (
        "scratch weights=pre: began with given weights, pre; what these cost (2.0 TFLOP and 60 s) "
        "is not counted."
    )
    assert "What given weights cost" not in verdict(found.sections[0]).cost
    alone = compare(load([given, make_run("m2")]), reference="scratch")
    assert verdict(alone.sections[0]).cost.endswith(" What given weights cost is not counted.")
    assert verdict(alone.sections[0]).question.endswith("better than the pre-trained one?")


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (
            3e9,
            5e9,
            "3.0 GFLOP against 5.0 GFLOP; training included, maml is the cheaper from",
        ),
        (5e9, 3e9, "5.0 GFLOP against 3.0 GFLOP."),  # dearer in both
        (3e9, 3e9, "3.0 GFLOP against 3.0 GFLOP."),
        (None, 3e9, None),  # a run from before it was counted
    ],
)
def test_what_a_new_task_takes_and_from_how_many_on_training_pays(make_run, ours, theirs, said):
    def adapts(flops):
        return lambda outcome, _: outcome["cost"].update(flops_per_adaptation=flops)

    runs = [make_run("m", edit=adapts(ours)), make_run("t", "transfer", edit=adapts(theirs))]
    (one,) = compare(load(runs)).sections
    cost = verdict(one).cost
    assert ("Adapting to a new task takes" in cost) == (said is not None)
    assert said is None or said in cost
    (turned,) = compare(load(runs), reference="maml").sections
    if said and "the cheaper" in said:
        assert "transfer is the cheaper up to 4,050 tasks." in verdict(turned).cost
    assert "Compute a new task" in document(compare(load(runs)), [])


def test_no_number_of_tasks_pays_for_weights_whose_cost_is_not_counted(make_run):
    def began(outcome, _):
        outcome["cost"]["flops_per_adaptation"] = 3e9
        outcome["weights"] = {"from": "pre", "sha256": "0", "cost": None}

    def dear(outcome, _):
        outcome["cost"]["flops_per_adaptation"] = 5e9

    runs = [make_run("m", edit=began), make_run("t", "transfer", edit=dear)]
    cost = verdict(compare(load(runs)).sections[0]).cost
    assert "takes 3.0 GFLOP against 5.0 GFLOP. What given weights cost is not counted." in cost
