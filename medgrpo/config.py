"""Every setting of a run, in one frozen typed tree.

A profile (`medgrpo/profiles/*.toml`, or any TOML file) is one complete run; `load_config` reads it, applies
`key=value` overrides and names what it does not understand. Importing this module imports neither torch nor Prefect,
so configuration errors show up at once.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from medgrpo.errors import InputError
from medgrpo.settings import Settings, explain_value, nearest
from medgrpo.sweep.settings import SweepConfig, TrialConfig

PROFILES = Path(__file__).parent / "profiles"
EMBEDDED_MODEL = "smollm2-135m-instruct"


def _list_domains(schema: dict[str, Any]) -> None:
    """Offer the domains where a form is made of the settings, as Prefect's is."""
    from medgrpo.domains import names

    schema["enum"] = names()


class DataConfig(Settings):
    """Which records, and how they are split."""

    domain: str = Field(default="synthetic", json_schema_extra=_list_domains)
    """Where records come from: a file of `medgrpo.domains`. `synthetic` is generated and embedded, `pubmedqa` the
    expert-labelled PQA-L."""
    path: Path | None = None
    """Where the domain's records lie, for pubmedqa `ori_pqal.json`; unset, they come from the Hugging Face Hub."""
    ground_truth: Path | None = None
    """pubmedqa only: path to `test_ground_truth.json`; unset, the file beside `path` if there is one."""
    hub_id: str | None = None
    """Dataset on the Hub, used when `path` is unset; unset too, the domain's own."""
    hub_revision: str = "main"
    """Revision of that dataset; name a commit to pin it."""
    fold: int = Field(default=0, ge=0, le=9)
    """Which of the 10 folds of the training pool is held out as dev."""
    split_seed: int = 20
    """Seed of the split of the pool into folds."""
    max_length: PositiveInt = 1024
    """Longest prompt plus completion, in tokens; longer records are dropped and listed."""
    synthetic_pool: PositiveInt = 300
    """synthetic only: number of records in the pool (train and dev)."""
    synthetic_test: PositiveInt = 200
    """synthetic only: number of held-out test records."""
    synthetic_seed: int = 7
    """synthetic only: seed of the generator."""

    @field_validator("domain")
    @classmethod
    def _is_known(cls, domain: str) -> str:
        from medgrpo.domains import names

        if domain not in names():
            *others, last = map(repr, names())
            raise PydanticCustomError("no_domain", f"Input should be {', '.join(others)} or {last}")
        return domain


class PolicyConfig(Settings):
    """The model that is trained, and its adapter."""

    base: str = EMBEDDED_MODEL
    """The embedded model's name, a Hugging Face id, or a local directory."""
    revision: str | None = None
    """Revision of a Hugging Face id; name a commit to pin it."""
    start_from: str | None = None
    """Adapter of the same base that warm-up, where enabled, and GRPO go on from: `models:/NAME@ALIAS`,
    `models:/NAME/VERSION`, a run (`runs/NAME`), or a directory with a LoRA adapter, of whatever domain; unset, a fresh
    one. It is looked up once, before anything is trained."""
    backend: Literal["auto", "transformers", "unsloth"] = "transformers"
    """What loads and trains the model: `transformers` runs anywhere, `unsloth` where its package is installed. `auto`
    takes unsloth where there is a CUDA device too; the log says which it took, and why."""
    quantization: Literal["none", "4bit"] = "none"
    """How the frozen base's weights are held while training: `4bit` (NF4) needs the unsloth backend on CUDA, and takes
    an eighth of the memory. The adapter, the merged model and evaluation stay float32."""
    autocast: Literal["none", "bfloat16", "auto"] = "none"
    """Compute type of training passes; weights and evaluation stay float32. `auto` decides when training starts: on
    CUDA what `medgrpo doctor` shows, elsewhere which is faster, for some processors take twice as long in bfloat16."""
    lora_rank: PositiveInt = 16
    """Rank of the LoRA adapter on all linear layers."""
    lora_alpha: PositiveInt = 32
    """LoRA scale; the update is multiplied by alpha / rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""


class WarmupConfig(Settings):
    """Supervised cold start on gold completions built from the pool, without a teacher model."""

    enabled: bool = True
    """Whether to warm up before GRPO; a model this small never produces the tags unprompted."""
    epochs: PositiveFloat = 2.0
    """Passes over the class-balanced gold completions."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate, decayed to zero on a cosine."""
    batch_size: PositiveInt = 8
    """Completions per optimiser step."""
    micro_batch: PositiveInt = 4
    """Completions per forward and backward pass; bounds memory."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping threshold."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW weight decay."""
    balance: float = Field(default=0.5, ge=0, le=1)
    """How far the verdicts are balanced by repetition: 0 keeps the natural shares, 1 makes them equal."""
    verdict_weight: float = Field(default=1.0, ge=1)
    """Factor on the verdict token's loss: one token in a hundred decides whether the answer is right. Open answers, as
    numbers, are no tokens of their own, and need 1."""
    save_steps: PositiveInt = 20
    """Steps between checkpoints."""


