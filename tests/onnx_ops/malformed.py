"""Models and inputs that are wrong, or unusual: `CASES`, by name. As a program, it tries some.

    python malformed.py NAME...       one line for each: NAME, "begin"; then NAME, what came of it

`test_malformed.py` runs it in a process of its own, since what it looks for ends the process.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from op_models import IR_VERSION, OPSET, session_options

import gce.onnx

SCORES = np.arange(15, dtype=np.float32).reshape(3, 5) / 7
FEEDS = {
    "scores": SCORES,
    "labels": np.array([0, 1, 4]),
    "gamma": np.array(0.5, np.float32),
    "weights": np.ones(5, np.float32),
}
INPUTS = list(FEEDS)
OUTPUTS = ["loss", "grad"]
TYPES = {
    "scores": (TensorProto.FLOAT, ["N", 5]),
    "labels": (TensorProto.INT64, ["N"]),
    "gamma": (TensorProto.FLOAT, []),
    "weights": (TensorProto.FLOAT, [5]),
}


class Case:
    """A model of one node, and what it is fed; anything may be replaced."""

    def __init__(
        self,
        inputs: list[str] = INPUTS[:3],
        outputs: list[str] = OUTPUTS,
        types: dict[str, Any] | None = None,
        feeds: dict[str, Any] | None = None,
        edit: Callable[[onnx.ModelProto], object] | None = None,
        register: int = 1,
        **attributes: Any,
    ) -> None:
        self.inputs, self.outputs, self.attributes = inputs, outputs, attributes
        self.types = {**TYPES, **(types or {})}
        self.feeds = {**FEEDS, **(feeds or {})}
        self.edit = edit
        self.register = register

    def model(self) -> onnx.ModelProto:
        node = helper.make_node(
            gce.onnx.OP_TYPE, self.inputs, self.outputs, domain=gce.onnx.DOMAIN, **self.attributes
        )
        infos = [
            helper.make_tensor_value_info(name, *given) if isinstance(given, tuple) else given
            for name, given in self.types.items()
        ]
        # What is asked for is not the op's alone: a model with no output of its own runs too.
        alive = helper.make_node("Identity", ["weights"], ["alive"])
        outputs = [helper.make_tensor_value_info("alive", *TYPES["weights"])]
        outputs += [helper.make_empty_tensor_value_info(name) for name in self.outputs[:2] if name]
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(gce.onnx.DOMAIN, 1)]
        model = helper.make_model(
            helper.make_graph([node, alive], "malformed", infos, outputs),
            opset_imports=opsets,
            ir_version=IR_VERSION,
        )
        if self.edit:
            self.edit(model)
        return model

    def run(self) -> str:
        """What came of it: "ok" and the shapes, or the error's type and text."""
        import onnxruntime

        try:
            options = session_options(threads=2, library=self.register > 0)
            for _ in range(self.register - 1):
                gce.onnx.register(options)
            session = onnxruntime.InferenceSession(
                self.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            names = [value.name for value in session.get_inputs()]
            results = session.run(None, {name: self.feeds[name] for name in names})
        except Exception as error:
            return f"{type(error).__name__}: {error}".replace("\n", " ")
        return f"ok {[np.shape(result) for result in results]}"


def sequence(name: str) -> Any:
    return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, ["N", 5])


def optional(name: str) -> Any:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [5]))
    return helper.make_value_info(name, kind)


def typed(name: str, elem_type: int, array: Any) -> dict[str, Any]:
    """An input of another type."""
    return {"types": {name: (elem_type, TYPES[name][1])}, "feeds": {name: array}}


def shaped(name: str, array: Any) -> dict[str, Any]:
    """An input of another shape than the model says, and than the others have."""
    array = np.asarray(array, FEEDS[name].dtype)
    return {"types": {name: (TYPES[name][0], [None] * array.ndim)}, "feeds": {name: array}}


