"""A stream in place of the residual adds of transformers' models."""

import copy
import warnings

import pytest
import torch
from torch import nn

from families import model_config, weights
from host_models import HOSTS, ids_of, logits_of, make_host, shake, transformers
from widestream import UserError, attach, attached_stream, build_model, detach
from widestream.streams import OWN_KINDS, stream_class

WIDTH = 48
CASES = [
    (kind, fields | ({"embedding_dim": WIDTH} if kind == "data_lane" else {}))
    for kind in OWN_KINDS
    for fields in stream_class(kind).examples
]
TELLING = {"mhc": {"lanes": 3}, "attn_res": {}, "mudd": {}, "matrix_dense": {"key_dim": 6, "reads": "qkv"}}
"""Lanes, a history, vectors for q, k and v, and a matrix."""


def name_of(value):
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


def refusal(kind, fields):
    """Why a kind has no place in a model of transformers, if it has none."""
    if kind in ("depth_lstm", "matrix_keys"):
        return "takes the place of"
    if kind.startswith("matrix") and kind != "matrix_dense":
        return "attention's projections, which this model has|norms behind its reads"
    if fields.get("expand_embedding") or fields.get("compressor") == "token":
        return "looks at earlier tokens, of which a cache of transformers keeps no trace"
    if (
        kind == "generalized_hc"
        and fields.get("embedding") != "expand"
        and fields.get("slots") != fields.get("segments", 8)
    ):
        return r"takes embeddings \d+ wide"
    return "says how wide MLPs are" if fields.get("widen_mlps") else None


def attached(name, kind, seed=0, **fields):
    """A model whose stream has left its start."""
    model = attach(make_host(name, seed), kind, **fields)
    shake(attached_stream(model))
    return model


@pytest.mark.parametrize(("kind", "fields"), CASES, ids=name_of)
def test_every_kind_is_plain_where_it_says_so_or_refused(kind, fields):
    """To 1e-5 of the largest logit, with the small embeddings of initial models, too; and the keys stay."""
    for std in (0.02, 0.002):
        model, ids = make_host("llama", initializer_range=std), ids_of()
        wanted, keys = logits_of(model, ids), list(model.state_dict())
        if why := refusal(kind, fields):
            with pytest.raises(UserError, match=why):
                attach(model, kind, **fields)
            assert list(model.state_dict()) == keys
            return
        attach(model, kind, **fields)
        stream = attached_stream(model)
        error = ((logits_of(model, ids) - wanted).abs().max() / wanted.abs().max()).item()
        assert error < 1e-5 if stream.spec.starts_plain else error > 1e-5, error
        own = [f"model.stream.{name}" for name in stream.state_dict()]
        assert {*model.state_dict()} == {*keys, *own}
        assert detach(model) is stream
        assert list(model.state_dict()) == keys
        assert torch.equal(logits_of(model, ids), wanted)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name in HOSTS for kind in ("mhc", "mudd")), ("llama", "attn_res"), ("gpt2", "matrix_dense")],
)
def test_every_family(name, kind):
    """The plain start; `generate` with a cache, without one and padded on the left; every parameter learns."""
    model, ids = make_host(name), ids_of()
    wanted, before = logits_of(model, ids), set(model.state_dict())
    attach(model, kind, **TELLING[kind])
    stream = attached_stream(model)
    assert before <= set(model.state_dict())
    if stream.spec.starts_plain:
        assert ((logits_of(model, ids) - wanted).abs().max() / wanted.abs().max()).item() < 1e-5
    shake(stream)
    assert ((logits_of(model, ids) - wanted).abs().max() / wanted.abs().max()).item() > 1e-3
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    padding = torch.zeros(2, 3, dtype=torch.int64)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    padded = model.generate(torch.cat([padding, ids], dim=1), attention_mask=mask, **options)
    assert torch.equal(padded[:, 3:], cached)
    hidden = model(ids, output_hidden_states=True).hidden_states
    assert [tuple(x.shape) for x in hidden] == [(2, 9, WIDTH)] * 3
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["mhc", "attn_res", "mudd"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "olmo2", "gemma2", "gpt2"])
def test_it_is_our_own_decoder_with_that_stream(name, kind):
    """The same weights in the decoder of this package: logits agree, far from the plain start."""
    theirs = attached(name, kind, **TELLING[kind])
    stream = attached_stream(theirs)
    config = model_config(theirs.config, {"kind": kind, **TELLING[kind]})
    ours = build_model(config)
    named = {key: value for key, value in theirs.state_dict().items() if ".stream." not in key}
    values = weights(theirs.config, named)
    if kind == "mudd":  # one norm of theirs is in front of q, k and v
        for key, value in list(values.items()):
            if key.startswith("stream.norms.") and int(key.split(".")[2]) % 2 == 0:
                layer, part = int(key.split(".")[2]) // 2, key.split(".")[3]
                if layer < config.num_layers:
                    values |= {f"stream.{which}_norms.{layer}.{part}": value for which in ("key", "value")}
    values |= {f"stream.{key}": value for key, value in stream.core.state_dict().items()}
    ours.load_state_dict(values)
    ids = ids_of()
    with torch.no_grad():
        got, wanted = ours.logits(ours(ids)), logits_of(theirs, ids)
    assert ((got - wanted).abs().max() / wanted.abs().max()).item() < 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "mhc"), ("gemma3", "attn_res"), ("gpt2", "mudd"), ("gpt2", "mhc")]
)
def test_gradient_checkpointing_changes_no_gradient(name, kind, reentrant):
    model, ids = attached(name, kind, **TELLING[kind]).double().train(), ids_of()
    calls = []
    layer = (model.transformer.h if name == "gpt2" else model.model.layers)[1]
    layer.mlp.register_forward_hook(lambda *_: calls.append(1))

    def gradients():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}

    wanted = gradients()
    assert len(calls) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for key, gradient in gradients().items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-9, atol=1e-12)
    assert len(calls) == 3  # the layer was computed again