class GrpoConfig(Settings):
    """Group relative policy optimisation. TRL's and Unsloth's defaults differ, so every value is set here."""

    steps: PositiveInt = 20
    """Optimiser steps."""
    prompts_per_step: PositiveInt = 4
    """Distinct prompts per step, sampled class-balanced."""
    group_size: int = Field(default=4, ge=2)
    """G, sampled completions per prompt; the group's mean reward is the baseline."""
    micro_batch_tokens: PositiveInt = 1024
    """Tokens held at once in forward and backward passes, each prompt counted once for its group; bounds memory. A
    longer group comes in pieces, its prompt still computed once; a piece may have a quarter of this in any case. With
    the unsloth backend each completion counts as `data.max_length`, and a group comes whole."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    beta: NonNegativeFloat = 0.0
    """KL coefficient towards the policy that GRPO started from; 0 loads no reference."""
    num_iterations: PositiveInt = 1
    """Optimiser passes over each batch of completions (mu)."""
    epsilon: PositiveFloat = 0.2
    """Lower clipping range of the importance ratio."""
    epsilon_high: PositiveFloat = 0.28
    """Upper clipping range of the importance ratio."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How token losses are averaged (see TRL's GRPOConfig)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What the advantages are divided by: the spread of the group, of the batch, or nothing."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether importance ratios are per token or per completion (GSPO)."""
    mask_truncated_completions: bool = False
    """Leave completions that hit the cap out of the loss; the overlong penalty is usually safer."""
    max_completion_length: PositiveInt = 160
    """Cap on a completion, in tokens; also used in evaluation."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of rollouts."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of rollouts."""
    top_k: int = Field(default=0, ge=0)
    """Most probable tokens kept in rollouts; 0 keeps all."""
    repetition_penalty: PositiveFloat = 1.0
    """Penalty on tokens already seen in rollouts; 1 is none."""
    rollout_dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Type of the weights that write completions; bfloat16 can be faster, and its importance ratio is accounted for.
    `auto` decides as `policy.autocast` does."""
    use_vllm: bool = False
    """Roll out with vLLM. Unusable on a T4 with Gemma 3 and on a CPU."""
    optimizer: Literal["adamw_torch", "adamw_8bit"] = "adamw_torch"
    """Optimiser; `adamw_8bit` needs CUDA and bitsandbytes."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW first-moment decay."""
    adam_beta2: float = Field(default=0.99, ge=0, lt=1)
    """AdamW second-moment decay."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW weight decay."""
    max_grad_norm: PositiveFloat = 0.5
    """Gradient clipping threshold."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    balance: float = Field(default=0.5, ge=0, le=1)
    """How far the verdicts are balanced when prompts are sampled: 0 keeps the natural shares, 1 makes them equal."""
    sampling: Literal["balanced", "spread"] = "balanced"
    """Which record of a verdict comes next: each once before any comes again (`balanced`), or more often those whose
    completions earned different rewards, and so taught something, when they came before (`spread`)."""
    save_steps: PositiveInt = 5
    """Steps between checkpoints, rounded up to whole batches of completions where those serve several steps."""


class WatchConfig(Settings):
    """What is watched while GRPO trains. Each threshold has the name of its alarm; a share is out of reach at 1."""

    action: Literal["warn", "stop"] = "warn"
    """What an alarm does: `warn` says so in log, MLflow and report, `stop` also ends the training and keeps the last
    checkpoint from before. Numbers that are not finite, and steps with only empty completions, always end it."""
    span: PositiveInt = 10
    """Steps of the moving average (the newest weighs 2 / (span + 1)), over which chance in a batch of a few prompts
    mostly cancels. The first `span` steps are the start that rises count from; no threshold is judged before."""
    patience: PositiveInt = 3
    """Steps in a row with the trouble before its alarm rings: one odd batch is no trend."""
    form: float = Field(default=0.3, gt=0, le=1)
    """Rise of the structure grade since the start that rings unless correctness rose by a tenth of it: even guesses
    among three verdicts would make correctness rise by a third of it, once they are in the right form."""
    verdicts: float = Field(default=0.95, gt=0, le=1)
    """Share of one verdict among the readable ones, once half of the completions have a readable one: PubMedQA's most
    frequent verdict is right in 55 %."""
    length: float = Field(default=0.5, gt=0, le=1)
    """Share of completions cut off at `grpo.max_completion_length`: those have no answer, and earn nothing."""
    copying: float = Field(default=0.4, gt=0, le=1)
    """Share of the abstract's words that stand in a thought in verbatim runs; PubMedQA's gold thoughts hold 14 %."""
    invention: float = Field(default=0.2, gt=0, le=1)
    """Rise, since the start, of the share of completions with a figure that is nowhere in the abstract."""
    no_spread: float = Field(default=0.9, gt=0, le=1)
    """Share of groups whose completions all earned the same, which teach nothing."""
    kl: PositiveFloat = 1.0
    """Divergence from the reference in nats per token, where `grpo.beta` loads one: at 1, each token that the policy
    writes is, on average, e times as likely as it was at the start."""
    gradient: PositiveFloat = 10.0
    """Gradient norm (before clipping, steps without any gradient left out) as a multiple of the start's."""
    entropy: NonNegativeFloat = 0.02
    """Nats per token below which a policy writes the same each time: over 50 tokens that is 1 nat, hardly more than one
    choice between two words in a whole completion."""


