"""A rewritten model is fine-tuned like any module, and goes on from a checkpoint as if it had never stopped."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.data import DataLoader

import remixer
from remixer import LongShort, Toeplitz

STEPS, HALF = 6, 3


class Decoder(nn.Module):
    """A language model with dropout, whose head is its table of embeddings."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 32)
        self.body = body
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids):
        states = self.body(self.dropout(self.embedding(input_ids)))["states"]
        return {"logits": self.head(states)}


@pytest.fixture
def fresh(causal_model):
    causal_model.layers = causal_model.layers[:1]
    decoder = Decoder(causal_model).train()
    example = {"input_ids": torch.arange(24).view(2, 12) % 20}

    def fresh(mixer=LongShort(window=4)):  # noqa: B008 (configs are frozen)
        torch.manual_seed(0)
        return remixer.remix(decoder, mixer, example)

    return fresh


@pytest.fixture
def rows():
    starts = torch.randint(0, 20, (4 * STEPS, 1))
    return [{"input_ids": ids, "labels": ids} for ids in (starts + torch.arange(13)) % 20]


def next_token_loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def train(model, optimiser, batches, backward=torch.Tensor.backward):
    losses = []
    for batch in batches:
        loss = next_token_loss(model(input_ids=batch["input_ids"]), batch["labels"])
        backward(loss)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def loader(rows):
    return DataLoader(rows, 4, generator=torch.Generator())


def with_torch(model, other, file):
    torch.save(model.state_dict(), file)
    other.load_state_dict(torch.load(file, weights_only=True))


def with_save_model(model, other, file):
    save_model(model, file)
    load_model(other, file)


@pytest.mark.parametrize(
    ("mixer", "through"), [(LongShort(window=4), with_torch), (Toeplitz(gate="value"), with_save_model)]
)
def test_a_run_goes_on_from_its_weights_with_identical_losses(fresh, rows, tmp_path, mixer, through):
    batches = list(loader(rows))
    model = fresh(mixer)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    first = train(model, optimiser, batches[:HALF])
    other = fresh(mixer)
    through(model, other, tmp_path / "weights")
    moments, random = optimiser.state_dict(), torch.get_rng_state()
    torch.save(moments, tmp_path / "moments.pt")
    rest = train(model, optimiser, batches[HALF:])
    assert rest[-1] < first[0]

    def go_on(model, random):
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        optimiser.load_state_dict(torch.load(tmp_path / "moments.pt", weights_only=True))
        torch.set_rng_state(random)
        return train(model, optimiser, batches[HALF:])

    assert go_on(copy.deepcopy(other), torch.get_rng_state()) != rest  # dropout is on
    assert go_on(other, random) == rest
    assert other.get_parameter("head.weight") is other.get_parameter("embedding.weight")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.fixture
def accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_goes_on_with_identical_losses_in_bf16(fresh, rows, tmp_path, accelerate):

    def prepared():
        accelerator, model = accelerate.Accelerator(cpu=True, mixed_precision="bf16"), fresh()
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        return accelerator, *accelerator.prepare(model, optimiser, loader(rows))

    accelerator, model, optimiser, batches = prepared()
    losses = []
    for step, batch in enumerate(batches):
        if step == HALF:
            accelerator.save_state(tmp_path / "half")
        losses += train(model, optimiser, [batch], accelerator.backward)
    assert losses[-1] < losses[0]
    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert isinstance(plain, remixer.Remixed)
    assert plain.report.sites[0].mixer == "long_short"

    accelerator, other, optimiser, batches = prepared()
    accelerator.load_state(tmp_path / "half")
    rest = accelerator.skip_first_batches(batches, HALF)
    assert train(other, optimiser, rest, accelerator.backward) == losses[HALF:]


def tied_weights_twice(module, state, prefix, metadata):
    held = set()
    for name, tensor in state.items():
        state[name] = tensor.clone() if tensor.data_ptr() in held else tensor
        held.add(tensor.data_ptr())


def test_the_trainer_goes_on_with_identical_losses(fresh, rows, tmp_path):
    transformers = pytest.importorskip("transformers")

    def losses(resume):
        options = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            learning_rate=3e-3,
            save_steps=HALF,
            logging_steps=1,
            label_names=["labels"],
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        model = fresh()
        model.register_state_dict_post_hook(tied_weights_twice)
        trainer = transformers.Trainer(model, options, train_dataset=rows, compute_loss_func=next_token_loss)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
        assert model.get_parameter("head.weight") is model.get_parameter("embedding.weight")
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    found = losses(None)
    assert found[-1] < found[0]
    assert losses(str(tmp_path / f"checkpoint-{HALF}"))[HALF:] == found[HALF:]