@pytest.mark.parametrize("kind", ["mhc", "mudd"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_lora(name, kind, tmp_path):
    """Named in `modules_to_save`, the stream learns and is in the adapter's file; else it is frozen."""
    peft = pytest.importorskip("peft")
    model, ids = attached(name, kind, **TELLING[kind]), ids_of()
    plain, wanted = copy.deepcopy(model), logits_of(model, ids)
    gpt = name == "gpt2"
    settings = {"target_modules": ["c_attn"] if gpt else ["q_proj", "k_proj"], "fan_in_fan_out": gpt}
    frozen = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings))
    assert not any(parameter.requires_grad for parameter in attached_stream(frozen).parameters())
    tuned = peft.get_peft_model(model, peft.LoraConfig(**settings, modules_to_save=["stream"]))
    assert torch.equal(logits_of(tuned, ids), wanted)
    tuned.train()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = tuned(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    tuned.eval()
    learned = logits_of(tuned, ids)
    assert not torch.equal(learned, wanted)
    assert all(parameter.requires_grad for parameter in attached_stream(tuned).parameters())
    with tuned.disable_adapter():
        assert torch.equal(logits_of(tuned, ids), wanted)
    tuned.save_pretrained(tmp_path)
    assert torch.equal(logits_of(peft.PeftModel.from_pretrained(plain, tmp_path).eval(), ids), learned)


def test_a_frozen_model_learns_by_its_stream_alone():
    model = attach(make_host("llama"), "mhc", freeze=True)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning == [f"model.stream.{name}" for name, _ in attached_stream(model).named_parameters()]


def test_half_precision():
    """The stream computes in float32 beside a model in bfloat16, whose blocks get what they are used to."""
    model, ids = make_host("llama").bfloat16(), ids_of()
    wanted = logits_of(model, ids)
    attach(model, "mhc")
    got = logits_of(model, ids)
    assert got.dtype == torch.bfloat16
    assert (got - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert attached_stream(model).core.phi.dtype == torch.float32
    with pytest.raises(UserError, match=r"parameters are torch\.bfloat16, but its keys"):
        logits_of(model.bfloat16(), ids)


@pytest.mark.parametrize("kind", ["mudd"])
def test_it_compiles_as_one_graph(kind):
    model, ids = attach(make_host("qwen3", num_hidden_layers=1), kind, **TELLING[kind]), ids_of()
    shake(attached_stream(model))
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids).logits, logits_of(model, ids), rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_it_can_be_pickled(tmp_path):
    model, ids = attached("qwen3", "mhc"), ids_of()
    torch.save(model, tmp_path / "model.pt")
    back = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits_of(back, ids), logits_of(model, ids))
    assert attached_stream(back) is not attached_stream(model)


