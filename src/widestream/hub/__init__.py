"""Models of this package as models of Hugging Face transformers.

Importing this lets transformers' Auto classes know of them, so that a folder that `export_run` wrote loads without
remote code. A folder also loads where this package is not installed (`trust_remote_code=True`): its modelling file is
put together from the package's own modules (`bundle.py`).
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from widestream.hub.configuration import WidestreamConfig
from widestream.hub.modeling import WidestreamForCausalLM, WidestreamModel

__all__ = ["WidestreamConfig", "WidestreamForCausalLM", "WidestreamModel"]

AutoConfig.register(WidestreamConfig.model_type, WidestreamConfig, exist_ok=True)
AutoModel.register(WidestreamConfig, WidestreamModel, exist_ok=True)
AutoModelForCausalLM.register(WidestreamConfig, WidestreamForCausalLM, exist_ok=True)