class RewardConfig(Settings):
    """What a completion is paid; see `medgrpo.rewards` for the formula and its bounds."""

    mode: Literal["gated", "weighted"] = "gated"
    """`gated` pays evidence only with the right verdict and nothing outside the strict form; `weighted` adds the grades
    up whatever the verdict, as public examples do. It is there for comparison: the audit finds its holes, so a run
    with it needs audit=warn."""
    correctness: PositiveFloat = 1.0
    """Paid for the expert's verdict in strict form, its share `agreement` included."""
    agreement: float = Field(default=0.2, ge=0, lt=1)
    """Share of `correctness` that a right answer earns by a thought that concludes what the expert concluded."""
    cost_yes_for_no: float = Field(default=1.0, ge=0, le=1)
    """Share of `correctness` that "yes" loses where the expert says no: a treatment that does not help."""
    cost_no_for_yes: float = Field(default=1.0, ge=0, le=1)
    """Share of `correctness` that "no" loses where the expert says yes: a treatment withheld."""
    cost_maybe_for_either: float = Field(default=0.8, ge=0, le=1)
    """Share of `correctness` that "maybe" loses where the expert says yes or no: undecided, but misleading nobody."""
    cost_either_for_maybe: float = Field(default=0.9, ge=0, le=1)
    """Share of `correctness` that "yes" or "no" loses where the expert says maybe: surer than the evidence."""
    grounding: NonNegativeFloat = 0.5
    """Paid at most for citing the abstract, only with the right verdict."""
    structure: NonNegativeFloat = 0.2
    """Paid at most for form; kept small so that form alone never pays."""
    evidence: PositiveInt = 3
    """Distinct data points of the abstract (figures, short phrases) that earn the full grounding grade."""
    max_copied_words: PositiveInt = 60
    """Longest verbatim run of the abstract, in words, that still counts as a citation."""
    max_copied_share: float = Field(default=0.8, gt=0, le=1)
    """Share of an abstract's words that a thought may copy; beyond it grounding earns nothing."""
    min_thought_words: PositiveInt = 8
    """Shorter thoughts lose structure in proportion."""
    max_thought_words: PositiveInt = 120
    """Longer thoughts lose structure, all of it at twice this length."""
    overlong_share: float = Field(default=0.1, ge=0, le=1)
    """Last share of grpo.max_completion_length in which a completion loses structure, all of it at the cap; 0 is off.
    DAPO's is 0.2; a tenth leaves the longest gold completions of the shipped profiles their full grade."""

    @model_validator(mode="after")
    def _truth_outranks_form(self) -> Self:
        costs = {name: getattr(self, name) for name in type(self).model_fields if name.startswith("cost_")}
        cheapest = min(costs, key=costs.__getitem__)
        best_wrong = self.structure + self.correctness * (1 - costs[cheapest])
        worst_right = self.correctness * (1 - self.agreement)
        if self.mode == "gated" and best_wrong > worst_right - 1e-9:
            raise ValueError(
                f"with structure {self.structure:g} and {cheapest} {costs[cheapest]:g} a wrong answer could earn "
                f"{best_wrong:g}, as much as the {worst_right:g} of a right one at correctness {self.correctness:g} "
                f"and agreement {self.agreement:g}; raise the cost or correctness, or lower structure or agreement"
            )
        return self


