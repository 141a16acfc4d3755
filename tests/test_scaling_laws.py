"""Scaling laws: fits find the laws that made the losses, and intervals hold what they promise."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.errors import DataError
from nextscale.scaling import fit as scaling_fit
from nextscale.scaling.fit import fit_ladder, optimal_sizes
from nextscale.scaling.intervals import bootstrap
from nextscale.scaling.laws import JOINT, OFFSET, POWER, fit
from nextscale.scaling.results import METRICS, Result

SIZES = np.geomspace(1e4, 6e5, 7)
GRID = np.stack([np.repeat(SIZES, 3), np.tile([1e6, 2e6, 4e6], 7)], 1)


def joint(x: np.ndarray, e: float = 1.5, alpha: float = 0.45, beta: float = 0.5) -> np.ndarray:
    return e + 60 * x[:, 0] ** -alpha + 300 * x[:, 1] ** -beta


@settings(max_examples=10, deadline=None)
@given(e=st.floats(0.5, 4), alpha=st.floats(0.2, 0.9), share=st.floats(0.1, 1))
def test_a_law_with_a_floor_is_recovered(e: float, alpha: float, share: float) -> None:
    """The reducible part is a tenth of the floor or more, at the smallest size."""
    a = share * e * SIZES[0] ** alpha
    found = fit(OFFSET, SIZES[:, None], e + a * SIZES**-alpha)
    assert found.parameters() == pytest.approx({"E": e, "A": a, "alpha": alpha}, rel=0.02)
    assert found.spread < 1e-4


@settings(max_examples=10, deadline=None)
@given(alpha=st.floats(0.02, 1), beta=st.floats(1e-12, 1e-6))
def test_a_power_law_is_recovered(alpha: float, beta: float) -> None:
    found = fit(POWER, SIZES[:, None], (beta * SIZES) ** -alpha).parameters()
    assert found["alpha"] == pytest.approx(alpha, rel=1e-3)
    assert np.log(found["beta"]) == pytest.approx(np.log(beta), rel=1e-2)


def test_the_joint_law_is_recovered_and_all_starts_agree() -> None:
    found = fit(JOINT, GRID, joint(GRID))
    truth = {"E": 1.5, "A": 60, "alpha": 0.45, "B": 300, "beta": 0.5}
    assert found.parameters() == pytest.approx(truth, rel=1e-3)
    noisy = fit(JOINT, GRID, joint(GRID) * np.exp(0.003 * np.random.default_rng(0).normal(size=len(GRID))))
    assert noisy.agree == noisy.starts == 16
    assert noisy.parameters()["alpha"] == pytest.approx(0.45, abs=0.05)


def test_one_diverged_run_hardly_moves_a_fit() -> None:
    """Least squares would follow it; the Huber loss does not."""
    losses = joint(GRID)
    losses[4] *= 1.5
    assert fit(JOINT, GRID, losses).parameters()["E"] == pytest.approx(1.5, rel=0.01)


def test_the_optimal_sizes_are_where_the_loss_is_lowest() -> None:
    law = {"E": 1.5, "A": 60.0, "alpha": 0.45, "B": 300.0, "beta": 0.5}
    best = optimal_sizes(law, np.array([1e13]))["at"][0]
    assert 6 * best["N"] * best["D"] == pytest.approx(1e13)
    for factor in (0.9, 1.1):
        near = np.array([[best["N"] * factor, best["D"] / factor]])
        assert joint(near)[0] > best["L"]


@pytest.mark.slow
def test_intervals_cover_about_as_often_as_they_say() -> None:
    """90% intervals, 60 ladders of six sizes that predict the seventh: 54 should hold; chance takes 8 at most."""
    x, held_out, inside, parameter = SIZES[:-1, None], SIZES[-1:, None], 0, 0
    for seed in range(60):
        losses = 8 * SIZES**-0.1 * np.exp(0.003 * np.random.default_rng(seed).normal(size=7))
        drawn = bootstrap(fit(POWER, x, losses[:-1]), x, 60)
        low, high = drawn.losses(held_out)[0]
        inside += low <= losses[-1] <= high
        low, high = drawn.parameters()["alpha"]
        parameter += low <= 0.1 <= high
    assert inside >= 46 and 44 <= parameter < 60


def test_prediction_intervals_hold_the_scatter_of_runs_too() -> None:
    x = SIZES[:-1, None]
    losses = 8 * SIZES[:-1] ** -0.1 * np.exp(0.01 * np.random.default_rng(1).normal(size=6))
    drawn = bootstrap(fit(POWER, x, losses), x, 200)
    without_scatter = replace(drawn, spreads=np.zeros_like(drawn.spreads))
    (low, high), (law_low, law_high) = (each.losses(SIZES[-1:, None])[0] for each in (drawn, without_scatter))
    assert low < law_low < law_high < high


def ladder(number: int = 7, multiples: tuple[float, ...] = (0.5, 1, 2), noise: float = 0.002) -> list[Result]:
    random = np.random.default_rng(0)
    runs = []
    for size in np.geomspace(1e4, 6e5, number).round():
        for multiple in multiples:
            tokens = 2e6 * multiple
            loss = float(joint(np.array([[size, tokens]]))[0] * np.exp(noise * random.normal()))
            losses = dict.fromkeys(METRICS, loss) | {"mean error": loss / 10, "last-scale error": loss / 5}
            name = f"n{size:.0f}-t{multiple:g}"
            runs.append(
                Result(name, 8, 1, 1, multiple, int(size) + 99, int(size), int(tokens), 6 * size * tokens, losses)
            )
    return runs


NAMES = tuple(METRICS)


def fitted(
    monkeypatch: pytest.MonkeyPatch, folder: Path, runs: list[Result], metrics: tuple[str, ...] = NAMES[:1]
) -> scaling_fit.Report:
    monkeypatch.setattr(scaling_fit, "read_results", lambda _: (runs, []))
    monkeypatch.setattr(scaling_fit, "METRICS", metrics)
    return fit_ladder(folder, replicates=10)


def test_a_report_of_a_whole_ladder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = fitted(monkeypatch, tmp_path, ladder(), NAMES)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert {row["law"] for row in stored["fits"]} == {"power", "offset", "joint", "frontier"}
    assert {row["metric"] for row in stored["fits"]} == set(METRICS)
    assert stored["runs"][0] == json.loads(json.dumps(asdict(report.runs[0])))
    row = next(row for row in stored["fits"] if row["law"] == "joint")
    assert [one["run"] for one in row["held out"]] == ["n600000-t0.5", "n600000-t1", "n600000-t2"]
    for one in row["held out"]:
        assert one["low"] < one["predicted"] < one["high"]
        assert one["predicted"] == pytest.approx(one["measured"], rel=0.02)
    power = next(row for row in stored["fits"] if row["law"] == "power")
    assert power["runs"] == 7 and -1 < power["pearson r"] < -0.9
    assert len(report.rows()) == len(stored["fits"])


def test_plots_are_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra: plots)")
    from nextscale.scaling.plots import draw_plots

    paths = draw_plots(fitted(monkeypatch, tmp_path, ladder(5, (1, 2)), NAMES[:2]))
    assert [path.name for path in paths] == [f"{metric.replace(' ', '-')}.png" for metric in NAMES[:2]]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_held_out_size_is_never_seen_by_its_prediction(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = ladder(6, (1,))
    spoilt = [run for run in runs if run.blocks < 6e5]
    last = runs[-1]
    spoilt.append(Result(**{**asdict(last), "losses": dict.fromkeys(METRICS, 9.0)}))
    one, other = (fitted(monkeypatch, tmp_path, each).fitted[0].row["held out"][0] for each in (runs, spoilt))
    assert (one["predicted"], one["low"]) == (other["predicted"], other["low"])
    assert one["measured"] != other["measured"] == 9.0 and not other["inside"]


@pytest.mark.parametrize(("number", "laws"), [(4, {"power", "frontier"}), (5, {"power", "offset", "frontier"})])
def test_ladders_fit_the_laws_that_they_have_points_for(
    number: int, laws: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = fitted(monkeypatch, tmp_path, ladder(number, (1,), noise=0))
    assert {one.law.name for one in report.fitted} == laws
    assert any("needs 4 sizes with 3 numbers of tokens" in note for note in report.notes)


def test_too_few_points_say_how_many_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no law can be fitted: .* needs 4 efficient runs, there are 3"):
        fitted(monkeypatch, tmp_path, ladder(3, (1,), noise=0))
    assert not (tmp_path / "report.json").exists()
    with pytest.raises(DataError, match="holds no ladder: train one with nextscale scaling run"):
        monkeypatch.undo()
        fit_ladder(tmp_path)
