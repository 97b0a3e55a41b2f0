"""The model as transformers uses it: training, loading, precision, what it refuses."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments, pipeline
from transformers.utils import logging

from models import tiny
from widestream.blocks.roles import Declared
from widestream.errors import UserError
from widestream.hub import WidestreamConfig, WidestreamForCausalLM
from widestream.hub.cache import StreamMemory
from widestream.hub.export import write_model
from widestream.hub.modeling import CACHE
from widestream.model.build import build_model
from widestream.streams import OWN_KINDS, stream_class

logging.disable_progress_bar()
MODERN = {"norm": "rmsnorm", "positions": "rotary", "qk_norm": {"over": "head"}, "activation": "swiglu"}
SANDWICH = {"norm": "rmsnorm", "norm_place": "both", "attention_bias": "all", "mlp_bias": True, "positions": "rotary"}
EXPERTS = {"activation": "swiglu", "moe": {"num_experts": 4, "top_k": 2, "balance": "loss"}, "norm": "rmsnorm"}
MATRIX = {"kind": "matrix", "key_dim": 6}


def folder_of(tmp_path, stream, blocks=MODERN, **how):
    model = build_model(tiny(stream, **blocks), seed=1)
    write_model(model, tmp_path / "model", 0, **how)
    return model, tmp_path / "model"


def load(folder, cls=AutoModelForCausalLM, **how):
    return cls.from_pretrained(folder, **how).eval()


def tokens_of(model, length=9, rows=2):
    return torch.randint(1, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def own_logits(model, tokens):
    with torch.no_grad():
        return model.logits(model(tokens))


@pytest.mark.parametrize("stream", [MATRIX, {"kind": "mhc"}, {"kind": "deep_delta"}], ids=lambda s: s["kind"])
def test_saved_and_loaded_again_it_is_the_same_in_parts_too(tmp_path, stream):
    model, folder = folder_of(tmp_path, stream, shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    tokens = tokens_of(model)
    loaded = load(folder)
    loaded.save_pretrained(tmp_path / "again")
    for found in (loaded, load(tmp_path / "again"), load(folder, AutoModel)):
        weights = found.decoder.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    # Weights from a file may lie where no vector begins, and then sums are taken in another order.
    torch.testing.assert_close(loaded(tokens).logits, own_logits(model, tokens), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found(tokens).last_hidden_state, model(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "stream", [MATRIX, {"kind": "matrix_maps", "key_dim": 6}, {"kind": "mhc"}], ids=lambda s: s["kind"]
)
def test_nothing_is_left_unset(tmp_path, stream, monkeypatch):
    """What a folder lacks starts as in this package, whatever lay in memory."""
    model, folder = folder_of(tmp_path, stream, EXPERTS)
    config = WidestreamConfig.of(model.config)
    empty = torch.empty_like

    def filled(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() and made.device.type != "meta" else made

    monkeypatch.setattr(torch, "empty_like", filled)
    fresh = WidestreamForCausalLM(config)
    stds = {name: role.std for name, role in fresh.decoder.roles().items()}
    for name, parameter in fresh.decoder.named_parameters():
        assert parameter.isfinite().all(), name
        if stds[name] is None:
            assert (parameter == 1).all(), name
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    dropped = [name for name in weights if ".stream." in name or "bias" in name]
    assert dropped
    save_file({n: t for n, t in weights.items() if n not in dropped}, folder / "model.safetensors", {"format": "pt"})
    loaded = load(folder)
    assert loaded(tokens_of(model)).logits.isfinite().all()
    for prefix, module in loaded.decoder.named_modules():
        for name, value in module.initial_values().items() if isinstance(module, Declared) else ():
            if f"decoder.{prefix}.{name}" in dropped:
                assert torch.equal(getattr(module, name), value), name


@pytest.mark.parametrize(
    ("stream", "blocks"),
    [(MATRIX, MODERN), ({"kind": "vector"}, SANDWICH), ({"kind": "mhc"}, EXPERTS), ({"kind": "attn_res"}, MODERN)],
    ids=["matrix", "vector", "mhc", "attn_res"],
)
def test_in_bf16_the_stream_stays_in_float32(tmp_path, stream, blocks):
    model, folder = folder_of(tmp_path, stream, blocks)
    loaded = load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.decoder.stream.parameters()} <= {torch.float32}
    assert loaded.decoder.embedding.token.dtype == torch.bfloat16
    tokens = tokens_of(model)
    found, expected = loaded(tokens).logits.float(), own_logits(model, tokens)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    prompt = tokens[:, :4]
    cached, whole = (loaded.generate(prompt, max_new_tokens=3, do_sample=False, use_cache=use) for use in (True, False))
    assert cached.shape == whole.shape == (2, 7)


def test_gradients_with_checkpointing_are_those_without_and_the_loss_is_our_own(tmp_path):
    model, folder = folder_of(tmp_path, MATRIX)
    tokens, grads = tokens_of(model), []
    for checkpointing in (False, True):
        loaded = load(folder).train()
        if checkpointing:
            loaded.gradient_checkpointing_enable()
            assert loaded.gradient_checkpointing
        loss = loaded(tokens, labels=tokens).loss
        loss.backward()
        grads.append({name: p.grad for name, p in loaded.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    ours = model.loss(tokens[:, :-1], tokens[:, 1:]).total
    torch.testing.assert_close(loss, ours)
    ours.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[0][f"decoder.{name}"], p.grad, rtol=1e-4, atol=1e-6)


def test_the_balance_of_experts_is_in_the_loss_of_training(tmp_path):
    model, folder = folder_of(tmp_path, MATRIX, EXPERTS)
    tokens = tokens_of(model)
    expected = model.loss(tokens, tokens)
    assert expected.total > expected.cross_entropy
    loaded = load(folder)
    balance = loaded.train()(tokens, labels=tokens).loss - loaded.eval()(tokens, labels=tokens).loss
    torch.testing.assert_close(balance, model.config.moe.balance_weight * expected.balance, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stream", [MATRIX, {"kind": "hyper_connections"}], ids=lambda s: s["kind"])
def test_the_trainer_takes_ten_steps_and_saves(tmp_path, stream):
    model, folder = folder_of(tmp_path, stream)
    loaded = load(folder).train()
    rows = [{"input_ids": row, "labels": row} for row in tokens_of(model, rows=8)]
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=10, per_device_train_batch_size=4, logging_steps=1, save_steps=10,
        report_to=[], use_cpu=True, disable_tqdm=True, gradient_checkpointing=True,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(loaded.parameter_groups(weight_decay=0.1), lr=1e-2)
    trainer = Trainer(loaded, arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.2
    again = load(tmp_path / "out" / "checkpoint-10")
    assert close(again(rows[0]["input_ids"][None]).logits, loaded.eval()(rows[0]["input_ids"][None]).logits)


def test_only_matrices_decay(tmp_path):
    _, folder = folder_of(tmp_path, MATRIX)
    loaded = load(folder)
    decayed, others = (group["params"] for group in loaded.parameter_groups(0.1))
    assert len(decayed) + len(others) == len(list(loaded.parameters()))
    names = {id(p): name for name, p in loaded.decoder.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in decayed} == {"w1", "w2"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [60, 40])
def test_tables_of_tokens_get_more_rows_or_fewer(tmp_path, tied, rows):
    model, folder = folder_of(tmp_path, {"kind": "vector"}, {**MODERN, "tied_head": tied})
    loaded = load(folder)
    before = loaded(tokens_of(model).clamp(max=30)).logits
    loaded.resize_token_embeddings(rows)
    after = loaded(tokens_of(model).clamp(max=30)).logits
    assert after.shape[-1] == loaded.config.vocab_size == rows
    assert close(after[..., :40], before[..., :40])
    loaded.save_pretrained(tmp_path / "resized")
    again = load(tmp_path / "resized")
    assert close(again(tokens_of(model).clamp(max=30)).logits, after)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"inputs_embeds": torch.zeros(2, 9, 32)}, "either input_ids or inputs_embeds"),
    ],
)
def test_what_it_cannot_do_is_said(tmp_path, given, message):
    model, folder = folder_of(tmp_path, MATRIX)
    with pytest.raises(ValueError, match=message):
        load(folder)(tokens_of(model), **given)


def test_behind_the_context_of_learned_positions_one_sentence_says_so(tmp_path):
    model, folder = folder_of(tmp_path, MATRIX, {})
    with pytest.raises(ValueError, match="context of 24"):
        load(folder).generate(tokens_of(model), max_new_tokens=20, do_sample=False)


def test_a_memory_that_cannot_be_rolled_back_refuses_an_assistant(tmp_path):
    token = next(e for e in stream_class("deep_delta").examples if "token" in str(e))
    model, folder = folder_of(tmp_path, {"kind": "deep_delta", **token})
    loaded = load(folder)
    with pytest.raises((NotImplementedError, ValueError), match=r"rolled back|cropped"):
        loaded.generate(tokens_of(model, rows=1), assistant_model=load(folder), max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_an_assistant_that_is_often_wrong_changes_nothing(kind):
    """Its tokens are taken back out of the cache; with the streams that remember earlier tokens a sentence says no."""
    config = WidestreamConfig.of(tiny({"kind": kind, **stream_class(kind).examples[0]}, **MODERN))
    torch.manual_seed(0)
    model, assistant = (WidestreamForCausalLM(config).eval() for _ in range(2))
    tokens = tokens_of(model.decoder, rows=1)
    how = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(tokens), "pad_token_id": 0}
    alone = model.generate(tokens, **how)
    cache = model(tokens, use_cache=True)[CACHE]
    if any(isinstance(layer, StreamMemory) for layer in cache.layers):
        with pytest.raises((NotImplementedError, ValueError), match=r"rolled back|cropped"):
            model.generate(tokens, assistant_model=assistant, **how)
    else:
        assert torch.equal(model.generate(tokens, assistant_model=assistant, **how), alone)


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_vectors_in_the_place_of_tokens(kind):
    config = WidestreamConfig.of(tiny({"kind": kind, **stream_class(kind).examples[-1]}, token_before="smear"))
    model = WidestreamForCausalLM(config).eval()
    torch.nn.init.normal_(model.decoder.embedding.smear)
    torch.nn.init.ones_(model.decoder.embedding.smear_scale)
    tokens = tokens_of(model.decoder)
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0  # padding on the left
    vectors = model.get_input_embeddings()(tokens)
    assert vectors.shape[:2] == tokens.shape
    found = model(inputs_embeds=vectors, attention_mask=mask).logits
    assert close(found, model(tokens, attention_mask=mask).logits)
    how = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(inputs_embeds=vectors, **how), model.generate(tokens, **how)[:, tokens.shape[1] :]
    )


def test_a_prompt_of_vectors_can_be_learned():
    """Prompt tuning from the vectors of a text: gradients reach them, and nothing else is trained.

    (From zeros a first step of any size is a jump: what is read of a vector is divided by its norm.)
    """
    model = WidestreamForCausalLM(WidestreamConfig.of(tiny(MATRIX, **MODERN))).requires_grad_(False).train()
    tokens, before = tokens_of(model.decoder), {name: value.clone() for name, value in model.state_dict().items()}
    prompt = model.get_input_embeddings()(tokens[:1, :3]).clone().requires_grad_()
    labels = torch.cat((torch.full((2, 3), -100), tokens), 1)
    optimizer, losses = torch.optim.Adam([prompt], lr=0.1), []
    for _ in range(10):
        vectors = torch.cat((prompt.expand(2, -1, -1), model.get_input_embeddings()(tokens)), 1)
        loss = model(inputs_embeds=vectors, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def completions(rows):
    """A collator as TRL has it: padded on the right, and only what answers the prompt is a label."""
    longest = max(len(row["ids"]) for row in rows)
    ids, mask, labels = (torch.full((len(rows), longest), value) for value in (0, 0, -100))
    for i, row in enumerate(rows):
        length = len(row["ids"])
        ids[i, :length], mask[i, :length] = row["ids"], 1
        labels[i, row["prompt"] : length] = row["ids"][row["prompt"] :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("stream", [MATRIX, {"kind": "mhc"}, {"kind": "deep_delta"}], ids=lambda s: s["kind"])
def test_ten_steps_on_completions_alone(tmp_path, stream):
    model, folder = folder_of(tmp_path, stream)
    loaded = load(folder)
    rows = [{"ids": tokens_of(model, length, 1)[0], "prompt": 3} for length in (9, 6, 12, 8)]
    losses = [model.loss(row["ids"][None, :-1], row["ids"][None, 1:], weights=weights_of(row)) for row in rows]
    tokens = torch.stack([loss.tokens for loss in losses])
    expected = (torch.stack([loss.cross_entropy for loss in losses]) * tokens).sum() / tokens.sum()
    torch.testing.assert_close(loaded(**completions(rows)).loss, expected, rtol=1e-4, atol=1e-5)
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=10, per_device_train_batch_size=4, logging_steps=1, report_to=[], use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False, save_strategy="no",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(loaded.parameter_groups(weight_decay=0.1), lr=1e-2)
    trainer = Trainer(
        loaded.train(), arguments, train_dataset=rows, data_collator=completions, optimizers=(optimizer, None)
    )
    trainer.train()
    found = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(found) == 10
    assert found[0] == pytest.approx(float(expected), abs=1e-3)
    assert found[-1] < found[0] - 0.2


def weights_of(row):
    """1 for targets that answer the prompt [1, T]."""
    return (torch.arange(1, len(row["ids"])) >= row["prompt"]).float()[None]


def test_weights_that_lie_elsewhere_are_refused(tmp_path):
    """A product with offloaded weights is no error on a CPU, and whatever lies in memory."""
    model, folder = folder_of(tmp_path, MATRIX)
    tokens = tokens_of(model)
    for place in ("auto", {"": "cpu"}):
        assert close(load(folder, device_map=place)(tokens).logits, own_logits(model, tokens))
    for place in ({"": "disk"}, {"decoder": "disk"}):
        offloaded = load(folder, device_map=place, offload_folder=tmp_path / "off")
        with pytest.raises(ValueError, match="some weights are offloaded"):
            offloaded(tokens)


def test_a_configuration_without_a_model_is_refused():
    with pytest.raises(ValueError, match="architecture"):
        WidestreamForCausalLM(WidestreamConfig())
    with pytest.raises(UserError, match="num_layer"):
        WidestreamConfig(architecture={"num_layer": 3})


def test_a_module_of_ours_is_not_taken_for_one_of_theirs():
    """transformers fills modules whose class is called like a norm of its own with ones."""
    model = build_model(tiny(MATRIX, **SANDWICH, norm_offset=True), seed=1)
    for module in model.modules():
        assert not any(word in type(module).__name__ for word in ("RMSNorm", "LayerNorm")) or isinstance(
            module, nn.Identity
        )


def test_a_pipeline_writes_text(tmp_path):
    from widestream.data.tokenizer_base import ByteTokenizer
    from widestream.hub.tokenizer import tokenizer_files

    model = build_model(tiny(MATRIX, **MODERN, vocab_size=257), seed=1)
    write_model(model, tmp_path / "model", ByteTokenizer.boundary_id)
    for name, text in tokenizer_files(ByteTokenizer()).items():
        (tmp_path / "model" / name).write_text(text)
    made = pipeline("text-generation", str(tmp_path / "model"), trust_remote_code=True)
    texts = made(["The matrix", "A"], max_new_tokens=4, do_sample=False, batch_size=2)
    alone = made("A", max_new_tokens=4, do_sample=False)
    assert texts[0][0]["generated_text"].startswith("The matrix")
    assert texts[1][0]["generated_text"] == alone[0]["generated_text"]
