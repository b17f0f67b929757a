from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from models.evaluation import refinement_efficacy, roc_auc
from models.occ.blend import Blend
from models.occ.gde import GDE
from models.persistence import model_from_parts, model_to_parts
from models.presets import PRESETS
from models.srr import refresh_steps
from models.training import Progress, Trained, TrainingConfig, train

GOAD = replace(PRESETS["goad"], representation_options={"n_transforms": 8, "n_steps": 120})
IDENTITY = PRESETS["default"]


def test_the_same_seed_gives_the_same_model(config: TrainingConfig, make_columns: Any) -> None:
    columns, _ = make_columns(400, contamination=0.05)
    one, two = (train(columns, config, seed=7, device="cpu") for _ in range(2))
    np.testing.assert_array_equal(one.model.score(columns).score, two.model.score(columns).score)
    np.testing.assert_array_equal(one.kept, two.kept)
    other = train(columns, config, seed=8, device="cpu")
    assert (one.model.score(columns).score != other.model.score(columns).score).any()


def test_the_input_is_left_untouched(config: TrainingConfig, make_columns: Any) -> None:
    columns, _ = make_columns(200, has_missing=True)
    before = {name: column.copy() for name, column in columns.items()}
    train(columns, config, seed=0, device="cpu")
    for name, column in columns.items():
        np.testing.assert_array_equal(column, before[name])


def test_the_report_says_what_happened_in_json(trained: Trained, config: TrainingConfig) -> None:
    report = trained.report
    # What has steps to train on must not see the rows that calibrate it.
    assert report.n_rows == (1500 if config.representation == "identity" else 1200)
    assert sum(report.rows_by_votes) == report.n_rows
    assert report.rows_by_votes[0] == round((1.0 - report.excluded_ratio) * report.n_rows)
    np.testing.assert_array_equal(trained.kept, trained.votes == 0)
    assert len(trained.kept) == 1500
    assert report.n_subsets == 5
    assert 0.005 <= report.gamma <= 0.25
    assert report.gamma <= report.excluded_ratio + 0.005 <= 5 * report.gamma
    assert 0.2 <= report.agreement <= 1.0
    assert report.duplicate_ratio == 0.0
    assert report.contamination_ratio == pytest.approx(0.03, abs=0.03)
    assert report.refreshes[-1] == (report.n_steps, report.excluded_ratio)
    assert set(report.seconds) == {"prepare", "train", "refine", "calibrate"}
    assert not report.is_warm_started
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()
    assert (report.n_steps > 0) == (config.representation != "identity")


