"""Cases of the published DWAModules (epfml/DenseFormer): a toy block x + tanh(x W) a layer, the averages behind."""

import torch
from torch import Tensor

from widestream.blocks.roles import Roles
from widestream.recipe import build
from widestream.recipe.model import ModelConfig
from widestream.streams.depth.dense_former import DenseFormerStream

SIZES = {"vocab_size": 2, "num_heads": 1, "mlp_dim": 1}


def check(meta, tensors: dict[str, Tensor]) -> list[tuple[str, str, float]]:
    """Errors of one case. A layer's attention writes nothing; what its MLP reads is taken before the norm."""
    from check_official import relative_error

    choice = {"kind": "dense_former", "dilation": meta["dilation"], "period": meta["period"]}
    sizes = SIZES | {"num_layers": meta["num_blocks"], "head_dim": meta["dim"], "stream": choice}
    config = build(ModelConfig, sizes, "model")
    stream = DenseFormerStream(config, Roles(config))
    weights = {f"alpha_{int(name.split('/')[1]) + 1}": t for name, t in tensors.items() if name.startswith("param/")}
    stream.load_state_dict(weights | {f"norms.{i}.gain": torch.ones(meta["dim"]) for i in range(len(stream.norms))})

    embedding = tensors["embedding"].clone().requires_grad_()
    state, errors = stream.write_embedding(None, embedding, None), []
    for i in range(meta["num_blocks"]):
        errors.append(("branch input", str(i), relative_error(state.x.detach(), tensors[f"branch_input/{i}"])))
        state = stream.write(2 * i + 1, state, torch.zeros_like(state.x))
        state = stream.write(2 * i + 2, state, torch.tanh(state.x @ tensors[f"branch/{i}"]))
    errors.append(("output", "output", relative_error(state.x.detach(), tensors["output"])))
    state.x.square().mean().backward()
    gradients = {f"grad/{int(name.split('_')[1]) - 1}/alpha": stream.get_parameter(name).grad for name in weights}
    gradients["grad/embedding"] = embedding.grad
    assert gradients.keys() == {name for name in tensors if name.startswith("grad/")}
    return errors + [("gradient", name, relative_error(g, tensors[name])) for name, g in gradients.items()]