def test_other_heads_and_copies():
    base = transformers.AutoModel.from_config(make_host("llama").config)
    attach(base, "mhc")
    assert base(ids_of()).last_hidden_state.shape == (2, 9, WIDTH)
    model = attached("llama", "mhc")
    other, wanted = copy.deepcopy(model), logits_of(model, ids_of())
    with torch.no_grad():
        attached_stream(other).core.phi.zero_()
    assert attached_stream(other) is not attached_stream(model)
    assert torch.equal(logits_of(model, ids_of()), wanted)
    assert not torch.equal(logits_of(other, ids_of()), wanted)


class OtherLayer(transformers.models.llama.modeling_llama.LlamaDecoderLayer):
    """A user's own."""


def test_what_does_not_fit_is_one_sentence():
    llama, mixed = make_host("llama"), make_host("llama")
    mixed.model.layers[1].__class__ = OtherLayer
    bert = transformers.BertModel(transformers.BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2))
    crossed = make_host("gpt2", add_cross_attention=True)
    twice = attach(make_host("llama"), "mhc")
    with torch.device("meta"):
        empty = make_host("llama")
    for call, sentence in (
        (lambda: attach("llama", "mhc"), "str is no model; give one of transformers."),
        (lambda: attach(nn.Linear(2, 2), "mhc"), "Linear is no model that a stream can be attached to; known are"),
        (lambda: attach(bert, "mhc"), "BertModel is no model that a stream can be attached to"),
        (lambda: attach(mixed, "mhc"), "LlamaForCausalLM is no model that a stream can be attached to"),
        (lambda: attach(crossed, "mhc"), "This model has cross-attention, for which an attached stream has no site."),
        (lambda: attach(twice, "vector"), "This model has a stream already; detach it first."),
        (lambda: attach(empty, "mhc"), "The model's layers must lie on one device, one that has memory"),
        (lambda: attach(llama, "mhcc"), "Unknown stream kind 'mhcc'; did you mean mhc?"),
        (lambda: attach(llama, "mhc", lanez=4), "Unknown key lanez; did you mean lanes?"),
        (lambda: attach(llama, "mhc", lanes=1), "lanes is 1; it must be at least 2."),
        (lambda: attach(llama, None), "kind is None; it must be the name of a stream, such as 'mhc'."),
        (lambda: attach(llama, "mhc", heads=0), "heads is 0; it must be a whole number, at least 1."),
        (lambda: attach(llama, "mhc", seed="a"), "The seed is a; it must be a whole number, at least 0 and below 2^31"),
        (lambda: attach(llama, "mhc", seed=10**30), "The seed is 1000000000000000"),
        (lambda: attach(llama, "mhc", seed=-1), "The seed is -1; it must be"),
        (lambda: attach(llama, "mhc", seed=True), "The seed is True; it must be"),
        (lambda: attach(llama, "mhc", norm_eps=1e-3), "norm_eps is what the model has it to be; leave it out."),
        (lambda: attach(llama, "mhc", dim=48), "dim is what the model has it to be; leave it out."),
        (lambda: attach(llama, "matrix_dense"), "The call lacks key_dim; give it too."),
        (lambda: attach(llama, "matrix_dense", key_dim=4, heads=7), "heads is 7; it must divide dim, 48."),
        (
            lambda: attach(llama, "data_lane", embedding_dim=8),
            "A data_lane stream set like this takes embeddings 8 wide",
        ),
        (lambda: detach(llama), "This LlamaForCausalLM has no stream; attach one first."),
        (lambda: attached_stream(llama), "This LlamaForCausalLM has no stream; attach one first."),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value).startswith(sentence)
    assert logits_of(llama, ids_of()).shape == (2, 9, 60)