def masked_columns(n: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return rows of which 10 % lie off in one direction: they stretch a covariance that way and so hide in it."""
    rng = np.random.default_rng(seed)
    numbers, is_anomaly = rng.normal(size=(n, 6)), rng.random(n) < 0.1
    numbers[is_anomaly] += np.outer(rng.uniform(2.0, 5.0, size=int(is_anomaly.sum())), [1.0, -1.0, 1.0, 0.0, 0.0, 0.0])
    return {f"x{i}": numbers[:, i] for i in range(6)}, is_anomaly


@pytest.mark.parametrize("representation", ["identity", "goad"])
def test_refined_data_is_purer_and_detects_better_than_unrefined(representation: str) -> None:
    gains, removed_anomalies, removed_normals = [], [], []
    options = {"n_transforms": 16, "n_steps": 300} if representation == "goad" else {}
    config = TrainingConfig(representation=representation, representation_options=options)
    for seed in range(3):
        columns, is_anomaly = masked_columns(1200, seed)
        fresh, is_fresh_anomaly = masked_columns(2000, 100 + seed)
        refined = train(columns, replace(config, contamination=0.1), seed=seed, device="cpu")
        unrefined = train(columns, replace(config, gamma=0.001, refine_rounds=1), seed=seed, device="cpu")
        aucs = [roc_auc(is_fresh_anomaly, t.model.score(fresh).score) for t in (refined, unrefined)]
        gains.append(aucs[0] - aucs[1])
        efficacy = refinement_efficacy(is_anomaly, refined.kept)
        removed_anomalies.append(efficacy[0])
        removed_normals.append(efficacy[1])
    assert np.mean(removed_anomalies) > 0.8
    assert np.mean(removed_normals) < 0.25
    assert np.mean(gains) > 0.002


def scattered_columns(n: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return rows of which 5 % are spread six times as far in every direction."""
    rng = np.random.default_rng(seed)
    numbers, is_anomaly = rng.normal(size=(n, 6)), rng.random(n) < 0.05
    numbers[is_anomaly] *= 6.0
    return {f"x{i}": numbers[:, i] for i in range(6)}, is_anomaly


@pytest.mark.parametrize("n_rows", [400, 4000])
def test_clean_data_is_flagged_at_about_the_false_alarm_rate(n_rows: int) -> None:
    def clean(n: int, seed: int) -> dict[str, np.ndarray]:
        return dict(zip("abcdef", np.random.default_rng(seed).normal(size=(6, n)), strict=True))

    rates = []
    for seed in range(5):
        model = train(clean(n_rows, seed), IDENTITY, seed=seed).model
        rates.append(model.score(clean(8000, 50 + seed)).flagged.mean())
    # A small window rather flags too little: what is in use knows a fifth more rows than what was calibrated.
    assert (0.0005 if n_rows == 400 else 0.002) <= np.mean(rates) <= 0.01


def test_heavy_tailed_clean_data_is_not_flagged_wholesale(make_columns: Any) -> None:
    rates = []
    for seed in range(5):
        model = train(make_columns(2000, seed=seed)[0], IDENTITY, seed=seed).model
        rates.append(model.score(make_columns(8000, seed=50 + seed)[0]).flagged.mean())
    assert np.mean(rates) <= 0.04


def test_contaminated_data_gets_its_anomalies_flagged_and_little_else() -> None:
    caught, false_alarms = [], []
    for seed in range(5):
        columns, _ = scattered_columns(4000, seed)
        fresh, is_anomaly = scattered_columns(4000, 100 + seed)
        flagged = train(columns, IDENTITY, seed=seed).model.score(fresh).flagged
        caught.append(flagged[is_anomaly].mean())
        false_alarms.append(flagged[~is_anomaly].mean())
    assert np.mean(caught) > 0.9
    assert np.mean(false_alarms) < 0.01


def test_constant_data_is_never_flagged_and_any_change_of_it_is(config: TrainingConfig) -> None:
    columns = {"a": np.full(200, 3.0), "k": np.full(200, "x", dtype=object), "b": np.zeros(200)}
    trained = train(columns, config, seed=0, device="cpu")
    assert not trained.model.score(columns).flagged.any()
    changed = {"a": np.full(1, 4.0), "k": np.full(1, "y", dtype=object), "b": np.ones(1)}
    scores = trained.model.score(changed)
    assert np.isfinite(scores.severity).all()
    assert scores.flagged.all()
    assert trained.report.duplicate_ratio == pytest.approx(1 - 1 / 200)


def test_fewer_rows_than_columns_can_be_learned_from(config: TrainingConfig) -> None:
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.normal(size=30) for i in range(60)}
    trained = train(columns, config, seed=0, device="cpu")
    assert np.isfinite(trained.model.score(columns).score).all()
    assert trained.report.n_subsets == 1


def test_a_champion_of_the_same_kind_is_trained_on(make_columns: Any) -> None:
    columns, _ = make_columns(600, contamination=0.05)
    champion = train(columns, GOAD, seed=0, device="cpu").model
    later, _ = make_columns(600, seed=1, contamination=0.05)
    before = champion.score(later).score
    warm = train(later, GOAD, seed=1, warm_start=champion, device="cpu")
    assert warm.report.is_warm_started
    assert warm.report.n_steps == 30
    assert warm.report.refreshes[0][0] == 0  # its embedding is worth refining with from the start
    np.testing.assert_array_equal(champion.score(later).score, before)
    mine, theirs = (m.representation.state().arrays for m in (warm.model, champion))
    np.testing.assert_array_equal(mine["projections"], theirs["projections"])
    assert (mine["weight1"] != theirs["weight1"]).any()


def test_any_other_champion_means_a_cold_start(make_columns: Any) -> None:
    columns, _ = make_columns(300)
    identity = train(columns, IDENTITY, seed=0).model
    goad = train(columns, GOAD, seed=0, device="cpu").model
    wider = replace(GOAD, representation_options={"n_transforms": 9, "n_steps": 120})
    more_categories = {**columns, "method": np.array(["GET", "POST", "PUT", "HEAD"] * 75, dtype=object)}
    for data, config, champion in [
        (columns, GOAD, identity),
        (columns, IDENTITY, identity),
        (columns, wider, goad),
        (more_categories, GOAD, goad),
    ]:
        assert not train(data, config, seed=0, warm_start=champion, device="cpu").report.is_warm_started


