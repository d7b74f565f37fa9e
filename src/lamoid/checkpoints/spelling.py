"""How one type of model is spelled in a Hugging Face directory."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Spelling:
    """What `hf.py` has to know about a type of model. "Theirs" are the names of transformers' class.

    config: the class of its configuration
    read_config: what a config.json means; raises CheckpointError naming the field that is wrong
    write_config: the config.json of a configuration; raises UsageError for what it cannot say
    build: (configuration, config.json, names of the tensors) -> the model, unfilled
    describe: what config.json says of a model beyond its configuration: its class, its labels
    rename: (model, the name of one of its parameters) -> theirs, or a name that `pack` replaces
    clean: tensors as they were found -> without copies of what is tied, buffers and old names
    tie: make one parameter of what the configuration ties
    pack, unpack: between one tensor for each of our parameters and theirs, where these differ
    """

    config: type
    read_config: Callable[[dict[str, Any]], Any]
    write_config: Callable[[Any], dict[str, Any]]
    build: Callable[[Any, dict[str, Any], Collection[str]], nn.Module]
    describe: Callable[[nn.Module], dict[str, Any]]
    rename: Callable[[nn.Module, str], str]
    tie: Callable[[Any], object] = lambda model: model.tie_weights()
    clean: Callable[[nn.Module, Tensors], Tensors] = lambda model, tensors: tensors
    pack: Callable[[nn.Module, Tensors], Tensors] = lambda model, tensors: tensors
    unpack: Callable[[nn.Module, Tensors], Tensors] = lambda model, tensors: tensors
