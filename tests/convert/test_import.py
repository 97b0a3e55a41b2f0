"""`widestream import hf`: what transformers computes, or a sentence before anything is written."""

import json
import re
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402

import widestream  # noqa: E402
from conversion import edit, imported, logits_of, off, saved, write_tokenizer  # noqa: E402
from families import FAMILIES  # noqa: E402
from widestream.cli import convert as cli  # noqa: E402
from widestream.convert.families import DEFAULTS, model_config, with_defaults  # noqa: E402
from widestream.convert.hf import import_hf  # noqa: E402
from widestream.convert.rotary import THETA  # noqa: E402
from widestream.errors import UserError  # noqa: E402
from widestream.runs.folder import read_info  # noqa: E402

# Fields of transformers' configurations that change nothing that is computed once a model is trained.
HARMLESS = {
    "initializer_range", "use_cache", "pretraining_tp", "pad_token_id", "bos_token_id", "eos_token_id",
    "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    "output_router_logits", "router_aux_loss_coef", "router_jitter_noise",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_family(family, tmp_path):
    seed = 2 + FAMILIES.index(family) % 2
    run, theirs = imported(tmp_path, family, seed, **({"max_shard_size": "20KB"} if seed == 3 else {}))
    assert off(run, logits_of(theirs)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_float32(dtype, tmp_path):
    theirs = saved(tmp_path / "hf", "Llama", dtype=dtype)
    found = import_hf(tmp_path / "hf", tmp_path / "run")
    assert found.read_as == {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert off(tmp_path / "run", logits_of(theirs)) < 1e-4


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_are_those_of_transformers(kind):
    theirs = type(transformers.AutoConfig.for_model(kind))()
    values = theirs.to_dict()
    other = {"rope_parameters", "sliding_window_pattern", "layer_types", "no_rope_layers", "head_dim", "n_inner",
             "mlp_only_layers"}  # fmt: skip
    for name in DEFAULTS[kind].keys() - other:
        ours = DEFAULTS[kind][name]
        if name == "sliding_window" and not values.get("use_sliding_window", True):
            continue  # that class forgets a window that is not used
        assert values.get(name, ours) == ours or (name == "num_key_value_heads" and ours is None), name
    assert model_config({"model_type": kind}) == model_config(values)
    if kind != "gpt2":
        rope = theirs.rope_parameters
        assert rope.get("full_attention", rope)["rope_theta"] == THETA.get(kind, 1e4)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_every_field_of_transformers_is_honoured_or_harmless(kind):
    cls = type(transformers.AutoConfig.for_model(kind))
    own = {name for name in cls.__annotations__ if not name.startswith(("base_model", "attribute_map", "_"))}
    own -= {"model_type", "keys_to_ignore_at_inference", "default_theta", "rope_parameters"}
    unknown = own - DEFAULTS[kind].keys() - HARMLESS
    assert unknown <= {"mlp_bias", "no_rope_layers"} - DEFAULTS[kind].keys(), unknown


def test_absent_fields_take_the_defaults_of_transformers(tmp_path):
    theirs = saved(tmp_path / "hf", "Llama", num_key_value_heads=2, num_attention_heads=2, rms_norm_eps=1e-6)
    edit(tmp_path / "hf", rms_norm_eps=..., num_key_value_heads=..., rope_parameters=..., hidden_act=...)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    import_hf(tmp_path / "hf", tmp_path / "run")
    assert off(tmp_path / "run", logits_of(again)) < 1e-4
    assert theirs.config.rms_norm_eps == 1e-6


def test_the_older_form_of_rotary_settings(tmp_path):
    saved(tmp_path / "hf", "Llama")
    edit(tmp_path / "hf", rope_parameters=..., rope_theta=3e4, rope_scaling={"type": "linear", "factor": 2.0})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    import_hf(tmp_path / "hf", tmp_path / "run")
    assert off(tmp_path / "run", logits_of(again)) < 1e-4
    saved(tmp_path / "gemma", "Gemma3Text", seed=1)
    edit(tmp_path / "gemma", rope_parameters=..., rope_theta=4e5, rope_local_base_freq=2e4, layer_types=...,
         sliding_window_pattern=2, rope_scaling={"rope_type": "linear", "factor": 8.0})  # fmt: skip
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gemma").eval()
    import_hf(tmp_path / "gemma", tmp_path / "of gemma")
    assert off(tmp_path / "of gemma", logits_of(again)) < 1e-4


def test_attention_without_a_scale(tmp_path):
    run, theirs = imported(tmp_path, "GPT2", scale_attn_weights=False)
    assert off(run, logits_of(theirs)) < 1e-4


def test_names_without_the_models_prefix_and_old_buffers(tmp_path):
    theirs = saved(tmp_path / "hf", "GPT2", tie_word_embeddings=True)
    file = tmp_path / "hf" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    tensors.pop("lm_head.weight", None)
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 48, 48, dtype=torch.bool)}, file, {"format": "pt"})
    import_hf(tmp_path / "hf", tmp_path / "run")
    assert off(tmp_path / "run", logits_of(theirs)) < 1e-4