def fed(**feeds: Any) -> dict[str, Any]:
    return {"feeds": {name: np.asarray(a, FEEDS[name].dtype) for name, a in feeds.items()}}


def probable(array: Any, types: Any = None, feeds: Any = None, **attributes: Any) -> Case:
    """Labels that are these floats."""
    elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    types = {"labels": (elem_type, [None] * array.ndim), **(types or {})}
    return Case(types=types, feeds={"labels": array, **(feeds or {})}, **attributes)


def edited(edit: Callable[[onnx.ModelProto], object], **options: Any) -> Case:
    return Case(edit=edit, **options)


def with_opset(version: int | None) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        del model.opset_import[1:]
        if version is not None:
            model.opset_import.append(helper.make_opsetid(gce.onnx.DOMAIN, version))

    return edit


def in_a_branch(model: onnx.ModelProto) -> None:
    """The node in both branches of an If."""
    node = model.graph.node[0]
    del model.graph.node[0]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    for output in outputs:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    branch = helper.make_graph([node], "branch", [], outputs)
    condition = helper.make_node(
        "Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    )
    choice = helper.make_node(
        "If", ["yes"], list(node.output), then_branch=branch, else_branch=branch
    )
    model.graph.node.extend([condition, choice])
    for output in model.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT


def in_a_circle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[0].output[1]


def of_rank_70(model: onnx.ModelProto) -> None:
    shape = helper.make_tensor("shape", TensorProto.INT64, [70], [3, 5] + [1] * 68)
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("Reshape", ["scores", "shape"], ["reshaped"]))
    model.graph.node[1].input[0] = "reshaped"


