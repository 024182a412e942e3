"""No decorative field: flipping a setting of the recipe changes a tensor, a count, a schedule, a hash or a text."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.core.events import Emitter, read_jsonl
from luthier.core.rundir import RunDir
from luthier.core.seeding import seed_everything
from luthier.models import builtin
from luthier.pipeline import learn, prepare, story
from luthier.recipe import Recipe
from luthier.tasks import TASKS
from luthier.train import optim

RECIPE = """
model: {path: builtin}
data: {train: "builtin:short_en", max_rows: 60, max_length: 64}
train: {steps: 4, batch_tokens: 300, lr: 5e-3, threads: 1}
evaluate: {samples: {count: 2, max_new_tokens: 4}, generate_rows: 3, bootstrap: 100, batch_tokens: 500}
"""


def recipe_with(*overrides):
    return Recipe.parse(RECIPE, *overrides)


def stages(recipe, cache=None):
    """Everything up to training."""
    task = TASKS.parse(recipe.task)
    loaded, splits = prepare.read(recipe, task)
    labels, problem = prepare.label_names(splits.train, task)
    base = prepare.load_model(recipe, task, labels, problem)
    data = prepare.encode(recipe, loaded, splits, task, base, labels, problem, cache)
    return SimpleNamespace(task=task, splits=splits, base=base, data=data)


def adapted_of(recipe):
    made = stages(recipe)
    seed_everything(recipe.seed)
    return made, learn.adapt(recipe, made.base, made.task, made.data, Emitter())


# ---- before training
def rows(recipe):
    made = stages(recipe).data.rows["train"]
    return [(made[i].id, made[i].input_ids.tolist(), made[i].labels.tolist()) for i in range(len(made))]


def base(recipe):
    made = stages(recipe).base
    weight = next(made.model.parameters())
    return made.fingerprint, str(weight.dtype), str(weight.device), str(made.model.config.rope_parameters)


def counts(recipe):
    return {name: len(part) for name, part in stages(recipe).data.rows.items()}


def test_ids(recipe):
    return [example.id for example in stages(recipe).splits.test]


test_ids.__test__ = False


def cached(recipe, folder):
    stages(recipe, folder / "cache")
    return sorted(path.name for path in (folder / "cache").rglob("*"))


def plan(recipe):
    made = learn.batches(recipe, stages(recipe).data.rows["train"])
    sizes = [[len(micro.row_ids) for micro in group] for group in made.groups(0)]
    return learn.total_steps(recipe, made), sizes


def trained_names(recipe):
    return sorted(adapted_of(recipe)[1].parameters_by_name())


def peak_rate(recipe):
    return learn.learning_rate(recipe, adapted_of(recipe)[1])


def optimizer(recipe):
    made = optim.build(recipe.train, {"w": torch.nn.Parameter(torch.zeros(2, 2))}, 1e-3, None)
    return type(made).__name__, str(made.param_groups[0].get("betas"))


def first_loss(recipe):
    made, adapted = adapted_of(recipe)
    batch = next(iter(learn.batches(recipe, made.data.rows["train"]).groups(0)))[0]
    return float(adapted.loss(batch).total.detach())


def layer_calls(recipe):
    """How often one layer runs in a step: twice when it is recomputed; and the layout."""
    made, adapted = adapted_of(recipe)
    calls = []
    name = made.base.anatomy.layers[1][0]
    made.base.model.get_submodule(name).mlp.register_forward_pre_hook(lambda *a: calls.append(1))
    adapted.train()
    batch = next(iter(learn.batches(recipe, made.data.rows["train"]).groups(0)))[0]
    adapted.loss(batch).total.backward()
    return len(calls), adapted.layout


def threads(recipe):
    before = torch.get_num_threads()
    found = prepare.settle_threads(recipe)
    torch.set_num_threads(before)
    return found


BEFORE = [
    ("model.dtype", "bfloat16", base),
    ("context", "{name: linear, length: 1024}", base),
    ("task", "language_model", rows),
    ("data.train", "builtin:short_zh", rows),
    ("data.max_rows", "30", counts),
    ("data.template", "plain", rows),
    ("data.loss_on", "everything", rows),
    ("data.split.seed", "7", test_ids),
    ("augment", "[{name: delete, share: 0.5}]", rows),
    ("method", "full", trained_names),
    ("train.epochs", "2", plan),
    ("train.steps", "9", plan),
    ("train.batch_tokens", "120", plan),
    ("train.batch_size", "5", plan),
    ("train.accumulate", "2", plan),
    ("train.micro_tokens", "100", plan),
    ("train.lr", "auto", peak_rate),
    ("train.optimizer", "sgd", optimizer),
    ("train.betas", "[0.8, 0.9]", optimizer),
    ("train.label_smoothing", "0.1", first_loss),
    ("train.z_loss", "0.1", first_loss),
    ("train.engine", "plain", layer_calls),
    ("train.activation_checkpointing", "true", layer_calls),
    ("train.threads", "2", threads),
]
NEEDS = {
    "train.epochs": ("train.steps=null",),
    "train.batch_size": ("train.batch_tokens=null",),
    "train.accumulate": ("train.batch_tokens=null", "train.batch_size=5"),
}


@pytest.mark.parametrize(("field", "value", "observe"), BEFORE, ids=[field for field, _, _ in BEFORE])
def test_before_training(field, value, observe):
    common = NEEDS.get(field, ())
    before = common if field != "train.batch_size" else ()
    assert observe(recipe_with(*before)) != observe(recipe_with(*common, f"{field}={value}"))


def test_another_model_folder_is_another_base(tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(builtin.folder(), tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    assert base(recipe_with()) != base(recipe_with(f"model.path={tmp_path / 'model'}"))


def test_a_device_that_is_not_there_is_told():
    if torch.cuda.is_available():
        assert base(recipe_with()) != base(recipe_with("model.device=cuda"))
        return
    with pytest.raises(LuthierError, match=r"(?i)cuda"):
        base(recipe_with("model.device=cuda"))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_file_of_its_own_for_a_split(tmp_path, part):
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": "a", "output": "b"}] * 3))
    assert counts(recipe_with())[part] != counts(recipe_with(f"data.{part}={tmp_path / 'own.json'}"))[part] == 3


def test_stratify_moves_rows_of_classes():
    asked = ("task=classify", "data.train=builtin:classify", "data.max_rows=null")
    assert test_ids(recipe_with(*asked)) != test_ids(recipe_with(*asked, "data.split.stratify=none"))


def test_cache_keeps_rows_on_disk(tmp_path):
    assert cached(recipe_with(), tmp_path / "a") != cached(recipe_with("data.cache=false"), tmp_path / "b")


# ---- whole runs
def whole(tmp_path_factory, *overrides):
    folder = tmp_path_factory.mktemp("run") / "run"
    try:
        story.run(recipe_with(*overrides), folder)
    except LuthierError as error:
        if error.exit_code != 1:
            raise
    return RunDir(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return whole(tmp_path_factory)


def weights(run):
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def of_kind(kind):
    return lambda run: sum(record["kind"] == kind for record in read_jsonl(run.events))


def kept(run):
    return len(list(run.checkpoints.glob("step-*")))


def samples(run):
    return [sorted(one) for one in read_jsonl(run.samples)], run.samples.read_text("utf-8")


def metrics(run):
    return json.dumps(run.read(run.metrics)["tuned"])


def intervals(run):
    return json.dumps(run.read(run.metrics)["difference"])


WHOLE = [
    ("train.clip_norm", "0.001", weights),
    ("seed", "3", weights),
    ("train.save_every", "1", of_kind("checkpoint")),
    ("train.evaluate_every", "1", of_kind("validate")),
    ("train.keep_checkpoints", "1", kept),
    ("train.early_stop.metric", "perplexity", lambda run: (run.checkpoints / "best.json").read_text()),
    ("evaluate.samples.count", "1", samples),
    ("evaluate.samples.max_new_tokens", "2", samples),
    ("evaluate.samples.temperature", "0", samples),
    ("evaluate.generate_rows", "0", metrics),
    ("evaluate.bootstrap", "200", intervals),
]


@pytest.mark.slow
@pytest.mark.parametrize(("field", "value", "observe"), WHOLE, ids=[field for field, _, _ in WHOLE])
def test_in_a_whole_run(plain, tmp_path_factory, field, value, observe):
    common = ("train.save_every=1",) if field == "train.keep_checkpoints" else ()
    before = whole(tmp_path_factory, *common) if common else plain
    assert observe(before) != observe(whole(tmp_path_factory, *common, f"{field}={value}"))


@pytest.mark.slow
def test_a_probed_rate_is_the_best_of_those_tried_and_leaves_no_trace(tmp_path_factory):
    probed = whole(tmp_path_factory, "train.lr=probe")
    found = json.loads((probed.path / "lr_probe.json").read_text())
    assert len(found["tried"]) == 5
    assert found["lr"] == min(found["tried"], key=lambda one: one["loss"])["lr"]
    assert weights(probed) == weights(whole(tmp_path_factory, f"train.lr={found['lr']}"))


def test_max_disk_refuses_what_does_not_fit(tmp_path_factory):
    with pytest.raises(LuthierError) as caught:
        whole(tmp_path_factory, "train.max_disk=10KB")
    assert caught.value.exit_code == 5


def test_guards_are_measured(tmp_path_factory, tmp_path):
    (tmp_path / "guard.txt").write_text("The children came to the old house by the river.\n\n" * 20)
    run = whole(tmp_path_factory, f"evaluate.guard=[{tmp_path / 'guard.txt'}]")
    assert any("guard.txt" in json.dumps(one) for one in [run.read(run.metrics)["guards"]])


def test_batch_tokens_of_the_evaluation_makes_batches():
    from luthier.data.batching import evaluation_batches

    made = stages(recipe_with()).data.rows["train"]
    assert sum(1 for _ in evaluation_batches(made, 100)) > sum(1 for _ in evaluation_batches(made, 10_000))
