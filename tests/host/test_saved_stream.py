"""A stream's weights as a file beside the model's."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from host_models import ids_of, logits_of, make_host, shake, transformers
from widestream import UserError, attach, attached_stream, load_stream, save_stream


def attached(kind="mhc", name="llama", **fields):
    model = attach(make_host(name), kind, **fields)
    shake(attached_stream(model))
    return model


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("mhc", {"lanes": 3}), ("attn_res", {}), ("vector", {}), ("matrix_dense", {"key_dim": 6, "heads": 3})],
)
def test_model_and_stream_go_separate_ways_and_meet_again(kind, fields, tmp_path):
    model, ids = attached(kind, **fields), ids_of()
    wanted, path = logits_of(model, ids), tmp_path / "stream.safetensors"
    save_stream(model, path)
    fresh = make_host("llama")  # the same weights, no stream: the file's is attached
    load_stream(fresh, path)
    assert torch.equal(logits_of(fresh, ids), wanted)
    other = attach(make_host("llama"), kind, seed=4, **fields)
    load_stream(other, str(path))
    assert torch.equal(logits_of(other, ids), wanted)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["widestream_stream"])["kind"] == kind


def test_the_models_own_folder_opens_as_the_plain_model(tmp_path):
    model, ids = attached(), ids_of()
    model.save_pretrained(tmp_path)
    save_stream(model, tmp_path / "stream.safetensors")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(back, ids), logits_of(make_host("llama"), ids))
    load_stream(back, tmp_path / "stream.safetensors")
    assert torch.equal(logits_of(back, ids), logits_of(model, ids))


def test_another_streams_or_models_file_is_refused_and_changes_nothing(tmp_path):
    path, damaged, plain = (tmp_path / f"{name}.safetensors" for name in ("stream", "damaged", "plain"))
    save_stream(attached(lanes=3), path)
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({name: tensor for name, tensor in tensors.items() if name != "alpha"}, damaged, metadata)
    save_file(tensors, plain)
    foreign, hostile, text = (tmp_path / f"{name}.safetensors" for name in ("foreign", "hostile", "text"))
    about = json.loads(metadata["widestream_stream"])
    save_file(tensors, foreign, {"widestream_stream": json.dumps(about | {"kind": "my_module:MyStream"})})
    save_file(tensors, hostile, {"widestream_stream": json.dumps(about | {"settings": {"freeze": True}})})
    text.write_text("not a stream")
    reset, infinite, whole = (tmp_path / f"{name}.safetensors" for name in ("reset", "infinite", "whole"))
    settings = about["settings"] | {"kind": "attn_res"}
    save_file(tensors, reset, {"widestream_stream": json.dumps(about | {"settings": settings})})
    alpha = tensors["alpha"]
    save_file(tensors | {"alpha": torch.full_like(alpha, torch.inf)}, infinite, metadata)
    save_file(tensors | {"alpha": alpha.to(torch.int32)}, whole, metadata)
    both = (lambda: make_host("llama"), lambda: attached(lanes=3))
    cases = [
        (lambda: attached("attn_res"), path, "is of another stream or model: its kind is mhc, and here it is attn_res"),
        (lambda: attached(lanes=4), path, "is of another stream or model: its settings is .*'lanes': 3"),
        (lambda: attached(name="mistral", lanes=3), path, "its model is llama, and here it is mistral"),
        (lambda: attach(make_host("llama", num_hidden_layers=3), "mhc", lanes=3), path, "sites is 4, and here it is 6"),
        (lambda: attach(make_host("llama", hidden_size=64), "mhc", lanes=3), path, "its dim is 48, and here it is 64"),
        (lambda: make_host("qwen2"), path, "another stream or model: its model is llama, and here it is qwen2"),
        (lambda: attached(lanes=3), damaged, "is damaged: alpha is not as the stream that it names has it"),
        (lambda: make_host("llama"), damaged, "is damaged: alpha is not as the stream that it names has it"),
        (lambda: attached(lanes=3), plain, "holds no attached stream; give a file that save_stream wrote"),
        (lambda: make_host("llama"), foreign, "holds a my_module:MyStream stream, which is not known here"),
        (lambda: make_host("llama"), hostile, "holds a mhc stream, which is not known here"),
        (lambda: make_host("llama"), reset, "holds a mhc stream, which is not known here"),
        (lambda: attached(lanes=3), reset, "is of another stream or model: its settings is {'lanes': 3"),
        *((make, infinite, "or its training diverged: alpha holds numbers that are not finite") for make in both),
        *((make, whole, "is damaged: alpha is of type torch.int32") for make in both),
        (lambda: attached(lanes=3), text, "is no readable safetensors file"),
        (lambda: attached(lanes=3), tmp_path / "none", "does not exist; give a file that save_stream wrote"),
        (lambda: attached(lanes=3), tmp_path, "is no readable safetensors file"),
    ]  # fmt: skip
    for make, file, sentence in cases:
        model = make()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(UserError, match=sentence):
            load_stream(model, file)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_stream_in_another_precision_is_read(tmp_path):
    model, path = attached(lanes=3), tmp_path / "stream.safetensors"
    attached_stream(model).bfloat16()
    save_stream(model, path)
    other = attached(lanes=3, seed=1)
    load_stream(other, path)
    wanted = attached_stream(model).state_dict()
    assert all(torch.equal(value, wanted[name].float()) for name, value in attached_stream(other).state_dict().items())


def test_where_nothing_can_be_saved(tmp_path):
    with pytest.raises(UserError, match="has no stream; attach one first"):
        save_stream(make_host("llama"), tmp_path / "stream.safetensors")
    with pytest.raises(UserError, match="does not exist; make it first"):
        save_stream(attached(), tmp_path / "none" / "stream.safetensors")
    assert not list(tmp_path.iterdir())