def of_many_classes(model: onnx.ModelProto) -> None:
    """No rows, and a number of classes whose size in bytes overflows: no array could be fed so."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [0, 2**62])
    model.graph.initializer.append(shape)
    zeros = helper.make_node("ConstantOfShape", ["shape"], ["many"])
    model.graph.node.insert(0, zeros)
    model.graph.node[1].input[0] = "many"


def declared(**types: Any) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        for output in model.graph.output:
            if output.name in types:
                info = helper.make_tensor_value_info(output.name, *types[output.name])
                output.CopyFrom(info)

    return edit


NO_LABELS: dict[str, Any] = {"feeds": {"labels": np.zeros(0, "i8")}}
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64

# Name to case and to what must come of it: a part of `Case.run`'s text, or "" for anything but a
# crash.
CASES: dict[str, tuple[Case, str]] = {
    # Inputs and outputs of the node.
    "both outputs": (Case(), "ok [(5,), (), (3, 5)]"),
    "one output": (Case(outputs=["loss"]), "ok [(5,), ()]"),
    "second output empty": (Case(outputs=["loss", ""]), "ok [(5,), ()]"),
    "no outputs": (Case(outputs=[]), "InvalidGraph"),
    "first output empty": (Case(outputs=["", "grad"]), "InvalidGraph"),
    "both outputs empty": (Case(outputs=["", ""]), ""),
    "three outputs": (Case(outputs=[*OUTPUTS, "more"]), "InvalidGraph"),
    "an output twice": (Case(outputs=["loss", "loss"]), "Fail"),
    "no inputs": (Case(inputs=[]), "InvalidGraph"),
    "one input": (Case(inputs=INPUTS[:1]), "InvalidGraph"),
    "two inputs": (Case(inputs=INPUTS[:2]), "InvalidGraph"),
    "four inputs": (Case(inputs=INPUTS), "ok [(5,), (), (3, 5)]"),
    "five inputs": (Case(inputs=[*INPUTS, "weights"]), "InvalidGraph"),
    "scores empty": (Case(inputs=["", "labels", "gamma"]), "InvalidGraph"),
    "labels empty": (Case(inputs=["scores", "", "gamma"]), "InvalidGraph"),
    "gamma empty": (Case(inputs=["scores", "labels", ""]), "InvalidGraph"),
    "gamma empty, weights given": (
        Case(inputs=["scores", "labels", "", "weights"]),
        "InvalidGraph",
    ),
    "weights empty": (Case(inputs=[*INPUTS[:3], ""]), ""),
    "weights and gradient empty": (Case(inputs=[*INPUTS[:3], ""], outputs=["loss", ""]), ""),
    "weights empty, one output": (Case(inputs=[*INPUTS[:3], ""], outputs=["loss"]), ""),
    "all inputs the same": (
        Case(inputs=["scores"] * 4),
        "gamma has shape (3, 5), expected a scalar or (3,)",
    ),
    "an input that is not there": (Case(inputs=["scores", "labels", "nothing"]), ""),
    "its own gradient as input": (edited(in_a_circle), ""),
    # The model around it.
    "registered twice": (Case(register=2), "ok"),
    "registered five times": (Case(register=5), "ok"),
    "not registered": (Case(register=0), ""),
    "domain not imported": (edited(with_opset(None)), ""),
    "version 0": (edited(with_opset(0)), ""),
    "version 2": (edited(with_opset(2)), ""),
    "version 1000000": (edited(with_opset(1000000)), ""),
    "in a branch": (edited(in_a_branch), "ok [(5,), (), (3, 5)]"),
    "another op of the domain": (
        edited(lambda model: setattr(model.graph.node[0], "op_type", "GammaCrossEntropy")),
        "",
    ),
    "wrong shapes declared": (edited(declared(loss=(FLOAT, [7]), grad=(FLOAT, [2, 2]))), ""),
    "wrong types declared": (edited(declared(loss=(INT, []), grad=(INT, ["N", 5]))), "Fail"),
    # Types.
    "int32 scores": (
        Case(**typed("scores", TensorProto.INT32, SCORES.astype("i4"))),
        "InvalidGraph",
    ),
    "bool scores": (Case(**typed("scores", TensorProto.BOOL, SCORES > 0)), "InvalidGraph"),
    "string scores": (
        Case(**typed("scores", TensorProto.STRING, SCORES.astype(str))),
        "InvalidGraph",
    ),
    "sequence scores": (Case(types={"scores": sequence("scores")}), "InvalidGraph"),
    "optional weights": (Case(inputs=INPUTS, types={"weights": optional("weights")}), ""),
    "bool labels": (Case(**typed("labels", TensorProto.BOOL, np.zeros(3, "?"))), "InvalidGraph"),
    "string labels": (
        Case(**typed("labels", TensorProto.STRING, np.array(["0", "1", "2"]))),
        "InvalidGraph",
    ),
    "float labels": (
        Case(**typed("labels", FLOAT, np.zeros(3, "f4"))),
        "targets has dtype float32, expected an integer dtype for one class per row, or "
        "probabilities of the shape of logits (3, 5)",
    ),
    "int8 labels": (Case(**typed("labels", TensorProto.INT8, np.zeros(3, "i1"))), "InvalidGraph"),
    "uint64 labels": (
        Case(**typed("labels", TensorProto.UINT64, np.zeros(3, "u8"))),
        "InvalidGraph",
    ),
    "int64 gamma": (Case(**typed("gamma", INT, np.array(1))), "InvalidGraph"),
    "float64 weights": (
        Case(inputs=INPUTS, **typed("weights", TensorProto.DOUBLE, np.ones(5))),
        "",
    ),
    "fed another type than declared": (
        Case(feeds={"scores": SCORES.astype("f8")}),
        "InvalidArgument",
    ),
    # Shapes.
    "scores of rank 0": (Case(**shaped("scores", 1.0)), "InvalidArgument"),
    "scores of rank 1": (
        Case(**shaped("scores", np.zeros(5))),
        "axis = 1, expected -1 <= axis < 1",
    ),
    "scores of rank 70": (
        edited(of_rank_70),
        "an input has 70 dimensions, expected at most 64",
    ),
    "no classes": (
        Case(**shaped("scores", np.zeros((3, 0)))),
        "expected at least 1 class along axis 1",
    ),
    "2^62 classes": (edited(of_many_classes, **NO_LABELS), "span more than 2^61 bytes"),
    "2^62 classes, smoothed": (
        edited(of_many_classes, label_smoothing=0.5, **NO_LABELS),
        "span more than 2^61 bytes",
    ),
    "labels of rank 0": (Case(**shaped("labels", 1)), "targets has shape (), expected (3,)"),
    "labels of rank 2": (
        Case(**shaped("labels", [[0, 1, 4]])),
        "targets has shape (1, 3), expected (3,)",
    ),
    "too few labels": (Case(**shaped("labels", [0, 1])), "targets has shape (2,), expected (3,)"),
    "gamma of one element": (
        Case(**shaped("gamma", [0.5])),
        "gamma has shape (1,), expected a scalar or",
    ),
    "gamma of the scores' shape": (Case(**shaped("gamma", SCORES / 9)), "gamma has shape (3, 5)"),
    "empty gamma": (Case(**shaped("gamma", np.zeros(0))), "gamma has shape (0,)"),
    "gamma per row": (Case(**shaped("gamma", [0.0, 0.5, 1.0])), "ok"),
    "too many weights": (
        Case(inputs=INPUTS, **shaped("weights", np.ones(6))),
        "weight has shape (6,), expected (5,)",
    ),
    "scalar weights": (Case(inputs=INPUTS, **shaped("weights", 1.0)), "weight has shape ()"),
    "empty weights": (
        Case(inputs=INPUTS, **shaped("weights", np.zeros(0))),
        "weight has shape (0,)",
    ),
    "empty batch": (
        Case(feeds={"scores": SCORES[:0], "labels": np.zeros(0, "i8")}),
        "ok [(5,), (), (0, 5)]",
    ),
    "empty batch, labels not": (Case(feeds={"scores": SCORES[:0]}), "InvalidArgument"),
    "unknown shapes": (
        Case(types={name: (TYPES[name][0], None) for name in INPUTS}, inputs=INPUTS),
        "ok [(5,), (), (3, 5)]",
    ),
    "unknown shapes, per row": (
        Case(types={name: (TYPES[name][0], None) for name in INPUTS}, reduction="none"),
        "ok [(5,), (3,), (3, 5)]",
    ),
    # Probabilities.
    "probabilities": (probable(SCORES), "ok [(5,), (), (3, 5)]"),
    "probabilities, per row": (probable(SCORES, reduction="none"), "ok [(5,), (3,), (3, 5)]"),
    "float64 probabilities": (probable(SCORES.astype("f8")), "ok [(5,), (), (3, 5)]"),
    "float16 probabilities": (probable(SCORES.astype("f2")), "ok [(5,), (), (3, 5)]"),
    "probabilities of unknown shape": (
        Case(
            types=dict.fromkeys(INPUTS, (FLOAT, None)),
            feeds={"labels": SCORES},
            reduction="none",
        ),
        "ok [(5,), (3,), (3, 5)]",
    ),
    "probabilities of rank 0": (
        probable(np.array(1.0, "f4"), reduction="none"),
        "targets has shape (), expected (3, 5) of probabilities",
    ),
    "probabilities of rank 3": (
        probable(SCORES[None], reduction="none"),
        "targets has shape (1, 3, 5), expected (3, 5) of probabilities",
    ),
    "probabilities of fewer classes": (
        probable(SCORES[:, :4]),
        "targets has shape (3, 4), expected (3, 5) of probabilities",
    ),
    "a negative probability": (
        probable(SCORES - np.float32(0.5)),
        "targets[0, 0] = -0.5, expected a probability: finite and >= 0",
    ),
    "a probability NaN": (
        probable(np.where(SCORES[2, 1] == SCORES, np.float32(np.nan), SCORES)),
        "targets[2, 1] = nan, expected a probability: finite and >= 0",
    ),
    "an infinite probability": (probable(SCORES + np.float32(np.inf)), "targets[0, 0] = inf"),
    "probabilities, gamma of their shape": (
        probable(SCORES, types={"gamma": (FLOAT, [3, 5])}, feeds={"gamma": SCORES / 9}),
        "gamma has shape (3, 5), expected a scalar or (3,), the shape of targets without the class",
    ),
    "probabilities and an ignore_index": (
        probable(SCORES, ignore_index=2),
        "ignore_index = 2, expected none, or a negative one",
    ),
    "probabilities and a negative ignore_index": (probable(SCORES, ignore_index=-1), "ok"),
    # Numbers.
    "label of the number of classes": (
        Case(**fed(labels=[0, 5, 1])),
        "InvalidArgument: [ONNXRuntimeError] : 2 : INVALID_ARGUMENT",
    ),
    "label past the classes": (
        Case(**fed(labels=[0, 9, 1])),
        "targets[1] = 9, expected 0 <= target < 5",
    ),
    "label -1": (Case(**fed(labels=[0, 1, -1])), "targets[2] = -1, expected 0 <= target < 5"),
    "label -100": (Case(**fed(labels=[-100, 1, 1])), "targets[0] = -100"),
    "ignored label -100": (Case(**fed(labels=[-100, 1, 1]), ignore_index=-100), "ok"),
    "smallest label": (Case(**fed(labels=[-(2**63), 1, 1])), f"targets[0] = {-(2**63)}"),
    "largest label": (Case(**fed(labels=[2**63 - 1, 1, 1])), f"targets[0] = {2**63 - 1}"),
    "label in a row of NaN": (
        Case(**fed(scores=np.full((3, 5), np.nan), labels=[7, 0, 0])),
        "targets[0] = 7",
    ),
    "gamma below 0": (Case(**fed(gamma=-0.125)), "gamma = -0.125, expected 0 <= gamma <= 1"),
    "gamma above 1": (Case(**fed(gamma=1.5)), "gamma = 1.5, expected 0 <= gamma <= 1"),
    "gamma NaN": (Case(**fed(gamma=np.nan)), "gamma = nan, expected 0 <= gamma <= 1"),
    "gamma infinite": (Case(**fed(gamma=np.inf)), "gamma = inf"),
    "one gamma of a row NaN": (
        Case(**shaped("gamma", [0.5, np.nan, 0.5])),
        "gamma[1] = nan, expected 0 <= gamma <= 1",
    ),
    "weights NaN": (Case(inputs=INPUTS, **fed(weights=np.full(5, np.nan))), "ok"),
    # Attributes.
    "unknown reduction": (
        Case(reduction="avg"),
        'reduction = "avg", expected "mean", "sum" or "none"',
    ),
    "empty reduction": (Case(reduction=""), 'reduction = "", expected "mean"'),
    "reduction with a zero byte": (Case(reduction=b"none\0x"), 'reduction = "none?x", expected'),
    "reduction of a megabyte": (Case(reduction="x" * 2**20), "reduction = "),
    "reduction that is no text": (Case(reduction=b"\xff\xfe"), 'reduction = "??", expected'),
    "unknown value": (Case(value="primitives"), 'value = "primitives", expected "primitive"'),
    "threshold above 1": (Case(threshold=1.5), "threshold = 1.5, expected 0 <= threshold <= 1"),
    "threshold NaN": (Case(threshold=float("nan")), "threshold = nan"),
    "label smoothing below 0": (
        Case(label_smoothing=-0.5),
        "label_smoothing = -0.5, expected 0 <=",
    ),
    "label smoothing infinite": (Case(label_smoothing=float("inf")), "label_smoothing = inf"),
    "z-loss below 0": (Case(z_loss=-0.5), "z_loss = -0.5, expected a finite number >= 0"),
    "z-loss NaN": (Case(z_loss=float("nan")), "z_loss = nan"),
    "softcap below 0": (Case(softcap=-0.5), "softcap = -0.5, expected a finite number > 0"),
    "softcap NaN": (Case(softcap=float("nan")), "softcap = nan"),
    "softcap infinite": (Case(softcap=float("inf")), "softcap = inf"),
    "shift below 0": (Case(shift=-1), "shift = -1, expected >= 0"),
    "shift past the rows": (Case(shift=2**31 - 1), "ok [(5,), (), (3, 5)]"),
    "shift of more than 32 bits": (Case(shift=2**31), f"shift = {2**31}, expected a 32-bit"),
    "smallest shift": (Case(shift=-(2**63)), f"shift = {-(2**63)}, expected a 32-bit"),
    "a label that no row predicts": (Case(**fed(labels=[9, 1, 1]), shift=1), "ok"),
    "a label that a row predicts": (
        Case(**fed(labels=[0, 1, 9]), shift=1),
        "targets[2] = 9, expected 0 <= target < 5",
    ),
    "smallest ignore_index": (Case(ignore_index=-(2**63)), "ok"),
    "unknown attribute": (Case(gama=1), ""),
}

# Every attribute with every type that is not its own.
OF_TYPES: dict[str, Any] = {
    "float": 1.0,
    "int": 1,
    "string": "mean",
    "floats": [1.0, 2.0],
    "ints": [1, 2],
    "strings": ["mean", "sum"],
    "tensor": helper.make_tensor("t", FLOAT, [1], [1.0]),
    "graph": helper.make_graph([], "g", [], []),
}
OWN_TYPES = {
    "reduction": "string",
    "value": "string",
    "threshold": "float",
    "label_smoothing": "float",
    "z_loss": "float",
    "softcap": "float",
    "shift": "int",
    "ignore_index": "int",
}
for _name, _own in OWN_TYPES.items():
    for _type, _value in OF_TYPES.items():
        if _type != _own:
            CASES[f"{_name} of type {_type}"] = (
                Case(**{_name: _value}),
                f"attribute {_name} has another type, expected a" if _type != "graph" else "",
            )


def random_case(seed: int) -> Case:
    """Anything anywhere."""
    chooser = random.Random(seed)
    names = ["", "scores", "labels", "gamma", "weights", "loss", "nothing"]
    inputs = INPUTS[: chooser.randint(3, 4)]
    if chooser.random() < 0.1:
        inputs = [chooser.choice(names) for _ in range(chooser.randint(0, 5))]
    elif chooser.random() < 0.1:
        inputs[chooser.randrange(len(inputs))] = chooser.choice(names)
    outputs = chooser.choice([["loss"], ["loss", ""], OUTPUTS])
    if chooser.random() < 0.1:
        outputs = chooser.choice([["", ""], ["grad"], []])
    types, feeds = {}, {}
    kinds = {
        FLOAT: "f4",
        TensorProto.DOUBLE: "f8",
        TensorProto.FLOAT16: "f2",
        INT: "i8",
        TensorProto.INT32: "i4",
    }
    for name in INPUTS:
        if chooser.random() < 0.15:
            elem_type = chooser.choice([TYPES[name][0], *kinds])
            shape = [chooser.choice([0, 1, 2, 3, 5]) for _ in range(chooser.randint(0, 4))]
            types[name] = (elem_type, chooser.choice([None, shape, [None] * len(shape)]))
            feeds[name] = np.full(shape, chooser.choice([0, 1, 2, -1, 7]), kinds[elem_type])
    attributes = {
        name: chooser.choice([OF_TYPES[OWN_TYPES[name]]] * 10 + [*OF_TYPES.values()])
        for name in OWN_TYPES
        if name != "value" and chooser.random() < 0.2
    }
    return Case(inputs, outputs, types, feeds, **attributes)


def case_of(name: str) -> Case:
    return random_case(int(name.split()[1])) if name.startswith("random ") else CASES[name][0]


if __name__ == "__main__":
    for _name in sys.argv[1:]:
        print(f"{_name}\tbegin", flush=True)
        print(f"{_name}\t{case_of(_name).run()[:400]}", flush=True)