# ---- what is refused


CONFIGS = {
    "an unknown family": ({"model_type": "bert"}, "model_type bert; those that can be imported are gpt2, llama"),
    "no family": ({"model_type": ...}, "model_type None"),
    "quantised weights": ({"quantization_config": {"bits": 4}}, "quantization_config, which models here do not have"),
    "an activation": ({"hidden_act": "relu"}, "hidden_act relu"),
    "a rotary type": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rotary positions of type dynamic"),
    "partial rotation": (
        {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor",
    ),
    "a word for a number": ({"rms_norm_eps": "small"}, "rms_norm_eps: small, which is of another type"),
    "a number for a truth value": ({"tie_word_embeddings": 3}, "tie_word_embeddings: 3"),
    "null for a number": (
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": None}, "max_window_layers: None",
    ),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads 0, which is no size"),
    "a layout of windows": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "num_hidden_layers": 3,
         "layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "not every n-th",
    ),
    "chunks": (
        {"model_type": "qwen2", "num_hidden_layers": 1, "layer_types": ["chunked_attention"]},
        "layers of type chunked_attention",
    ),
    "windows of no width": (
        {"model_type": "qwen3", "num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "and no window for them",
    ),
    "another length of the layout": ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "not a list of"),
    "layers without rotation": (
        {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [0, 1, 1]}, "not every n-th",
    ),
    "sight of later tokens": ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "bidirectional"),
    "cross-attention": ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention"),
    "no activation": ({"hidden_act": None}, "hidden_act None"),
    "settings for an activation": ({"hidden_act": {}}, "hidden_act {}"),
    "no activation of GPT-2": ({"model_type": "gpt2", "activation_function": None}, "activation_function None"),
    "heads of no width": ({"head_dim": 0}, "head_dim 0, which is no size"),
    "no heads of keys": ({"num_key_value_heads": 0}, "num_key_value_heads 0, which is no size"),
    "no inner width": ({"model_type": "gpt2", "n_inner": 0}, "n_inner 0, which is no size"),
    "half a layer": (
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1.5}, "max_window_layers 1.5",
    ),
    "words for rotated layers": (
        {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, "x", 0]}, "no_rope_layers with x",
    ),
    "no experts": ({"model_type": "mixtral", "num_local_experts": 0}, "num_local_experts 0, which is no size"),
    "a word for layers without experts": ({"model_type": "qwen3_moe", "mlp_only_layers": {}}, "mlp_only_layers"),
    "a list of rotary settings": ({"rope_parameters": []}, "rope_parameters [], which cannot be imported"),
    "a list of older rotary settings": ({"rope_scaling": []}, "rope_scaling [], which cannot be imported"),
    "a list for a rotary type": ({"rope_parameters": {"rope_type": ["x"]}}, "rotary positions of type ['x']"),
    "null for a rotary type": ({"rope_parameters": {"rope_type": None}}, "rotary positions of type None"),
    "a mapping for a rotary base": ({"rope_parameters": {"rope_theta": {}}}, "rotary_base must be float"),
    "a word for Gemma's rotary settings": (
        {"model_type": "gemma3_text", "rope_parameters": {"full_attention": "x"}}, "full_attention x, which cannot",
    ),
    "a list for Gemma's rotary settings": (
        {"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": [1]}}, "sliding_attention [1], which",
    ),
    "nothing for Gemma's rotary settings": (
        {"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": ""}}, "sliding_attention , which",
    ),
    "some layers with experts": ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_what_a_model_here_does_not_have_is_named_before_a_file_is_opened(case, tmp_path):
    changes, sentence = CONFIGS[case]
    values = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3} | changes
    values = {key: value for key, value in values.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes(b"never opened")
    with pytest.raises(UserError, match=re.escape(sentence)):
        import_hf(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _without_a_shard(folder):
    (folder / sorted(path.name for path in folder.glob("model-*"))[-1]).unlink()


def _cut(folder):
    path = sorted(folder.glob("model-*"))[0]
    path.write_bytes(path.read_bytes()[:-100])


def _change(name, change):
    def changed(folder):
        for path in folder.glob("model-*"):
            tensors = load_file(path)
            if name in tensors:
                tensors = change(tensors)
                save_file(tensors, path, {"format": "pt"})
                index = json.loads((folder / "model.safetensors.index.json").read_text())
                index["weight_map"] |= dict.fromkeys(tensors, path.name)
                (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return changed


def _escape(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    path.write_text(json.dumps(index))


def _pickles(folder):
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _without_tensors(folder):
    for path in folder.glob("model*"):
        path.unlink()
    save_file({}, folder / "model.safetensors")


NORM = "model.norm.weight"
FOLDERS = {
    "a shard is missing": (_without_a_shard, "lacks model-.*one of its"),
    "a shard is cut": (_cut, "no whole safetensors file"),
    "an index that leads elsewhere": (_escape, "is no index of shards"),
    "pickles": (_pickles, r"pytorch_model\.bin only, a format that runs code"),
    "a head beside a tied one": (lambda folder: edit(folder, tie_word_embeddings=True), "has a head of its own"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "config.json is none": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "a width of another model": (lambda folder: edit(folder, intermediate_size=36), "of which config.json would make"),
    "a tensor too many": (
        _change(NORM, lambda tensors: tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(3)}),
        "has model.layers.0.self_attn.q_proj.bias",
    ),
    "a layer more in config.json": (lambda folder: edit(folder, num_hidden_layers=9), "which a llama model of this"),
    "a name of two lines": (
        _change(NORM, lambda tensors: tensors | {"a\nb": torch.zeros(3)}), r"has a\\nb, which a llama model",
    ),
    "no tensors": (_without_tensors, "model.safetensors holds no tensors"),
    "not a number": (
        _change(NORM, lambda tensors: tensors | {NORM: tensors[NORM] * float("nan")}), "not finite in model.norm",
    ),
    "whole numbers": (
        _change(NORM, lambda tensors: tensors | {NORM: torch.ones_like(tensors[NORM], dtype=torch.int8)}),
        "as torch.int8; weights are read as F32, F16, BF16",
    ),
    "eight bits": (
        _change(NORM, lambda tensors: tensors | {NORM: tensors[NORM].to(torch.float8_e4m3fn)}), "as F8_E4M3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_not_whole_is_refused_and_nothing_is_written(case, tmp_path):
    damage, sentence = FOLDERS[case]
    saved(tmp_path / "hf", "Llama", max_shard_size="10KB", tie_word_embeddings=False, attention_bias=False)
    damage(tmp_path / "hf")
    with pytest.raises(UserError, match=sentence):
        import_hf(tmp_path / "hf", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_nothing_is_left_where_a_run_cannot_lie(tmp_path):
    saved(tmp_path / "hf", "Llama")
    (tmp_path / "file").touch()
    for to in (tmp_path / "file" / "run", tmp_path / "new" / ("x" * 300)):
        with pytest.raises(UserError, match=r"is no place for a file|at most 200 bytes"):
            import_hf(tmp_path / "hf", to)
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "file"}


@pytest.mark.parametrize("name", ["x" * 300, "none", "two\nlines"])
def test_a_folder_that_is_not_there_is_one_sentence(name, tmp_path):
    with pytest.raises(UserError, match=r"(cannot be opened|does not exist).*; give") as error:
        import_hf(tmp_path / name, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_what_exists_is_not_written_over(tmp_path):
    saved(tmp_path / "hf", "Llama")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="exists; give the name of a new folder"):
        import_hf(tmp_path / "hf", tmp_path / "run")


def test_a_disk_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    saved(tmp_path / "hf", "Llama")
    monkeypatch.setattr("widestream.runs.made.begin", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for to in (tmp_path / "run", tmp_path / "new" / "deep" / "run"):
        with pytest.raises(KeyboardInterrupt):
            import_hf(tmp_path / "hf", to)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


# ---- the tokenizer


def test_greedy_sampling_is_that_of_transformers(tmp_path):
    theirs = saved(tmp_path / "hf", "Llama", seed=6)
    tokenizer = write_tokenizer(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "run")
    prompt = "w3 w14 w1"
    ids = torch.tensor([[tokenizer.token_to_id("<|endoftext|>"), *tokenizer.encode(prompt).ids]])
    wanted = theirs.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0)[0, 4:].tolist()
    text = widestream.open(tmp_path / "run").sample(prompt, tokens=8, temperature=0)
    end = wanted.index(2) if 2 in wanted else len(wanted)  # a boundary ends the text
    assert text.split() == [tokenizer.id_to_token(i) for i in wanted[:end]]


def test_the_boundary_is_what_the_tokenizer_puts_in_front(tmp_path):
    saved(tmp_path / "hf", "Llama")
    tokenizer = write_tokenizer(tmp_path / "hf")
    assert import_hf(tmp_path / "hf", tmp_path / "plain").boundary is None
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    assert import_hf(tmp_path / "hf", tmp_path / "run").boundary == "<s>"
    assert read_info(tmp_path / "run")["data"]["tokenizer"]["boundary_id"] == 1
    assert import_hf(tmp_path / "hf", tmp_path / "other", boundary="<unk>").boundary == "<unk>"


def test_a_run_without_a_tokenizer_says_so(tmp_path):
    run, _ = imported(tmp_path, "Llama")
    with pytest.raises(UserError, match="imported without a tokenizer"):
        widestream.open(run).sample("x")
    with pytest.raises(UserError, match="--boundary has nothing to act on"):
        import_hf(tmp_path / "hf", tmp_path / "other", boundary="<s>")


def test_a_tokenizer_of_more_ids_than_the_model_has_is_refused(tmp_path):
    saved(tmp_path / "hf", "Llama")
    write_tokenizer(tmp_path / "hf", words=60)
    with pytest.raises(UserError, match="has 63 ids, and the model 61"):
        import_hf(tmp_path / "hf", tmp_path / "run")


# ---- what it needs


def test_a_plain_folder_needs_neither_transformers_nor_gguf(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "hf", "Llama")
    write_tokenizer(tmp_path / "hf")
    for name in [name for name in sys.modules if name.startswith("widestream.convert")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("transformers", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)
    cli.import_hf(tmp_path / "hf", tmp_path / "run")
    said = capsys.readouterr().out
    assert "llama" in said
    assert "(the file has F32)" in said
    assert "--tokenizer" in said


def test_a_gguf_file_without_the_extra_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"pip install 'widestream\[hf\]'"):
            import_hf(tmp_path / "model.gguf", tmp_path / "run")


def test_a_damaged_gguf_file_is_refused(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(UserError, match="cannot be read by transformers"):
        import_hf(tmp_path / "model.gguf", tmp_path / "run")


def test_fields_that_the_class_does_not_read_are_passed_over():
    values = {"model_type": "llama", "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}}
    assert model_config(values) == model_config({"model_type": "llama"})
    assert with_defaults(values)["hidden_size"] == 4096