class EvaluationConfig(Settings):
    """How base, warm-up and tuned models are compared."""

    split: Literal["dev", "test"] = "test"
    """Which held-out split is evaluated."""
    cases: PositiveInt | Literal["all"] = 50
    """Number of cases, drawn by verdict with `seed`, or "all"."""
    slice_cases: PositiveInt = 30
    """Cases that a slice needs to say anything: with fewer, its accuracy is known to no better than ±18 points."""
    seed: int = 3
    """Seed of the draw and of the bootstrap."""
    batch_tokens: PositiveInt = 16384
    """Prompt plus completion tokens generated in one batch; bounds memory."""
    samples: NonNegativeInt = 0
    """Sampled answers per question beside the greedy one; their majority verdict and its share are reported. A
    registered model takes as many for its confidence, and at least five."""
    sample_temperature: PositiveFloat = 0.7
    """Temperature of the sampled answers."""
    resamples: PositiveInt = 2000
    """Bootstrap resamples behind the intervals of means, F1 and differences."""
    probes: bool = True
    """Whether the model in question also answers without its abstracts, over others, and over altered ones; up to four
    more greedy answers a case."""
    near_duplicate: float = Field(default=0.5, gt=0, le=1)
    """Likeness (see `medgrpo.evaluation.contamination`) from which a case's abstract or question counts as a copy of a
    training record's: three times that of PubMedQA's most alike abstracts (0.17), and below a copy of theirs with three
    words in ten replaced (0.57). Synthetic abstracts share their templates and reach 0.75 without being copies."""


