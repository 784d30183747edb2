"""A network for CPUs in ONNX Runtime, where its layers allow it.

ONNX Runtime fuses activations into convolutions and lays out the channels for the vector units. It
takes 0.6 of the time of torch on one thread, with outputs equal to float32's rounding
(docs/benchmarks.md). The graph is written from the traced network when the model is loaded, in a
fraction of a second; nothing is stored. Networks with other layers than those below stay in torch.
"""

from __future__ import annotations

import operator
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ageray.models.mobilenet import SameConv2d
from ageray.models.network import AgeNetwork, Batch

_OPSET = 17


class _Unsupported(Exception):
    """A layer or operation that is not translated."""


def for_cpu(network: AgeNetwork, threads: int) -> nn.Module:
    """A module with the network's `forward` in eval mode, in ONNX Runtime if possible, else the
    network itself.

    threads: CPU threads. The result is for inference only and does not follow
    later changes of the weights.
    """
    if find_spec("onnx") is None or find_spec("onnxruntime") is None or network.reads_points:
        return network
    try:
        return _OnnxNetwork(network, threads)
    except _Unsupported:
        return network


class _OnnxNetwork(nn.Module):
    """The translated network; float32 only."""

    def __init__(self, network: AgeNetwork, threads: int) -> None:
        super().__init__()
        import onnxruntime

        self.outputs = network.outputs
        graph = _Graph(network.eval())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_mem_pattern = False  # batches and views differ in size
        # Threads that spin would take the cores from decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = graph.model().SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, batch: Batch) -> Batch:
        """Named tensors of a batch of faces."""
        face_B3SS = batch["face"].contiguous(memory_format=torch.contiguous_format)
        values = self._session.run(None, {"face": face_B3SS.numpy()})
        names = [output.name for output in self._session.get_outputs()]
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


class _Tracer(fx.Tracer):
    """Traces into the network's own modules, but not into the layers that are translated whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether the module becomes one node."""
        return isinstance(module, SameConv2d) or super().is_leaf_module(module, name)


class _Graph:
    """The nodes and weights of an ONNX graph, from a traced network."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._outputs: dict[str, str] = {}
        try:
            nodes = _Tracer().trace(network).nodes
        except Exception as error:  # many types, also from layers that look at their inputs
            raise _Unsupported("cannot be traced") from error
        for node in nodes:
            self._translate(node)

    def model(self) -> Any:
        """The ONNX model: `face` (B, 3, S, S) to the network's named tensors."""
        from onnx import TensorProto, helper

        face = helper.make_tensor_value_info("face", TensorProto.FLOAT, ["faces", 3, "height", "width"])
        outputs = []
        for name, source in self._outputs.items():
            self._nodes.append(helper.make_node("Identity", [source], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        graph = helper.make_graph(self._nodes, "network", [face], outputs, self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)

    def _translate(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            return
        if node.op == "output":
            named = cast(dict[str, fx.Node], node.args[0])
            self._outputs = {name: _value(source) for name, source in named.items()}
        elif node.op == "get_attr":
            self._weight(_value(node), operator.attrgetter(str(node.target))(self._network))
        elif node.op == "call_module":
            self._layer(node, self._network.get_submodule(str(node.target)))
        elif node.target is operator.getitem and node.args[1] == "face":
            self._node("Identity", ["face"], _value(node))
        elif node.target is operator.sub:
            self._node("Sub", _inputs(node), _value(node))
        elif node.target is F.relu:
            self._node("Relu", _inputs(node), _value(node))
        elif node.target is F.relu6:
            limits = [self._weight(f"{node.name}.{limit}", torch.tensor(float(limit))) for limit in (0, 6)]
            self._node("Clip", [*_inputs(node), *limits], _value(node))
        elif node.target == "mean" and node.args[1:] == ((2, 3),):
            self._node("GlobalAveragePool", _inputs(node), f"{node.name}.pooled")
            self._node("Flatten", [f"{node.name}.pooled"], _value(node))
        else:
            raise _Unsupported(str(node.target))

    def _layer(self, node: fx.Node, layer: nn.Module) -> None:
        """A module of torch as one ONNX node."""
        inputs = _inputs(node)
        if isinstance(layer, nn.Dropout):
            self._node("Identity", inputs, _value(node))
        elif isinstance(layer, nn.Linear):
            self._node("Gemm", [*inputs, *self._weights_of(node, layer)], _value(node), transB=1)
        elif type(layer) in (nn.Conv2d, SameConv2d):
            assert isinstance(layer, nn.Conv2d)
            options: dict[str, Any] = {"group": layer.groups}
            options |= {"strides": list(layer.stride), "dilations": list(layer.dilation)}
            if isinstance(layer, SameConv2d):
                options["auto_pad"] = "SAME_UPPER"
            elif isinstance(layer.padding, str) or layer.padding_mode != "zeros":
                raise _Unsupported(str(layer))
            else:
                options["pads"] = [*layer.padding, *layer.padding]
            self._node("Conv", [*inputs, *self._weights_of(node, layer)], _value(node), **options)
        else:
            raise _Unsupported(type(layer).__name__)

    def _weights_of(self, node: fx.Node, layer: nn.Linear | nn.Conv2d) -> list[str]:
        names = [self._weight(f"{node.name}.weight", layer.weight)]
        if layer.bias is not None:
            names.append(self._weight(f"{node.name}.bias", layer.bias))
        return names

    def _weight(self, name: str, tensor: Tensor) -> str:
        from onnx import numpy_helper

        self._weights.append(numpy_helper.from_array(tensor.detach().float().numpy(), name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **options: Any) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, [output], **options))


def _value(node: fx.Node) -> str:
    """The name of a node's tensor; a dot keeps it apart from the network's own names."""
    return f"{node.name}.value"


def _inputs(node: fx.Node) -> list[str]:
    """The names of the tensors that go into a node. Raises _Unsupported for a number among them."""
    names = []
    for value in node.args:
        if isinstance(value, fx.Node):
            names.append(_value(value))
        elif node.op == "call_function":
            raise _Unsupported(f"{node.target} with {value}")
    return names
