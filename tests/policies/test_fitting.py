"""Tests of medgrpo.policies.fitting: what a device has memory for."""

import logging
from types import SimpleNamespace

import pytest

from medgrpo.config import RunConfig, parse_config
from medgrpo.errors import InputError, TrainingCrashed
from medgrpo.policies import fitting
from medgrpo.policies.embedded import EMBEDDED_CONFIG
from medgrpo.policies.fitting import Device, as_prepared, check_memory, largest_fit, remedy, shortage
from medgrpo.policies.memory import RUNTIME_CUDA, plan_memory


def peak(overrides, cuda=True):
    return plan_memory(changed(overrides), EMBEDDED_CONFIG, cuda).peak


def changed(overrides):
    """The default settings with `--set section.name=value` words applied."""
    values = {}
    for word in overrides:
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    return parse_config(values)


@pytest.fixture
def device(monkeypatch):
    """Train on a CUDA device, or a CPU, with so much memory."""

    def put(cuda, free, whole=0):
        monkeypatch.setattr(fitting, "present_device", lambda processes: Device(cuda, free, whole))

    return put


@pytest.mark.parametrize("cuda", [True, False])
def test_the_largest_settings_fit_and_the_next_do_not(cuda):
    """The plan of the largest group, and of the largest length, is within the memory; one more is beyond it."""
    device = Device(cuda, 16_000_000_000)
    fit = largest_fit(RunConfig(), EMBEDDED_CONFIG, device)
    for setting, value in (("grpo.group_size", fit.group_size), ("data.max_length", fit.max_length)):
        assert peak([f"{setting}={value}"], cuda) <= device.free < peak([f"{setting}={value + 1}"], cuda)


def test_nothing_fits_into_nothing():
    """Where weights alone are too much, no group and no length fit, and the remedy is another model."""
    device = Device(True, 100_000_000)
    fit = largest_fit(RunConfig(), EMBEDDED_CONFIG, device)
    assert (fit.group_size, fit.max_length) == (None, None)
    assert fit.sentence() == "No grpo.group_size fits; no data.max_length does."
    assert "smaller policy.base" in remedy(RunConfig(), EMBEDDED_CONFIG, device)


def test_no_length_beyond_what_the_model_knows_is_offered():
    """With all memory of the world the largest length is the model's own."""
    assert largest_fit(RunConfig(), EMBEDDED_CONFIG, Device(True, 10**15)).max_length == 8_192


@pytest.mark.parametrize("free", [2_200_000_000, 4_000_000_000, 6_000_000_000])
def test_the_remedy_fits(free):
    """What is offered to set makes the plan fit, with whatever else is needed."""
    sentence = remedy(RunConfig(), EMBEDDED_CONFIG, Device(True, free))
    assert sentence.startswith("It fits with --set ")
    overrides = [word for word in sentence.rstrip(".").split() if "=" in word]
    assert peak(overrides) <= free < peak([])


def test_too_little_memory_on_cuda_stops_the_training(device):
    """The sentence has what is needed and free, the parts, what fits, and what to set."""
    device(cuda=True, free=4_000_000_000)
    with pytest.raises(InputError) as stopped:
        check_memory(RunConfig())
    said = str(stopped.value)
    assert said == shortage(RunConfig(), EMBEDDED_CONFIG, Device(True, 4_000_000_000))
    for words in ("needs about", "weights 0.5", "has 4.0 GB free", "data.max_length", "--set"):
        assert words in said


def test_a_device_that_others_hold_is_tried_again(device):
    """Where the whole device would do, the crash is one that a retry may mend, and says who may be looked for."""
    device(cuda=True, free=4_000_000_000, whole=40_000_000_000)
    with pytest.raises(TrainingCrashed, match=r"has 4\.0 GB free.* Of its 40\.0 GB others hold the rest now"):
        check_memory(RunConfig())


def test_too_little_memory_on_a_cpu_is_a_warning(device, caplog):
    """Swap or a neighbour that ends may make room, so the training goes on, and the log says the same."""
    device(cuda=False, free=4_000_000_000)
    with caplog.at_level(logging.INFO):
        plan = check_memory(RunConfig())
    assert plan == plan_memory(RunConfig(), EMBEDDED_CONFIG)
    [note, warning] = caplog.records
    assert (note.levelname, warning.levelname) == ("INFO", "WARNING")
    assert warning.getMessage().startswith("the training needs about")


def test_enough_memory_is_one_line_in_the_log(device, caplog):
    """The plan is said in any case."""
    device(cuda=True, free=40_000_000_000)
    with caplog.at_level(logging.INFO):
        check_memory(RunConfig())
    [note] = caplog.records
    assert note.getMessage().startswith("memory plan: ")
    assert "The CUDA device has 40.0 GB free." in note.getMessage()


@pytest.mark.parametrize(("longest", "length"), [(460, 460), (1024, 1024), (5000, 1024)])
def test_records_shorter_than_allowed_are_planned_as_they_are(tmp_path, longest, length):
    """The longest row of training that was prepared counts, within data.max_length."""
    (tmp_path / "data.json").write_text(f'{{"max_training_tokens": {longest}}}')
    assert as_prepared(RunConfig(), tmp_path).data.max_length == length


def test_a_model_that_cannot_be_planned_for_trains_all_the_same(device, caplog, tmp_path):
    """What its config.json says of its size under other names is no reason to stop; the log says so."""
    device(cuda=True, free=1)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_embd": 768}')
    assert check_memory(RunConfig.model_validate({"policy": {"base": str(tmp_path)}})) is None
    assert caplog.messages[0].startswith("no memory plan: the model's config.json (gpt2) does not say")


def test_each_process_has_its_share_of_a_machine_and_a_device_of_its_own(monkeypatch):
    """Two processes on a CPU have half of its memory each; on GPUs each asks the one with its number."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(fitting, "available_memory", lambda: 10)
    assert fitting.present_device(2) == Device(False, 5)
    asked = []
    cuda = SimpleNamespace(is_available=lambda: True, mem_get_info=lambda device: asked.append(device) or (7, 9))
    monkeypatch.setattr("torch.cuda", cuda)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert fitting.present_device(2) == Device(True, 7 + RUNTIME_CUDA, 9)
    assert asked == [1]