class GateConfig(Settings):
    """What a model must show to become a candidate. A threshold is passed, or missed, when the whole 95 % interval of
    what was measured is on one side of it; in between there is not enough evidence."""

    level: float = Field(default=0.05, gt=0, lt=0.5)
    """Level of the one-sided exact McNemar test against the base: how often a model that is no better may pass."""
    margin: float = Field(default=0.05, ge=0, lt=1)
    """Accuracy that may be lost against the champion. The interval of the difference must lie above -margin; 500 cases
    know a difference to about 4 points, so a smaller margin would stop equals most of the time."""
    strict_form: float = Field(default=0.9, ge=0, le=1)
    """Smallest share of answers in strict form: whoever reads answers by program must ask again for the others."""
    unsupported_figures: float = Field(default=0.2, ge=0, le=1)
    """Largest share of answers with a figure that the abstract does not have: a reader who checks the figures of every
    answer should find fault with fewer than one in five."""
    evidence_precision: float = Field(default=0.9, ge=0, le=1)
    """Smallest share of the cited figures that are in the abstract, for an answer may cite many."""
    disagreement: float = Field(default=0.1, ge=0, le=1)
    """Largest share of answers whose thought plainly concludes another verdict. The rule that counts them disputes 2 %
    of the experts' own conclusions and finds one contradiction in five, so a tenth seen means that half contradict
    themselves."""
    reliance_drop: float = Field(default=0.05, ge=0, le=1)
    """Accuracy that must be at stake without the abstract, and with another record's: a model that surely loses less
    does not need it. It passes where the loss is surely above 0."""
    reliance_flips: float = Field(default=0.1, ge=0, le=1)
    """Share of verdicts that must change with another record's abstract: where the right answers of two records differ
    in more than half of the pairs, a model that reads changes far more."""
    recall: float = Field(default=0.1, ge=0, le=1)
    """Smallest recall of a verdict. Who says maybe at random, as often as it is true of PubMedQA, finds 11 % of it."""
    recall_cases: PositiveInt = 20
    """Cases of a verdict that its recall needs to be judged: with 20, 5 right ones just show that it is above 0.1."""
    leaked_cases: float = Field(default=0.01, ge=0, le=1)
    """Largest share of cases with a near-duplicate in the training records; they can lift accuracy by no more than
    that, here one point."""


class RetrainConfig(Settings):
    """What retrain-medgrpo looks at, beside new data, for a reason to train."""

    fresh: Path | None = None
    """File of labelled records in the domain's form (`ori_pqal.json`) that came after those of the data. The
    champion answers them, and training starts where its accuracy has surely fallen below what its evaluation found."""
    fresh_cases: PositiveInt = 50
    """Fresh records that it takes to conclude anything: fewer know an accuracy no better than to ±14 points."""


class TrackingConfig(Settings):
    """Where runs, metrics and model versions go."""

    uri: str | None = None
    """MLflow tracking URI; unset, MLFLOW_TRACKING_URI, else `sqlite:///` in the runs directory."""
    experiment: str = "medgrpo"
    """MLflow experiment."""
    model_name: str = "medgrpo"
    """Registered model; runs of another domain than pubmedqa get a suffix, synthetic ones `-synthetic`."""
    alias: str = "candidate"
    """Alias moved to a newly registered version that passes the gate."""
    price_per_hour: NonNegativeFloat | None = None
    """What one training process, with the GPU or machine it runs on, costs an hour, in whatever currency; unset, no
    cost is reckoned."""


