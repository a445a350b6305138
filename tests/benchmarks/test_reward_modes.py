"""Tests of benchmarks.reward_modes: what is counted and compared, and a whole comparison of seconds."""

import pytest

from benchmarks.reward_modes import MODES, compare_modes, summarise, table
from medgrpo.config import RunConfig
from medgrpo.testing import tiny_config


def answer(verdict: str = "yes", well_formed: bool = True, unsupported: tuple[str, ...] = ()) -> dict[str, object]:
    return {"verdict": verdict, "well_formed": well_formed, "figures": {"unsupported": list(unsupported)}}


def cases(gated: list[dict[str, object]], weighted: list[dict[str, object]]) -> list[dict[str, object]]:
    """Cases whose expert says yes, with the same answers under two seeds."""
    return [
        {"expert": "yes", "answers": {"warmup": answer("no"), **{f"gated {s}": g for s in (1, 2)}, **_weighted(w)}}
        for g, w in zip(gated, weighted, strict=True)
    ]


def _weighted(found: dict[str, object]) -> dict[str, object]:
    return {f"weighted {seed}": found for seed in (1, 2)}


def test_shares_difference_and_pairs() -> None:
    """Each measure is a share over seeds and cases; pairs are counted over both, the difference is gated's lead."""
    found = summarise(
        cases([answer(), answer()], [answer("no"), answer(well_formed=False, unsupported=("77",))]), [1, 2], RunConfig()
    )
    measures = found["measures"]
    assert [measures[name][mode]["value"] for name in measures for mode in MODES] == [1.0, 0.5, 1.0, 0.5, 0.0, 0.5]
    assert measures["accuracy"]["difference"]["value"] == 0.5
    assert (measures["accuracy"]["only_gated"], measures["accuracy"]["only_weighted"]) == (2, 0)
    assert (measures["unsupported figure"]["only_gated"], measures["unsupported figure"]["only_weighted"]) == (0, 2)
    assert measures["accuracy"]["warmup"]["value"] == 0.0
    assert measures["accuracy"]["by_seed"] == {"gated": [1.0, 1.0], "weighted": [0.5, 0.5]}


def test_seeds_do_not_narrow_the_interval() -> None:
    """The same answers under more seeds are no new evidence: the interval stays as it is."""
    rows = cases([answer(), answer("no"), answer()], [answer("no")] * 3)
    one, two = (summarise(rows, seeds, RunConfig())["measures"]["accuracy"]["gated"] for seeds in ([1], [1, 2]))
    assert (one["low"], one["high"]) == (two["low"], two["high"])
    assert (one["n"], two["n"]) == (3, 6)


def test_table() -> None:
    """The table has a row per measure, with intervals, pairs and the p-value."""
    shown = table(summarise(cases([answer()] * 3, [answer("no")] * 3), [1, 2], RunConfig()))
    assert "| accuracy | 0.0 (0.0 to 56.1) | 100.0 (100.0 to 100.0) | 0.0 (0.0 to 0.0) |" in shown
    assert "| 6, 0 | 0.031 |" in shown
    assert all(f"| {name} |" in shown for name in ("strict form", "unsupported figure"))


@pytest.mark.slow
def test_a_comparison_is_kept_and_goes_on(tmp_path, capsys) -> None:
    """Both modes start from one warm-up, answer the same cases, and nothing is done twice."""
    config = tiny_config(tmp_path, audit="warn")
    rows = compare_modes(config, [1], tmp_path / "modes")
    assert len(rows) == 6
    assert set(rows[0]["answers"]) == {"warmup", "gated 1", "weighted 1"}
    warmups = list((tmp_path / "modes").glob("*-1-*/warmup/adapter/adapter_model.safetensors"))
    assert len(warmups) == 2
    assert len({path.read_bytes() for path in warmups}) == 1
    printed = capsys.readouterr().out
    assert printed.count("warmup step 1 of") == 1
    assert "gated 1: grpo step 2 of 2, reward" in printed
    assert "weighted 1: grpo step 2 of 2, reward" in printed
    assert compare_modes(config, [1], tmp_path / "modes") == rows
    assert capsys.readouterr().out == ""
