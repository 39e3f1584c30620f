"""Tests of the training stage on a micro model: its files, resuming, and its reasons to stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ossia import events, runs
from ossia.adapters import apply as lora
from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import OssiaError, UserError
from ossia.model.load import load_model
from ossia.sequences.example import prompt_of
from ossia.train import checkpoints
from ossia.train.arguments import trainer_arguments
from ossia.train.steps import Collator, cut, fingerprint
from ossia.train.supervised import train
from ossia.train.trainer import OssiaTrainer
from support.export_samples import stock_adapter
from support.lora_samples import reference_loss
from support.train_samples import EVERY_TARGET, Example, examples, losses, recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "micro"
    return write_tiny(folder, MICRO, seed=0)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_run_learns_reports_and_keeps_the_best_and_the_newest(model: Path) -> None:
    seen: list[events.Event] = []
    wanted = recipe(model, steps=20, keep_checkpoints=1)
    run = runs.create(wanted, "test")
    last = train(wanted, run, examples(24), examples(6, seed=1), watch=seen.append)
    assert (last.status, last.step) == ("done", 20)
    curve = losses(run)
    assert list(curve) == list(range(1, 21))
    assert sum(list(curve.values())[-5:]) < sum(list(curve.values())[:5]) - 0.5
    assert [event.kind for event in seen] == [event.kind for event in events.read(run.path)]
    validations = [event for event in seen if isinstance(event, events.Validation)]
    assert [event.step for event in validations] == [4, 8, 12, 16, 20]
    assert set(validations[0].channels) == {"analysis", "final"}
    best = min(validations, key=lambda event: event.loss)
    assert run.best_checkpoint() == run.checkpoint(best.step)
    assert set(run.steps()) == {best.step, 20}
    assert run.summary().best_validation == best.loss


def test_validation_loss_is_that_of_the_saved_adapter(model: Path) -> None:
    wanted = recipe(model, steps=4)
    run, held_back = runs.create(wanted, "test"), examples(6, seed=1)
    seen: list[events.Event] = []
    train(wanted, run, examples(16), held_back, watch=seen.append)
    reported = next(event.loss for event in seen if isinstance(event, events.Validation) and event.step == 4)
    reloaded = lora.load_adapter(load_model(model, dtype="float32", device="cpu"), run.checkpoint(4))
    total = count = 0.0
    for example in held_back:  # one row at a time, full logits, shifted by hand
        log_p = reloaded(torch.tensor([example.ids])).logits[0, :-1].log_softmax(-1)
        chosen = log_p.gather(1, torch.tensor(example.ids)[1:, None])[:, 0]
        total -= float((chosen * torch.tensor(example.weights)[1:]).sum())
        count += sum(example.weights[1:])
    assert abs(reported - total / count) < 1e-5


@pytest.mark.parametrize("targets", [None, EVERY_TARGET], ids=["default", "every target"])
def test_an_interrupted_run_continues_as_if_nothing_had_happened(model: Path, targets: list[str] | None) -> None:
    wanted, data, held_back = recipe(model, targets, steps=10), examples(24), examples(4, seed=1)
    whole = runs.create(wanted, "test")
    train(wanted, whole, data, held_back)

    broken = runs.create(wanted, "test")

    class PowerCut(BaseException):
        pass

    def cut_power(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == 8:
            raise PowerCut

    with pytest.raises(PowerCut):
        train(wanted, broken, data, held_back, watch=cut_power)
    assert broken.steps() and broken.steps()[-1] < 8
    assert max(losses(broken)) == 8
    stored = broken.path / "recipe.yaml"  # an older version wrote the setting's former name
    stored.write_text(stored.read_text().replace("tokens_per_micro_batch: ", "tokens_per_pass: "))
    train(broken.recipe(), broken, data, held_back)
    assert losses(broken) == losses(whole)
    assert losses(whole)[10] < losses(whole)[1] - 0.2
    mine, other = (load_file(run.checkpoint(10) / WEIGHTS_FILE) for run in (broken, whole))
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_resuming_with_other_data_is_refused(model: Path) -> None:
    wanted = recipe(model, steps=3)
    run = runs.create(wanted, "test")
    train(wanted, run, examples(8), [])
    with pytest.raises(UserError, match="not those that this run began with"):
        train(wanted, run, examples(9), [])


def test_resuming_on_another_base_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "base")
    wanted = recipe(tmp_path / "base", steps=4, checkpoint_every=2)
    run, data = runs.create(wanted, "test"), examples(8)

    def stop(event: events.Event) -> None:
        if isinstance(event, events.Checkpoint):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(wanted, run, data, [], watch=stop)
    shutil.rmtree(tmp_path / "base")
    write_tiny(tmp_path / "base", MICRO, seed=1)
    with pytest.raises(UserError, match="base model is not the one"):
        train(wanted, run, data, [])


def test_two_processes_cannot_train_in_one_run(model: Path) -> None:
    from filelock import FileLock

    wanted = recipe(model)
    run = runs.create(wanted, "test")
    with FileLock(run.path / "lock"), pytest.raises(UserError, match="another process"):
        train(wanted, run, examples(8), [])


def test_early_stopping_ends_the_run_with_a_checkpoint(model: Path) -> None:
    # With so small a learning rate the loss never changes, so no evaluation after the first is a new best.
    wanted = recipe(model, steps=40, evaluate_every=2, early_stopping=2, learning_rate=1e-30)
    run = runs.create(wanted, "test")
    last = train(wanted, run, examples(8), examples(4, seed=1))
    assert last.status == "stopped"
    assert "early stopping" in last.reason
    assert last.step == 6
    assert run.steps()[-1] == 6


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(model: Path) -> None:
    wanted = recipe(model, steps=12, learning_rate=1e30, schedule="constant", warmup_share=0.0, checkpoint_every=1)
    run = runs.create(wanted, "test")
    with pytest.raises(OssiaError, match="loss of step"):
        train(wanted, run, examples(16), [])
    assert run.steps()
    assert isinstance(events.read(run.path)[-1], events.Finished)
    assert events.read(run.path)[-1].status == "failed"


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(model, steps=6, checkpoint_every=2)
    run = runs.create(wanted, "test")
    save = lora.save_adapter

    def broken_disk(adapter: Any, folder: Path) -> None:
        if "000004" in folder.name:
            (folder / "half").write_text("x")
            raise OSError(5, "Input/output error")
        save(adapter, folder)

    monkeypatch.setattr(lora, "save_adapter", broken_disk)
    with pytest.raises(OssiaError, match="Input/output error"):
        train(wanted, run, examples(16), [])
    assert run.steps() == [2]
    assert not list(run.checkpoints.glob(f"*{checkpoints.PARTIAL}"))


def test_a_failure_of_torch_save_is_a_sentence_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe(model, steps=4, checkpoint_every=2)
    run = runs.create(wanted, "test")
    save = torch.save

    def full_disk(what: Any, path: Any, *rest: Any) -> None:
        if "000004" in str(path):
            raise RuntimeError("[enforce fail at somewhere.cc:672] . unexpected pos 640 vs 534\nframe 1")
        save(what, path, *rest)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OssiaError, match=r"step 4 could not be written .*unexpected pos 640 vs 534\)"):
        train(wanted, run, examples(16), [])
    assert run.steps() == [2]


def test_resuming_a_finished_run_trains_no_further_step(model: Path) -> None:
    wanted, data = recipe(model, steps=8), examples(24)  # 8 steps end within the second epoch
    run = runs.create(wanted, "test")
    train(wanted, run, data, [])
    before = (run.checkpoint(8) / WEIGHTS_FILE).read_bytes()
    last = train(wanted, run, data, [])
    assert (last.status, last.step) == ("done", 8)
    assert (run.steps()[-1], max(losses(run))) == (8, 8)
    assert (run.checkpoint(8) / WEIGHTS_FILE).read_bytes() == before


@pytest.mark.parametrize("recompute", [True, False])
def test_a_gradient_that_is_not_finite_reaches_no_checkpoint_and_has_a_name(
    model: Path, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    wanted = recipe(model, steps=4, checkpoint_every=1, recompute=recompute)
    run = runs.create(wanted, "test")
    step = OssiaTrainer.training_step

    def overflowing(self: Any, adapted: Any, inputs: Any, count: Any = None) -> Any:
        if self.state.global_step == 2:
            culprit = adapted.get_parameter("base_model.model.model.layers.1.self_attn.k_proj.lora_A.default.weight")
            culprit.register_hook(lambda grad: grad * torch.inf)
        return step(self, adapted, inputs, count)

    monkeypatch.setattr(OssiaTrainer, "training_step", overflowing)
    with pytest.raises(OssiaError, match="gradient of step 3") as error:
        train(wanted, run, examples(16), examples(4, seed=1))
    assert "is that of model.layers.1.self_attn.k_proj.lora_A.default.weight" in str(error.value.why)
    assert run.steps()[-1] == 2
    assert all(torch.isfinite(tensor).all() for tensor in load_file(run.checkpoint(2) / WEIGHTS_FILE).values())


@pytest.mark.parametrize(
    ("module", "named"),
    [("layers.1.mlp.router", "model.layers.1.mlp.router"), ("layers.0.self_attn.o_proj", "layers.0.self_attn.o_proj")],
)
def test_a_poisoned_layer_is_named(model: Path, monkeypatch: pytest.MonkeyPatch, module: str, named: str) -> None:
    wanted = recipe(model, steps=6, checkpoint_every=2)
    run = runs.create(wanted, "test")
    step = OssiaTrainer.training_step

    def poisoned(self: Any, adapted: Any, inputs: Any, count: Any = None) -> Any:
        if self.state.global_step == 3:
            weight = adapted.get_base_model().model.get_submodule(module)
            weight = getattr(weight, "base_layer", weight).weight
            weight.data = weight.clone().fill_(torch.nan)
        return step(self, adapted, inputs, count)

    monkeypatch.setattr(OssiaTrainer, "training_step", poisoned)
    with pytest.raises(OssiaError, match="the loss of step 4 is nan") as error:
        train(wanted, run, examples(16), [])
    assert f"the first output that is not finite is that of model.{named.removeprefix('model.')}" in str(
        error.value.why
    )
    assert run.steps() == [2]


def test_a_share_of_epochs_that_is_not_exact_in_binary_gives_no_step_too_many(model: Path) -> None:
    wanted = recipe(model, steps=None, epochs=1.1, examples_per_step=1)
    assert wanted.train.total_steps(10) == 11


def test_a_run_of_one_step_learns(model: Path) -> None:
    wanted = recipe(model, steps=1)  # with the default warm-up
    run = runs.create(wanted, "test")
    train(wanted, run, examples(4), [])
    tensors = load_file(run.checkpoint(1) / WEIGHTS_FILE)
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_several_gpus_without_a_launcher_are_not_spread_over(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe(model)
    arguments = trainer_arguments(wanted, runs.create(wanted, "test"), 8, validate=False)
    monkeypatch.setattr(arguments, "_n_gpu", 4)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 4)
    torch.use_deterministic_algorithms(False)


def test_no_examples_is_the_users_error(model: Path) -> None:
    wanted = recipe(model)
    with pytest.raises(UserError, match="nothing to train on"):
        train(wanted, runs.create(wanted, "test"), [], [])


def test_a_tracker_that_is_not_installed_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = recipe(model, report_to=["wandb"])
    with pytest.raises(UserError, match="wandb, which is not installed"):
        train(wanted, runs.create(wanted, "test"), examples(8), [])


def test_a_tracker_gets_losses_and_routing(model: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="extra: track")
    wanted = recipe(model, steps=4, report_to=["tensorboard"])
    run = runs.create(wanted, "test")
    train(wanted, run, examples(8), examples(4, seed=1))
    (file,) = run.path.rglob("events.out.tfevents.*")
    found = accumulator.EventAccumulator(str(file))
    found.Reload()
    logged = {event.step: event.value for event in found.Scalars("train/loss")}
    assert logged == pytest.approx(losses(run), rel=1e-6)
    names = set(found.Tags()["scalars"])
    assert {"eval/loss", "eval/loss_final", "eval/loss_analysis", "train/grad_norm"} <= names
    assert {"train/routing_entropy_least", "train/routing_load_largest", "train/routing_drift_mean"} <= names


def test_starting_from_an_adapter_begins_with_its_loss(model: Path, tmp_path: Path) -> None:
    wanted = recipe(model, steps=6)
    first = runs.create(wanted, "test")
    train(wanted, first, examples(16), examples(4, seed=1))
    settings = wanted.lora.model_copy(update={"start_from": str(first.checkpoint(6)), "rank": 99})
    again = wanted.model_copy(update={"lora": settings})
    second = runs.create(again, "test")
    train(again, second, examples(16), [])
    # Both begin with the same examples.
    assert losses(second)[1] < losses(first)[1] - 0.1
    ranks = json.loads((second.checkpoint(6) / CONFIG_FILE).read_text())
    assert ranks["r"] == 4  # the adapter's, not the recipe's


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_starting_from_an_adapter_of_stock_peft(model: Path, tmp_path: Path) -> None:
    """It keeps its targets, ranks and scales, and the first loss is that of stock PEFT and transformers."""
    targets = ["q_proj", "1.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj", "mlp.router.weight", "lm_head"]
    ranks = {"lm_head": 3, "router.weight": 1, "gate_up_proj": 2, "down_proj": 2}
    stock = stock_adapter(model, tmp_path / "adapter", targets, rank_pattern=ranks, use_rslora=True)
    wanted, data = recipe(model, steps=2, examples_per_step=16), examples(16)
    wanted = wanted.model_copy(
        update={"lora": wanted.lora.model_copy(update={"start_from": str(tmp_path / "adapter")})}
    )
    run = runs.create(wanted, "test")
    train(wanted, run, data, [])
    truth = reference_loss(stock, [(example.ids, example.weights) for example in data]).item()
    assert abs(losses(run)[1] - truth) < 1e-5 * truth
    before, after = (load_file(folder / WEIGHTS_FILE) for folder in (tmp_path / "adapter", run.checkpoint(2)))
    assert {name: tensor.shape for name, tensor in before.items() if ".lora_" in name} == {
        name: tensor.shape for name, tensor in after.items()
    }
    assert not any(torch.equal(before[name], after[name]) for name in after)
    config = json.loads((run.checkpoint(2) / CONFIG_FILE).read_text())
    assert (config["rank_pattern"], config["use_rslora"]) == (ranks, True)


def test_micro_batches_hold_every_example_once_and_no_more_than_their_tokens() -> None:
    data = examples(40)
    groups = list(cut(data, 64))
    assert sorted(id(example) for group in groups for example in group) == sorted(map(id, data))
    totals = [sum(map(len, group)) for group in groups]
    assert all(total <= 64 for total in totals) and sum(totals) > 0.7 * 64 * len(groups)  # no padding is counted
    with pytest.raises(UserError, match="a micro-batch holds 20"):
        list(cut(data, 20))
    supervised = sum(1 for example in data for weight in example.weights[1:] if weight)
    for share in (False, True):
        batch = Collator(64, share)(data)
        assert sum(float(inputs["weights"].sum()) for inputs in batch["micro_batches"]) == supervised
        assert (
            sum(len(inputs["rows"]) for inputs in batch["micro_batches"]) == supervised
        ) is not share  # some are equal
        assert [len(names) for names in batch["names"]] == [len(inputs["rows"]) for inputs in batch["micro_batches"]]
        assert batch["example_tokens"] == sum(map(len, data))


def test_the_prompt_of_an_example_ends_before_its_first_trained_token() -> None:
    assert prompt_of(Example([5, 6, 7, 8], [0.0, 0.0, 1.0, 0.0])) == [5, 6]


def test_the_fingerprint_sees_ids_weights_and_the_split() -> None:
    data = examples(3)
    prints = {
        fingerprint(data, []),
        fingerprint(data[:2], data[2:]),
        fingerprint(data[::-1], []),
        fingerprint([*data[:2], Example(data[2].ids, [1.0] * len(data[2].ids))], []),
    }
    assert len(prints) == 4


def test_offload_is_refused_where_there_is_nothing_to_send_away_from(model: Path) -> None:
    wanted = recipe(model, offload=True)
    with pytest.raises(UserError, match="on a CPU"):
        train(wanted, runs.create(wanted, "test"), examples(4), [])