class RunConfig(Settings):
    """One complete run of train-medgrpo."""

    profile: str = "custom"
    """Name of the profile these settings came from."""
    name: str | None = None
    """Directory of the run under `runs_dir`; unset, the profile with the date and time."""
    runs_dir: Path = Path("runs")
    """Where runs, cached artifacts and the default MLflow store live."""
    seed: int = 11
    """Seed of sampling and training."""
    processes: PositiveInt = 1
    """Training processes, each with a GPU of its own where there are any; they share each step's prompts. More than one
    start through `accelerate launch`."""
    audit: Literal["fail", "warn"] = "fail"
    """What a hole in the rewards, found by attacking them on every training record, does to a run before it trains."""
    training_timeout_minutes: PositiveFloat = 24 * 60
    """The training process is stopped after this long; a retry resumes it."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """Checkpoints of a phase that are kept, the watch's last good one among them. With only one, damage to it would
    cost the whole phase."""
    data: DataConfig = DataConfig()
    policy: PolicyConfig = PolicyConfig()
    warmup: WarmupConfig = WarmupConfig()
    grpo: GrpoConfig = GrpoConfig()
    watch: WatchConfig = WatchConfig()
    rewards: RewardConfig = RewardConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    retrain: RetrainConfig = RetrainConfig()
    sweep: SweepConfig = SweepConfig()
    trial: TrialConfig | None = None
    """Set by sweep-medgrpo for its trials: such a run is evaluated and kept, but no model version comes of it."""
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _verdicts_can_weigh_more(self) -> Self:
        """Found here rather than when the warm-up starts, behind preparation and audit."""
        if self.warmup.enabled and self.warmup.verdict_weight != 1:
            from medgrpo.domains import get

            if not get(self.data.domain).form.labels:
                raise ValueError(
                    f"warmup.verdict_weight is {self.warmup.verdict_weight:g}, but the answers of data.domain "
                    f"{self.data.domain!r} are open, so no token is a verdict; set it to 1"
                )
        return self

    @model_validator(mode="after")
    def _steps_can_be_cut(self) -> Self:
        """A step must be whole micro-batches on each process: TRL would quietly train on another number."""
        warmup, completions = self.warmup, self.grpo.prompts_per_step * self.grpo.group_size
        if warmup.batch_size % (warmup.micro_batch * self.processes):
            raise ValueError(
                f"warmup.batch_size = {warmup.batch_size} completions a step cannot be cut into micro-batches of "
                f"{warmup.micro_batch} on {self.processes} process(es); choose a warmup.micro_batch that divides it"
            )
        if completions % self.processes:
            raise ValueError(
                f"grpo.prompts_per_step x grpo.group_size = {completions} completions a step cannot be shared out to "
                f"{self.processes} processes; choose numbers that {self.processes} divides"
            )
        return self


def profile_names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def load_config(profile: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a profile and apply overrides.

    Args:
        profile: name of a shipped profile, or path of a TOML file.
        overrides: `section.key=value` strings; values are TOML, and a bare word is taken as a string.

    Raises:
        InputError: unknown profile or setting (with the nearest names), a file that is not TOML, or a bad value.
    """
    path = _profile_path(str(profile))
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file ({error}). Compare it with {PROFILES / 'demo.toml'}.") from error
    values.setdefault("profile", path.stem)
    for override in overrides:
        _apply(values, override)
    return parse_config(values, source=str(path))


def parse_config(values: Mapping[str, Any], source: str = "settings") -> RunConfig:
    """Validate settings given as a mapping.

    Raises:
        InputError: one sentence per setting that is unknown or has a bad value.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {_explain(problem)}" for problem in error.errors())) from error


def resolve_mlflow_uri(config: RunConfig) -> str:
    """The MLflow tracking URI of a run: the setting, else MLFLOW_TRACKING_URI, else SQLite in the runs directory."""
    default = f"sqlite:///{config.runs_dir.absolute() / 'mlflow.db'}"
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def _profile_path(profile: str) -> Path:
    path = Path(profile) if profile.endswith(".toml") else PROFILES / f"{profile}.toml"
    if path.is_file():
        return path
    if profile.endswith(".toml"):
        raise InputError(f"{profile}: no such profile file. Shipped profiles: {', '.join(profile_names())}.")
    raise InputError(f"unknown profile {profile!r}{nearest(profile, profile_names())}")


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override!r}: expected key=value, for example --set grpo.steps=10.")
    *parents, leaf = key.strip().split(".")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if not isinstance(value, str) and _annotation([*parents, leaf]) in (str, Path):
        # A name needs no quotes though it looks like a date or a number.
        value = text
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override!r}: {parent!r} is a single value, it has no settings inside.")
    values[leaf] = value


def _explain(problem: Any) -> str:
    """One sentence for one pydantic error."""
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location[:2])  # Deeper parts only name the branch of a union.
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name!r}{nearest(location[-1], _settings_at(location[:-1]))}"
    return explain_value(name, problem)


def _settings_at(location: list[str]) -> list[str]:
    found = _annotation(location)
    return list(found.model_fields) if isinstance(found, type) and issubclass(found, BaseModel) else []


def _annotation(location: Sequence[str]) -> Any:
    """The type of a setting, without None where that is one choice; None where there is no such setting."""
    found: Any = RunConfig
    for part in location:
        fields = found.model_fields if isinstance(found, type) and issubclass(found, BaseModel) else {}
        if part not in fields:
            return None
        found = fields[part].annotation
        if get_origin(found) in (Union, UnionType):
            choices = [choice for choice in get_args(found) if choice is not NoneType]
            found = choices[0] if len(choices) == 1 else found
    return found
