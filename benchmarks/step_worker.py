"""One side of the comparison of GRPO steps, in a process of its own, with a clock on each phase."""

import gc
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgrpo.errors import MedgrpoError, TrainingCrashed
from medgrpo.policies.backends import installed_packages
from medgrpo.training.launch import CHILD_ENVIRONMENT, LOG_LINES

SIDES = STOCK, OURS, OURS_BFLOAT16 = ("trl", "medgrpo", "medgrpo, bfloat16 rollout")
UNSLOTH = "unsloth"
"""A fourth side where the package is installed; what it does inside a step is not split into phases."""
PHASES = ("prefill", "decode", "loss forward", "backward", "optimiser")
ENVIRONMENTS = {
    STOCK: {},
    OURS: CHILD_ENVIRONMENT,
    OURS_BFLOAT16: CHILD_ENVIRONMENT,
    # Its way to compute a prompt once per group; it leaves it out by itself where it has no kernel for it.
    UNSLOTH: {"UNSLOTH_GRPO_PREFIX_GROUPER": "1"},
}


def sides() -> tuple[str, ...]:
    """The sides that can be compared with what is installed."""
    return (*SIDES, UNSLOTH) if UNSLOTH in installed_packages() else SIDES


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison; lengths in tokens."""

    group: int = 4
    prompt: int = 400
    completion: int = 64
    prompts: int = 4


@dataclass(frozen=True)
class Setup:
    """What all sides share.

    Attributes:
        base: model name or directory.
        records: PubMedQA's ori_pqal.json, or None for synthetic records.
        budget: our tokens in a micro-batch.
        micro_batch: TRL's completions in a micro-batch.
        folder: where gradients are exchanged, and each side writes its log.
        autocast: what training passes compute in, "none" or "bfloat16".
    """

    base: str
    records: Path | None
    budget: int
    micro_batch: int
    folder: str
    autocast: str = "none"


class Worker:
    """One side in a process of its own, asked through a pipe."""

    def __init__(self, setup: Setup, case: Case, side: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, self._there = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._there, setup, case, side), daemon=True)
        self._log, self._environment = log_of(setup, side), ENVIRONMENTS[side]

    def __enter__(self) -> "Worker":
        with _environment(self._environment):
            self._process.start()
        self._there.close()
        return self

    def ask(self, method: str, *args: Any) -> Any:
        """What a method of the `_Side` in the process returns.

        Raises:
            MedgrpoError: what it raised, or that its process ended.
        """
        # Where its process has ended, the reason may still be in the pipe.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send((method, args))
        return received(self._pipe, self._process, self._log)

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.join()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """What processes started meanwhile find in their environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def log_of(setup: Setup, side: str) -> Path:
    """Where a side's process writes what libraries print."""
    return Path(setup.folder) / f"{side}.log"


def received(pipe: Any, process: Any, log: Path) -> Any:
    """What a process sends.

    Args:
        pipe: connection to it.
        process: the process; another connection than its own must not keep the pipe open.
        log: what it prints goes there.

    Raises:
        MedgrpoError: it sends that.
        TrainingCrashed: it ended without a word; its last lines are in the message.
    """
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.is_file() else []
        raise TrainingCrashed(
            f"a process ended with exit code {process.exitcode}. Its last lines, from {log}:\n" + "\n".join(lines)
        ) from None
    if isinstance(answer, MedgrpoError):
        raise answer
    return answer


def write_to(log: Path) -> None:
    """Let what this process prints, and its traceback, go to a file."""
    with log.open("a") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)


def _serve(pipe: Any, setup: Setup, case: Case, side: str) -> None:
    """Answer what is asked until the parent ends this process."""
    write_to(log_of(setup, side))
    try:
        bench = _Side(setup, case, side)
        while True:
            method, args = pipe.recv()
            pipe.send(getattr(bench, method)(*args))
    except MedgrpoError as error:
        pipe.send(error)