@pytest.mark.parametrize("refine", ["none", "final", "both"])
def test_what_is_refined_can_be_chosen(refine: str, make_columns: Any) -> None:
    columns, _ = make_columns(640, contamination=0.05)
    told: list[Progress] = []
    trained = train(columns, replace(GOAD, refine=refine, gamma=0.1), seed=0, on_progress=told.append, device="cpu")
    steps = [step for step, _ in trained.report.refreshes]
    if refine == "both":
        assert steps == [8, 16, 40, 80, 120]  # 512 rows to learn from are eight minibatches an epoch
    else:
        assert steps == [120]
    assert trained.kept.all() == (refine == "none")
    assert (trained.report.excluded_ratio > 0.0) == (refine != "none")
    last = [p for p in told if p.kept is not None][-1]
    assert last.rows is not None
    np.testing.assert_array_equal(trained.kept[last.rows], last.kept)


def test_without_refinement_the_classifier_is_fitted_on_everything(make_columns: Any) -> None:
    columns, _ = make_columns(300, contamination=0.05)
    config = replace(IDENTITY, classifier="gde", ensemble_options={}, refine="none")
    model = train(columns, config, seed=0).model
    X = model.preprocessor.transform(columns)
    expected = GDE(shrinkage=model.representation.shrinkage).fit(X).score(X)
    np.testing.assert_allclose(model.score(columns).score, expected, rtol=1e-9)


def test_the_ensemble_can_be_the_scorer(make_columns: Any) -> None:
    columns, is_anomaly = make_columns(600, contamination=0.05)
    config = replace(IDENTITY, classifier="gde", ensemble_options={}, scorer="ensemble", n_subsets=3)
    model = train(columns, config, seed=0).model
    assert isinstance(model.classifier, Blend)
    assert [member.name for member in model.classifier.members_] == ["gde"] * 3
    X = model.preprocessor.transform(columns)
    mean = np.mean([member.score(X) for member in model.classifier.members_], axis=0)
    np.testing.assert_allclose(model.score(columns).score, mean)
    description, weights = model_to_parts(model)
    np.testing.assert_array_equal(
        model_from_parts(description, weights).score(columns).score, model.score(columns).score
    )
    assert roc_auc(is_anomaly, model.score(columns).score) > 0.9


def test_members_may_be_of_another_kind_than_the_final_classifier(make_columns: Any) -> None:
    columns, _ = make_columns(300, contamination=0.05)
    config = TrainingConfig(
        classifier="gde", ensemble_classifier="isolation_forest", ensemble_options={"n_estimators": 9}
    )
    assert config.make_member().name == "isolation_forest"
    assert config.make_classifier().name == "gde"
    assert train(columns, config, seed=0).model.classifier.name == "gde"


def test_a_training_that_has_converged_ends_early(make_columns: Any) -> None:
    columns, _ = make_columns(640)
    options = {"n_transforms": 8, "n_steps": 2000, "learning_rate": 1e-6}  # learns nothing, so nothing changes
    config = replace(PRESETS["goad"], representation_options=options, gamma=0.05)
    full = train(columns, replace(config, representation_options={**options, "n_steps": 160}), seed=0, device="cpu")
    early = train(columns, replace(config, tolerance=0.05), seed=0, device="cpu")
    assert full.report.n_steps == 160
    assert 16 <= early.report.n_steps < 2000
    assert early.report.refreshes[-1][0] == early.report.n_steps


def test_any_number_of_threads_gives_the_same_scores_but_for_rounding(
    config: TrainingConfig, make_columns: Any
) -> None:
    columns, _ = make_columns(500, contamination=0.05)
    before = torch.get_num_threads()
    scores = []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            with threadpool_limits(n_threads):
                scores.append(train(columns, config, seed=3, device="cpu").model.score(columns).score)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6, atol=1e-6)


def test_progress_is_told_often_and_an_error_in_it_ends_the_training(make_columns: Any) -> None:
    columns, _ = make_columns(300)
    told: list[Progress] = []
    train(columns, GOAD, seed=0, on_progress=told.append, device="cpu")
    assert {p.phase for p in told} == {"train", "refine", "calibrate"}
    assert told[-1].phase == "calibrate"
    assert all(p.loss is not None for p in told if p.phase == "train")
    assert [p.step for p in told] == sorted(p.step for p in told)
    assert told[-1].step == told[-1].n_steps == 120

    def stop(progress: Progress) -> None:
        raise InterruptedError("told to stop")

    with pytest.raises(InterruptedError, match="told to stop"):
        train(columns, GOAD, seed=0, on_progress=stop, device="cpu")


