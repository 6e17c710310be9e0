"""The scan of an ONNX file: no file outside the bundle, no operator that never ends."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from onnx import TensorProto, helper, numpy_helper

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.bundle.onnx_scan import check_graph
from mclst.runtime.errors import BundleError


def graph_with(tensor: onnx.TensorProto, where: str) -> onnx.ModelProto:
    """A graph that holds a tensor as a weight, in an attribute, in a branch of an If, or in a function."""
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    if where == "function":
        function = helper.make_function("own", "F", [], ["y"], [constant], opsets[:1])
        graph = helper.make_graph([helper.make_node("F", [], ["y"], domain="own")], "g", [], [out])
        return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    nodes, weights = [constant], []
    if where == "weight":
        nodes, weights = [helper.make_node("Identity", [tensor.name], ["y"])], [tensor]
    if where == "branch":
        branch = helper.make_graph([constant], "b", [], [out])
        yes = numpy_helper.from_array(np.array(True), "yes")
        nodes, weights = (
            [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)],
            [yes],
        )
    return helper.make_model(
        helper.make_graph(nodes, "g", [], [out], weights), opset_imports=opsets, ir_version=8
    )


def elsewhere(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("where", ["weight", "attribute", "branch", "function"])
@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "beside.data", "", "encoder.onnx.data/../../secret"]
)
def test_a_file_that_the_bundle_does_not_list_is_refused(tmp_path: Path, where: str, location: str) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(graph_with(elsewhere(location), where).SerializeToString())
    with pytest.raises(BundleError, match=r"encoder\.onnx reads .* no file of the bundle"):
        check_graph(path, {"encoder.onnx", "encoder.onnx.data"})
    path.write_bytes(graph_with(elsewhere("encoder.onnx.data"), where).SerializeToString())
    check_graph(path, {"encoder.onnx", "encoder.onnx.data"})


def loop_forever() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    loop = helper.make_node("Loop", ["many", ""], [], body=body)
    many = numpy_helper.from_array(np.array(10**12), "many")
    graph = helper.make_graph([loop], "g", [], [], [many])
    return helper.make_model(graph)


def test_a_loop_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(loop_forever().SerializeToString())
    with pytest.raises(BundleError, match="holds a Loop, which may run forever"):
        check_graph(path, {"encoder.onnx"})


@pytest.mark.slow
def test_the_graphs_of_an_export_pass(exported_bundle: Path) -> None:
    check_graph(exported_bundle / "encoder.onnx", {"encoder.onnx"})


def test_a_bundle_is_refused_for_its_graph(small_bundle: Path, tmp_path: Path) -> None:
    """Though every hash is right: whoever writes a bundle writes its hashes."""
    (tmp_path / "secret").write_bytes(bytes(16))
    graph = graph_with(elsewhere("../secret"), "weight")
    with pytest.raises(BundleError, match=r"reads '\.\./secret'"):
        open_bundle(bundle_with(graph, "encoder.onnx", small_bundle, tmp_path))


def bundle_with(graph: onnx.ModelProto, name: str, small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle that also lists `graph`, with the right hash."""
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    content = graph.SerializeToString()
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


@pytest.mark.parametrize("name", ["encoder.fp16.onnx", "encoder.int8.onnx", "slide.bf16.onnx"])
@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (loop_forever(), "holds a Loop, which may run forever"),
        (
            graph_with(elsewhere("/etc/passwd"), "weight"),
            "reads '/etc/passwd', which is no file of the bundle",
        ),
    ],
    ids=["loop", "file"],
)
def test_m2_graphs_of_every_precision_are_checked(
    name: str, graph: onnx.ModelProto, words: str, small_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=f"{name} {words}"):
        open_bundle(bundle_with(graph, name, small_bundle, tmp_path))


def functions(levels: int) -> onnx.ModelProto:
    """Function i calls function i - 1 twice: 2 ** levels nodes once inlined."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    bodies = [
        helper.make_function("own", "F0", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], opsets)
    ]
    for i in range(1, levels):
        calls = [helper.make_node(f"F{i - 1}", [a], [b], domain="own") for a, b in (("x", "z"), ("z", "y"))]
        bodies.append(helper.make_function("own", f"F{i}", ["x"], ["y"], calls, opsets))
    top = helper.make_node(f"F{levels - 1}", ["x"], ["y"], domain="own")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([top], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=8)


def test_l1_functions_that_call_functions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(functions(25).SerializeToString())
    with pytest.raises(BundleError, match="a function that calls the function 'F0'"):
        check_graph(path, {"encoder.onnx"})
    path.write_bytes(functions(1).SerializeToString())
    check_graph(path, {"encoder.onnx"})


def test_l7_weights_under_another_name_are_refused(tmp_path: Path) -> None:
    """The key of an engine covers the graph and NAME.onnx.data alone."""
    path = tmp_path / "encoder.onnx"
    path.write_bytes(graph_with(elsewhere("weights.bin"), "weight").SerializeToString())
    with pytest.raises(
        BundleError, match=r"reads 'weights\.bin', but its weights belong in encoder\.onnx\.data"
    ):
        check_graph(path, {"encoder.onnx", "encoder.onnx.data", "weights.bin"})


@quick
@given(data=st.data())
def test_any_bytes_are_a_graph_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    whole = bytearray(graph_with(elsewhere("encoder.onnx.data"), "branch").SerializeToString())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=200), st.just(bytes(whole)))))
    try:
        check_graph(path, {"encoder.onnx", "encoder.onnx.data"})
    except BundleError as error:
        assert "\n" not in str(error)
