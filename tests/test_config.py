"""Settings: profiles, overrides, and the sentences about what is wrong with them."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.config import PROFILES, RunConfig, load_config, parse_config, profile_names, resolve_mlflow_uri
from medgrpo.domains import names
from medgrpo.errors import InputError

deterministic = settings(derandomize=True, deadline=None, max_examples=60)
positive = st.floats(1e-9, 1e6)
changes = st.fixed_dictionaries(
    {},
    optional={
        "name": st.none() | st.text(min_size=1),
        "seed": st.integers(),
        "runs_dir": st.sampled_from(["runs", "/tmp/elsewhere"]),
        "data": st.fixed_dictionaries({}, optional={"fold": st.integers(0, 9), "path": st.none() | st.just("a.json")}),
        "grpo": st.fixed_dictionaries({}, optional={"steps": st.integers(1, 999), "learning_rate": positive}),
        "rewards": st.fixed_dictionaries(
            {}, optional={"cost_maybe_for_either": st.floats(0.5, 1), "evidence": st.integers(1, 9)}
        ),
        "evaluation": st.fixed_dictionaries({}, optional={"cases": st.just("all") | st.integers(1, 500)}),
    },
)


def sentence(profile: str | Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(profile, overrides)
    return str(caught.value)


@deterministic
@given(changes)
def test_round_trip(values: dict[str, object]) -> None:
    """Settings survive being stored as JSON, and are the same ones when they come back."""
    config = parse_config(values)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", profile_names())
def test_profiles_load(name: str) -> None:
    """Each shipped profile is valid and knows its own name."""
    assert load_config(name).profile == name


@pytest.mark.parametrize("name", profile_names())
def test_profiles_can_train(name: str) -> None:
    """In each shipped profile the micro-batch divides a warm-up step's completions, and a prompt has room."""
    config = load_config(name)
    assert config.warmup.batch_size % config.warmup.micro_batch == 0
    assert config.grpo.max_completion_length < config.data.max_length


def test_the_shipped_profiles_are_these() -> None:
    """demo, cpu and t4 are shipped: Makefile and README name them."""
    assert {"demo", "cpu", "t4"} <= set(profile_names())


def test_every_setting_is_documented() -> None:
    """Every setting of every section has a docstring."""
    for name, field in RunConfig.model_fields.items():
        parts = getattr(field.annotation, "model_fields", None)
        missing = [key for key, part in (parts or {name: field}).items() if not part.description]
        assert not missing, (name, missing)


def test_settings_are_frozen() -> None:
    """Settings cannot be changed once read."""
    with pytest.raises(ValueError, match="frozen"):
        load_config("demo").seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("grpo.steps=7", ("grpo", "steps"), 7),
        ("grpo.learning_rate=1e-4", ("grpo", "learning_rate"), 1e-4),
        ("evaluation.cases=all", ("evaluation", "cases"), "all"),
        ("policy.base=./dir=x", ("policy", "base"), "./dir=x"),
        ('policy.base="7"', ("policy", "base"), "7"),
        ("data.path=/a b/c.json", ("data", "path"), Path("/a b/c.json")),
        (" grpo.use_vllm =true", ("grpo", "use_vllm"), True),
    ],
)
def test_overrides(override: str, path: tuple[str, str], value: object) -> None:
    """An override is read as TOML, a bare word as a string, and leaves the other settings of its section alone."""
    config = load_config("demo", [override])
    assert getattr(getattr(config, path[0]), path[1]) == value
    assert config.data.synthetic_pool == load_config("demo").data.synthetic_pool


@pytest.mark.parametrize("text", ["2026-11-28", "7", "true", "1e5"])
def test_a_name_needs_no_quotes(text: str) -> None:
    """What is a text or a path is taken as it is typed, though TOML would read a date or a number there."""
    config = load_config("demo", [f"name={text}", f"policy.revision={text}", f"data.path={text}"])
    assert (config.name, config.policy.revision, config.data.path) == (text, text, Path(text))
    assert load_config("demo", [f'name="{text}"']).name == text


def test_the_last_override_wins() -> None:
    """Of two overrides of one setting the last one counts."""
    assert load_config("demo", ["seed=1", "seed=2"]).seed == 2


def test_profile_from_a_file(tmp_path: Path) -> None:
    """A TOML file is a profile, named after the file unless it names itself."""
    path = tmp_path / "night.toml"
    path.write_text("[grpo]\nsteps = 3\n", encoding="utf-8")
    assert (load_config(path).profile, load_config(str(path)).grpo.steps) == ("night", 3)


def test_unknown_profile() -> None:
    """An unknown profile is answered with the nearest name and all names."""
    text = sentence("deno")
    assert "unknown profile 'deno'; did you mean 'demo'?" in text
    assert all(name in text for name in profile_names())


def test_missing_profile_file(tmp_path: Path) -> None:
    """A profile file that is missing, or a directory, is named, with the profiles that are shipped."""
    (tmp_path / "dir.toml").mkdir()
    for name in ("none.toml", "dir.toml"):
        text = sentence(tmp_path / name)
        assert f"{tmp_path / name}: no such profile file" in text
        assert "demo" in text