class _Side:
    """A trainer that can be stepped one at a time, with a clock on each phase."""

    def __init__(self, setup: Setup, case: Case, side: str) -> None:
        import torch

        torch.manual_seed(0)
        if side == UNSLOTH:
            from medgrpo.policies import fast

            # Before anything imports transformers or TRL.
            fast.start()
        else:
            from medgrpo.training import logprobs

            logprobs.install()
        self.setup, self.case, self.side = setup, case, side
        self.seconds: dict[str, float] = defaultdict(float)
        self.trainer = _trainer(setup, case, side)
        if setup.autocast != "none":
            # Autocast comes with what Trainer.train does first, and it is not called here.
            self.trainer.model_wrapped = self.trainer.accelerator.prepare_model(self.trainer.model)
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = self.trainer.args.gradient_accumulation_steps
        self.batches = _batches(self.trainer)
        if side != UNSLOTH:
            self._time_phases()
        _reset_peak_memory()

    def warm_up(self) -> None:
        """One step that does not count."""
        self.step()
        _reset_peak_memory()

    def rollout(self) -> Path:
        """Generate and score one batch, and leave it in a file."""
        import torch

        batch = self.trainer._generate_and_score_completions(next(self.batches))
        path = Path(self.setup.folder) / f"{self.side} rollout.pt"
        torch.save({name: value.cpu() for name, value in batch.items()}, path)
        return path

    def gradients(self, rollout: Path) -> Path:
        """Gradients of one step on a given rollout, in a file."""
        import torch

        trainer = self.trainer
        batch = {name: value.to(trainer.accelerator.device) for name, value in torch.load(rollout).items()}
        prepare = trainer._prepare_inputs
        rows = trainer.args.per_device_train_batch_size
        trainer.model.zero_grad()
        for start in range(0, len(batch["advantages"]), rows):
            part = {n: v[start : start + rows] if v.dim() else v for n, v in batch.items()}
            trainer._prepare_inputs = lambda inputs, part=part: part
            trainer.training_step(trainer.model, None, None)
        trainer._prepare_inputs = prepare
        trainer._step = 0
        path = Path(self.setup.folder) / f"{self.side}.pt"
        torch.save({n: p.grad.cpu() for n, p in trainer.model.named_parameters() if p.requires_grad}, path)
        trainer.model.zero_grad()
        _reset_peak_memory()
        return path

    def step(self) -> dict[str, float]:
        """Seconds of one whole step and of its phases."""
        self.seconds.clear()
        gc.collect()
        batch = next(self.batches)
        started = _now()
        for _ in range(self.trainer.args.gradient_accumulation_steps):
            self.trainer.training_step(self.trainer.model, batch, None)
        with self._clock("optimiser"):
            self.trainer.accelerator.clip_grad_norm_(self.trainer.model.parameters(), 0.5)
            self.trainer.optimizer.step()
            self.trainer.model.zero_grad()
        phases = ("optimiser",) if self.side == UNSLOTH else PHASES
        return {"step": _now() - started, **{name: self.seconds[name] for name in phases}, "loss_flops": self._flops()}

    def peak_memory(self) -> float:
        """Peak memory of this side in GB: resident on a CPU, allocated on a GPU."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e9
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9

    def matmul_peak(self, size: int = 2048, repeats: int = 5) -> float:
        """Best measured float32 matrix product, operations per second."""
        import torch

        one, other = (torch.randn(size, size, device=self.trainer.accelerator.device) for _ in range(2))
        best = float("inf")
        for _ in range(repeats + 1):
            started = _now()
            one @ other
            best = min(best, _now() - started)
        return 2 * size**3 / best

    def _time_phases(self) -> None:
        trainer = self.trainer
        generate, loss, backward = trainer._generate_single_turn, trainer._compute_loss, trainer.accelerator.backward
        model = trainer.accelerator.unwrap_model(trainer.model)
        base = model.get_base_model()
        forward = base.forward

        def timed_generate(*args: Any, **options: Any) -> Any:
            first: list[float] = []

            def noticing(*args: Any, **options: Any) -> Any:
                output = forward(*args, **options)
                first.append(_now()) if not first else None
                return output

            # `generate` reads the signature of forward.
            noticing.__wrapped__ = forward  # type: ignore[attr-defined]
            base.forward = noticing
            started = _now()
            try:
                return generate(*args, **options)
            finally:
                base.forward = forward
                if first:
                    self.seconds["prefill"] += first[0] - started
                    self.seconds["decode"] += _now() - first[0]

        def timed(name: str, function: Any) -> Any:
            def run(*args: Any, **options: Any) -> Any:
                with self._clock(name):
                    return function(*args, **options)

            return run

        trainer._generate_single_turn = timed_generate
        trainer._compute_loss = timed("loss forward", loss)
        trainer.accelerator.backward = timed("backward", backward)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        started = _now()
        yield
        self.seconds[name] += _now() - started

    def _flops(self) -> float:
        """Floating-point operations of the loss phase in our packing: forward, and backward to the inputs alone.

        Weights are frozen, so the backward pass through a matrix costs as much as the forward; the adapter's share and
        attention's are left out.
        """
        case, config = self.case, self.trainer.model.config
        weights = {name: p.numel() for name, p in self.trainer.model.named_parameters()}
        matrices = sum(n for name, n in weights.items() if "base_layer.weight" in name)
        tokens = case.prompts * (case.prompt + case.group * case.completion)
        head = case.prompts * case.group * case.completion * config.vocab_size * config.hidden_size
        return 4.0 * (matrices * tokens + head)


def _trainer(setup: Setup, case: Case, side: str) -> Any:
    import datasets
    import torch
    import trl

    datasets.disable_progress_bars()
    model, tokenizer = _load(setup, case, side)
    # A token that is never written, so that every completion has the length asked for.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    rows = datasets.Dataset.from_list([{"prompt": text} for text in _prompts(setup, case, tokenizer)])
    completions = case.prompts * case.group
    micro = min(setup.micro_batch, completions) if side == STOCK else completions
    arguments = trl.GRPOConfig(
        output_dir=setup.folder,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=completions // micro,
        steps_per_generation=completions // micro,
        num_generations=case.group,
        max_completion_length=case.completion,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        learning_rate=1e-5,
        loss_type="dapo",
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=setup.autocast == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        seed=1,
    )
    given = {
        "model": model,
        "reward_funcs": _reward,
        "args": arguments,
        "train_dataset": rows,
        "processing_class": tokenizer,
    }
    if side in (STOCK, UNSLOTH):
        # Where Unsloth runs on a GPU, its own trainer stands in TRL's place.
        return trl.GRPOTrainer(**given)
    from medgrpo.training.grouped import GroupedGRPOTrainer

    dtype = torch.bfloat16 if side == OURS_BFLOAT16 else None
    return GroupedGRPOTrainer(micro_batch_tokens=setup.budget, rollout_dtype=dtype, **given)


def _load(setup: Setup, case: Case, side: str) -> tuple[Any, Any]:
    """The model with a fresh adapter, and its tokenizer."""
    from medgrpo.config import DataConfig, PolicyConfig, RunConfig
    from medgrpo.policies import load_trainable

    if side != UNSLOTH:
        return load_trainable(PolicyConfig(base=setup.base, lora_rank=16))
    from medgrpo.policies.fast import load_fast

    policy = PolicyConfig.model_validate({"base": setup.base, "lora_rank": 16, "autocast": setup.autocast})
    return load_fast(RunConfig(policy=policy, data=DataConfig(max_length=case.prompt + case.completion)))


def _reward(completions: list[str], **_: Any) -> list[float]:
    """Different within every group."""
    # Squares: no completion earns exactly its group's mean, which would leave it out of our loss.
    return [float(place % 16) ** 2 for place in range(len(completions))]


def _prompts(setup: Setup, case: Case, tokenizer: Any) -> list[str]:
    """Abstracts with questions, cut or repeated to the case's length in tokens."""
    from medgrpo.domains import pubmedqa, synthetic
    from medgrpo.prompts import render_prompt

    path = setup.records
    records = pubmedqa.load(path).split("train") if path else synthetic.generate(count=100, seed=7)
    options = {"tokenize": False, "add_generation_prompt": True}
    texts = [tokenizer.apply_chat_template(render_prompt(record), **options) for record in records]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    wanted = [(one * (case.prompt // len(one) + 1))[: case.prompt] for one in ids[: 16 * case.prompts]]
    return [tokenizer.decode(one) for one in wanted]


def _batches(trainer: Any) -> Iterator[Any]:
    while True:
        yield from trainer.get_train_dataloader()


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