def test_the_schedule_is_the_papers_in_steps() -> None:
    assert refresh_steps(10, 0) == []
    assert refresh_steps(10, 10) == []
    assert refresh_steps(10, 101) == [10, 20, 50, 100]
    assert refresh_steps(1, 1600) == [1, 2, 5, 10, 20, 50, 100, 500, 1000, 1500]
    # After a warm-up, which ends with the first refinement.
    assert refresh_steps(10, 101, 10) == refresh_steps(10, 101)
    assert refresh_steps(10, 101, 30) == [30, 50, 100]
    assert refresh_steps(10, 101, 100) == [100]
    assert refresh_steps(10, 101, 200) == []


def test_a_device_that_is_not_here_is_refused(make_columns: Any) -> None:
    columns, _ = make_columns(50)
    for device in ("cuda:99", "abacus"):
        with pytest.raises(ValueError, match=f"device is '{device}'; allowed: auto, cpu"):
            train(columns, GOAD, seed=0, device=device)


def test_too_few_rows_are_refused(make_columns: Any) -> None:
    columns, _ = make_columns(7)
    with pytest.raises(ValueError, match="n_samples = 7 rows; needed: at least 8"):
        train(columns, IDENTITY, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"representation": "astrology"}, "representation is 'astrology'; allowed: identity, goad"),
        ({"classifier": "svm"}, "classifier is 'svm'; allowed: blend, gde, knn"),
        ({"ensemble_classifier": "svm"}, "ensemble_classifier is 'svm'; allowed: blend, gde"),
        ({"classifier_options": {"n_bin": 3}}, "classifier_options do not fit 'blend'.*n_bin"),
        ({"ensemble_options": {"n_bin": 3}}, "ensemble_options do not fit 'blend'.*n_bin"),
        ({"scaling": "log"}, "scaling is 'log'; allowed: standard, robust, asinh"),
        ({"vote": "loud"}, "vote is 'loud'; allowed: unanimous, majority"),
        ({"removal": "half"}, "removal is 'half'; allowed: hard, soft"),
        ({"refine": "never"}, "refine is 'never'; allowed: both, final, none"),
        ({"scorer": "oracle"}, "scorer is 'oracle'; allowed: final, ensemble"),
        ({"scorer": "ensemble", "refine": "none"}, "without refinement there is no ensemble"),
        ({"gamma": "guess"}, "gamma is 'guess'; allowed: auto, excess, otsu"),
        ({"tolerance": 0.0}, r"tolerance is 0\.0; allowed: above 0"),
        ({"n_subsets": 0}, "n_subsets is 0; allowed: whole numbers from 1"),
        ({"refine_rounds": 0}, "refine_rounds is 0"),
        ({"gamma": 1.0}, r"gamma is 1\.0; allowed: above 0 and below 1"),
        ({"contamination": 0.5}, r"contamination is 0\.5; allowed: above 0 and below 0\.5"),
        ({"false_alarm_rate": 0.0}, r"false_alarm_rate is 0\.0"),
        ({"calibration_ratio": -0.1}, r"calibration_ratio is -0\.1"),
        ({"classifier": "gde", "classifier_options": {"shrinkage": 2.0}}, r"shrinkage is 2\.0"),
        ({"gamma": 0.1, "contamination": 0.1}, "exclude each other"),
        (
            {"representation": "goad", "representation_options": {"n_stepz": 5}},
            "representation_options do not fit 'goad'.*n_stepz",
        ),
        ({"representation": "goad", "representation_options": {"n_steps": 0}}, "n_steps is 0"),
        ({"representation_options": {"n_steps": 5}}, "representation_options do not fit 'identity'"),
    ],
)
def test_a_config_with_values_that_are_not_allowed_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)


def test_a_first_model_is_a_gaussian_with_what_a_person_said() -> None:
    assert IDENTITY.closed_form() is IDENTITY
    first = replace(GOAD, contamination=0.02, n_subsets=3, false_alarm_rate=0.01).closed_form()
    assert first.classifier == "gde"
    assert not first.make_representation().steps_for(1000)
    assert (first.gamma, first.contamination, first.n_subsets, first.false_alarm_rate) == ("auto", 0.02, 3, 0.01)


@pytest.mark.gpu
def test_a_model_trained_on_a_gpu_scores_as_one_trained_on_the_cpu(make_columns: Any) -> None:
    columns, is_anomaly = make_columns(1000, contamination=0.05)
    scores = [train(columns, GOAD, seed=0, device=device).model.score(columns).score for device in ("cpu", "cuda")]
    assert np.corrcoef(scores[0], scores[1])[0, 1] > 0.98
    assert abs(roc_auc(is_anomaly, scores[0]) - roc_auc(is_anomaly, scores[1])) < 0.01