@pytest.mark.parametrize("content", [b"[grpo\nsteps = 3", b"{}", b"\xff\xfe[\x00", b"steps = "])
def test_profile_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    """A profile that is not TOML, cut short, or in another encoding is named, with one to compare it with."""
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert f"{path}: not a TOML file" in sentence(path)
    assert "demo.toml" in sentence(path)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("grpo.stepz=1", ["unknown setting 'grpo.stepz'", "did you mean 'steps'", "micro_batch_tokens"]),
        ("gpro.steps=1", ["unknown setting 'gpro'", "did you mean 'grpo'", "evaluation"]),
        ("zzz=1", ["unknown setting 'zzz'. Known: profile"]),
        ("grpo.steps=0", ["setting 'grpo.steps' is 0", "greater than 0"]),
        ("grpo.steps=many", ["setting 'grpo.steps' is 'many'", "valid integer"]),
        ("grpo.steps=", ["setting 'grpo.steps' is ''"]),
        ("grpo.learning_rate=nan", ["setting 'grpo.learning_rate' is nan"]),
        ("grpo.group_size=1", ["setting 'grpo.group_size' is 1", "2"]),
        ("data.domain=pubmed", ["setting 'data.domain' is 'pubmed'", "'pubmedqa'", "'synthetic'"]),
        ("data.fold=10", ["setting 'data.fold' is 10", "9"]),
        ("evaluation.cases=some", ["setting 'evaluation.cases' is 'some'", "'all'"]),
        ("grpo=5", ["setting 'grpo' is 5"]),
        ("policy.base.x=1", ["setting 'policy.base' is {'x': 1}"]),
        ("grpo.steps.x=1", ["'steps' is a single value"]),
        ("trial.foo=1", ["unknown setting 'trial.foo'", "bar"]),
        ("sweep.deployment=train-medgrpo", ["expected FLOW/NAME, for example train-medgrpo/train-medgrpo"]),
        ("grpo.steps", ["expected key=value, for example"]),
        ("=3", ["expected key=value"]),
    ],
)
def test_bad_overrides(override: str, parts: list[str]) -> None:
    """An unknown setting is answered with the nearest names, a bad value with the setting, the value and the rule."""
    text = sentence("demo", override)
    assert all(part in text for part in parts), text
    assert "constrained" not in text


def test_every_problem_is_reported_with_its_source(tmp_path: Path) -> None:
    """Two bad settings in a file are two sentences, each naming the file."""
    path = tmp_path / "bad.toml"
    path.write_text("sead = 1\n[grpo]\nsteps = -1\n")
    lines = sentence(path).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{path}: ") for line in lines)


def test_mlflow_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting goes before MLFLOW_TRACKING_URI, which goes before SQLite in the runs directory."""
    config = RunConfig(runs_dir=tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_mlflow_uri(config) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert resolve_mlflow_uri(config) == "http://mlflow:5000"
    assert resolve_mlflow_uri(parse_config({"tracking": {"uri": "sqlite:///x.db"}})) == "sqlite:///x.db"


def test_profiles_are_plain_toml() -> None:
    """A profile holds no value that a Python-free reader could not read."""
    assert all(tomllib.loads(path.read_text(encoding="utf-8")) for path in PROFILES.glob("*.toml"))


def test_config_imports_nothing_heavy() -> None:
    """Reading settings imports neither torch, nor transformers, nor Prefect."""
    code = (
        "import sys; from medgrpo.config import load_config; load_config('demo'); "
        "print([m for m in ('torch', 'transformers', 'prefect', 'mlflow', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(st.integers(1, 8), st.integers(2, 8), st.integers(1, 5))
def test_a_step_is_shared_out_to_all_processes_or_refused(prompts: int, group: int, processes: int) -> None:
    """Each process gets the same number of a step's completions, or the sentence says what to change."""
    sizes = {"prompts_per_step": prompts, "group_size": group}
    values = {"processes": processes, "grpo": sizes, "warmup": {"batch_size": 4 * processes, "micro_batch": 4}}
    if prompts * group % processes:
        with pytest.raises(InputError, match=rf"= {prompts * group} completions .* numbers that {processes} divides"):
            parse_config(values)
    else:
        assert parse_config(values).processes == processes


@pytest.mark.parametrize(
    ("sizes", "processes"),
    [({"batch_size": 10, "micro_batch": 4}, 1), ({"batch_size": 4, "micro_batch": 8}, 1), ({"batch_size": 8}, 4)],
)
def test_a_warmup_batch_that_micro_batches_cannot_make_up_is_refused(sizes: dict[str, int], processes: int) -> None:
    """Training with another warm-up batch than the one asked for is refused."""
    with pytest.raises(InputError, match=r"warmup\.batch_size = .* a warmup\.micro_batch that divides it"):
        parse_config({"processes": processes, "warmup": sizes})


def test_rewards_that_pay_a_wrong_answer_like_a_right_one_are_refused() -> None:
    """Settings under which a wrong answer could earn as much as a right one are refused, naming them."""
    with pytest.raises(InputError, match=r"rewards: with structure 2 .* a wrong answer could earn 2\.2"):
        parse_config({"rewards": {"structure": 2}})
    for cost in ("cost_yes_for_no", "cost_no_for_yes", "cost_maybe_for_either", "cost_either_for_maybe"):
        with pytest.raises(
            InputError, match=rf"and {cost} 0\.4 a wrong answer could earn 0\.8, as much as the 0\.8 of"
        ):
            parse_config({"rewards": {cost: 0.4}})
    with pytest.raises(InputError, match=r"as much as the 0\.4 of a right one at correctness 1 and agreement 0\.6"):
        parse_config({"rewards": {"agreement": 0.6}})


def test_a_weighted_sum_may_pay_a_wrong_answer_like_a_right_one() -> None:
    """The mode for comparison is not held to that: it is what it is compared for."""
    assert parse_config({"rewards": {"mode": "weighted", "structure": 2}}).rewards.structure == 2


def test_a_form_offers_the_domains() -> None:
    """The schema of the settings lists the domains that there are, whoever added them."""
    schema = RunConfig.model_json_schema()["$defs"]["DataConfig"]["properties"]["domain"]
    assert schema["enum"] == names()
    assert schema["default"] == "synthetic"
