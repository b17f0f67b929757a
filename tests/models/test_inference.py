"""A trained encoder scores by ONNX Runtime as by PyTorch, says where an anomaly is, and may come from others' files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.nets.inference import EAGER_BATCH_ROWS, EagerBackend, Encoder, OnnxBackend, resnet_from_safetensors
from models.nets.onnx_graph import to_onnx
from models.nets.resnet import ResNet18, chosen_stem
from models.occ.gde import GDE
from models.persistence import load, model_to_parts, save
from models.representations.cutpaste import CutPaste
from models.representations.frozen import Frozen
from models.state import State
from models.training import TrainingConfig, train

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(n_channels: int = 3, width: int = 4, *, stem: str = "full", seed: int = 0) -> ResNet18:
    """Return a network whose batch norms are not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResNet18(n_channels, width, stem=stem)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values, low, high in [
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 2.0),
                ]:
                    assert values is not None
                    nn.init.uniform_(values, low, high)
    return net.eval()


def pictures(n: int, h: int = 16, w: int = 16, c: int = 3, *, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size=(n, h, w, c), dtype=np.uint8)


def assert_near(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("n_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("stem", ["full", "half", "usual"])
@pytest.mark.parametrize(
    ("n_channels", "c", "h", "w"),
    [(1, 1, 16, 16), (3, 3, 20, 24), (3, 1, 17, 33)],
    ids=["grey", "colour", "grey_as_colour"],
)
@pytest.mark.parametrize("is_scaled", [False, True])
def test_the_graph_computes_what_the_network_does(
    n_stages: int, stem: str, n_channels: int, c: int, h: int, w: int, is_scaled: bool
) -> None:
    net, X = network(n_channels, stem=stem), pictures(3, h, w, c)
    scale = {"mean": MEAN, "deviation": DEVIATION} if is_scaled else {}
    content = to_onnx(net, (h, w, c), n_stages=n_stages, **scale)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    eager = EagerBackend(net, n_stages, scale.get("mean", (0.0,) * 3), scale.get("deviation", (1.0,) * 3))
    graph = OnnxBackend(content)
    assert_near(graph.features(X), eager.features(X))
    assert_near(graph.places(X), eager.places(X))
    assert graph.features(X).shape == (3, 4 * 2 ** (n_stages - 1))
    # What is seen at the places is the stage before, at twice the resolution; of a single stage, itself.
    assert graph.places(X).shape[1] == 4 * 2 ** max(0, n_stages - 2)
    if n_stages == 1:
        assert_near(graph.places(X).mean(axis=(2, 3)), graph.features(X))


def test_the_network_computes_the_layers_of_the_paper_one_after_the_other() -> None:
    net, X = network(3, stem="usual"), pictures(2, 40, 40)
    hidden = torch.from_numpy(X).permute(0, 3, 1, 2) / 255.0
    with torch.no_grad():
        hidden = torch.relu(net.bn1(nn.functional.conv2d(hidden, net.conv1.weight, stride=2, padding=3)))
        hidden = nn.functional.max_pool2d(hidden, 3, stride=2, padding=1)
        for index, stage in enumerate(net.stages):
            for block_index, block in enumerate(stage.children()):
                stride = 2 if index and not block_index else 1
                inner = torch.relu(
                    block.bn1(nn.functional.conv2d(hidden, block.conv1.weight, stride=stride, padding=1))
                )
                inner = block.bn2(nn.functional.conv2d(inner, block.conv2.weight, padding=1))
                if stride == 2:
                    conv, norm = block.downsample.children()
                    hidden = norm(nn.functional.conv2d(hidden, conv.weight, stride=2))
                hidden = torch.relu(inner + hidden)
    encoder = Encoder.of_resnet(net, (40, 40, 3), n_stages=4, l2_normalise=False)
    assert_near(encoder.embed(X), hidden.mean(dim=(2, 3)).numpy())
    assert hidden.shape == (2, 32, 2, 2)


@pytest.mark.parametrize(
    ("stem", "side", "expected"),
    [("auto", 64, "full"), ("auto", 65, "usual"), ("half", 500, "half"), ("usual", 8, "usual")],
)
def test_small_pictures_keep_their_resolution_in_the_stem_unless_it_is_said_otherwise(
    stem: str, side: int, expected: str
) -> None:
    assert chosen_stem(stem, side, 10) == chosen_stem(stem, 10, side) == expected


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
@pytest.mark.parametrize("l2_normalise", [False, True])
def test_batches_of_any_size_give_the_same_bits(backend: str, l2_normalise: bool) -> None:
    X = pictures(66, 12, 12)
    encoder = Encoder.of_resnet(network(), (12, 12, 3), n_stages=4, l2_normalise=l2_normalise, backend=backend)
    Z, maps = encoder.embed(X), encoder.places(X)
    for size in (1, 2, EAGER_BATCH_ROWS, 33, 64):
        parts = [slice(start, start + size) for start in range(0, len(X), size)]
        np.testing.assert_array_equal(np.concatenate([encoder.embed(X[rows]) for rows in parts]), Z)
        if size in (1, 33):
            np.testing.assert_array_equal(np.concatenate([encoder.places(X[rows]) for rows in parts]), maps)


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_no_pictures_give_no_embeddings(backend: str) -> None:
    encoder = Encoder.of_resnet(network(), (16, 16, 3), n_stages=3, l2_normalise=True, backend=backend)
    Z, maps = encoder.embed(pictures(0)), encoder.places(pictures(0))
    assert (Z.shape, Z.dtype) == ((0, 16), np.float32)
    assert (maps.shape, maps.dtype) == ((0, 8, 8, 8), np.float32)


def test_a_picture_without_any_feature_has_an_embedding_of_zeros() -> None:
    net = network()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    encoder = Encoder.of_resnet(net, (16, 16, 3), n_stages=4, l2_normalise=True)
    assert not encoder.embed(pictures(2)).any()
    assert not encoder.places(pictures(2)).any()


def test_a_session_has_as_many_threads_as_asked_for_or_as_pytorch() -> None:
    content = to_onnx(network(), (16, 16, 3), n_stages=1)
    for asked, expected in [(None, torch.get_num_threads()), (2, 2)]:
        assert OnnxBackend(content, asked)._session.get_session_options().intra_op_num_threads == expected


def with_defect(picture: NDArray[np.uint8], rng: np.random.Generator, side: int) -> tuple[int, int]:
    """Turn a square of the picture by a quarter, in place; return where it begins."""
    y, x = rng.integers(0, picture.shape[0] - side, size=2)
    square = picture[y : y + side, x : x + side]
    square[:] = np.rot90(square).copy()
    return int(y), int(x)


LOCAL: dict[str, dict[str, Any]] = {
    "pixels": {},
    "cutpaste": {
        "width": 8,
        "head_width": 16,
        "stem": "half",
        "layer": 2,  # places are those of stage 1, 16 x 16; later ones know better what is odd than where
        "n_epochs": 4,
        "batch_rows": 16,
        "optimizer": "adamw",
        "learning_rate": 4e-3,
    },
}


@pytest.mark.parametrize("representation", sorted(LOCAL))
def test_heat_maps_are_hottest_where_a_defect_was_planted(representation: str, make_pictures: Any) -> None:
    rng, side = np.random.default_rng(0), 10
    X, _ = make_pictures(160, side=32)
    odd, _ = make_pictures(40, seed=1, side=32)
    at = [with_defect(picture, rng, side) for picture in odd]
    config = TrainingConfig(
        representation=representation,
        representation_options=LOCAL[representation],
        classifier="gde",
        refine="none",
    )
    model = train({"image": X}, config, seed=0, device="cpu").model
    maps = model.heat_maps({"image": odd})
    assert maps.shape == (40, 32, 32)
    n_hits = 0
    for heat, (y, x) in zip(maps, at, strict=True):
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        n_hits += y - 2 <= row < y + side + 2 and x - 2 <= column < x + side + 2
    # A place drawn at random lies there in a fifth of the pictures.
    assert n_hits / 40 > 0.45


def torchvision_state(net: ResNet18) -> dict[str, torch.Tensor]:
    """Return a state as torchvision has it, with its classifier."""
    return {**net.state_dict(), "fc.weight": torch.ones(10, net.n_features), "fc.bias": torch.zeros(10)}


def frozen(path: Path, X: NDArray[np.uint8], **options: Any) -> Frozen:
    return Frozen(path=str(path), **{"l2_normalise": False, **options}).fit(X, np.random.default_rng(0))


@pytest.mark.parametrize("stem", ["full", "half", "usual"])
def test_a_state_of_torchvision_is_read_and_computes_what_the_network_does(stem: str, tmp_path: Path) -> None:
    net, X = network(3, 8, stem=stem), pictures(3, 24, 20)
    state = torchvision_state(net)
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"} < set(state)
    safetensors.torch.save_file(state, tmp_path / "resnet18.safetensors")
    options = {"mean": MEAN, "deviation": DEVIATION, "layer": 3, "stem": "half" if stem == "half" else "auto"}
    encoder = frozen(tmp_path / "resnet18.safetensors", X, **options)
    assert_near(encoder.embed(X), EagerBackend(net, 3, MEAN, DEVIATION).features(X))
    grey = frozen(tmp_path / "resnet18.safetensors", X[..., :1], **options)
    expected = EagerBackend(net, 3, MEAN, DEVIATION).features(np.repeat(X[..., :1], 3, axis=3))
    assert_near(grey.embed(X[..., :1]), expected)


def test_the_file_of_a_model_of_this_project_is_an_encoder_and_half_precision_is_read(
    tmp_path: Path, make_pictures: Any
) -> None:
    X, _ = make_pictures(40)
    options = {"width": 8, "head_width": 8, "batch_rows": 8, "n_epochs": 1, "l2_normalise": False}
    config = TrainingConfig(representation="cutpaste", representation_options=options, classifier="gde")
    model = train({"image": X}, config, seed=0, device="cpu").model
    save(model, tmp_path / "model")
    encoder = frozen(tmp_path / "model" / "model.safetensors", X)
    assert_near(encoder.embed(X), model.representation.embed(X))
    state = {name: tensor.half() for name, tensor in network().state_dict().items()}
    assert resnet_from_safetensors(safetensors.torch.save(state)).conv1.weight.dtype == torch.float32


def graph(
    kind: str, *, n: int | str = "n", side: int = 8, c: int = 3, output: str = "pooled", value: float = 1.0
) -> bytes:
    """Return a small ONNX model: the picture times a number, as it is or pooled."""
    is_float = kind == "float"
    shape = [n, c, side, side] if is_float else [n, side, side, c]
    nodes = [helper.make_node("Cast", ["pictures"], ["cast"], to=TensorProto.FLOAT)]
    if not is_float:
        nodes.append(helper.make_node("Transpose", ["cast"], ["first"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Mul", ["cast" if is_float else "first", "value"], ["maps"]))
    nodes.append(helper.make_node("ReduceMean", ["maps"], ["pooled"], axes=[2, 3], keepdims=0))
    element = {"float": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}[kind]
    made = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("pictures", element, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(
                np.array([value, 2 * value, 3 * value][:c], dtype=np.float32).reshape(-1, 1, 1), "value"
            )
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("kind", ["float", "uint8"])
@pytest.mark.parametrize("output", ["pooled", "maps"])
@pytest.mark.parametrize("n", ["n", 4, 1])
def test_somebodys_graph_takes_floats_or_bytes_and_gives_features_or_maps(
    kind: str, output: str, n: int | str, tmp_path: Path
) -> None:
    (tmp_path / "encoder.onnx").write_bytes(graph(kind, n=n, output=output))
    X = pictures(6, 8, 8)
    encoder = frozen(tmp_path / "encoder.onnx", X, mean=MEAN, deviation=DEVIATION)
    images = X.astype(np.float64)
    if kind == "float":  # bytes are left as they are: what takes them scales them itself
        images = (images / 255.0 - MEAN) / DEVIATION
    images = images * [1.0, 2.0, 3.0]
    assert_near(encoder.embed(X), images.mean(axis=(1, 2)))
    assert_near(np.concatenate([encoder.embed(X[i : i + 1]) for i in range(6)]), images.mean(axis=(1, 2)))
    assert encoder.embed(X[:0]).shape == (0, 3)
    if output == "maps":
        assert_near(encoder.places(X), images)
    else:
        assert_near(encoder.places(X), images.mean(axis=(1, 2))[:, None, None])


def test_grey_pictures_are_shown_to_a_graph_of_colours_three_times(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(graph("float"))
    X = pictures(3, 8, 8, 1)
    expected = (X.mean(axis=(1, 2)) / 255.0) * [1.0, 2.0, 3.0]
    assert_near(frozen(tmp_path / "encoder.onnx", X).embed(X), expected)


def test_a_graph_of_grey_pictures_takes_them_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(graph("float", c=1))
    X = pictures(3, 8, 8, 1)
    assert_near(frozen(tmp_path / "encoder.onnx", X).embed(X), X.mean(axis=(1, 2)) / 255.0)


def two_inputs() -> bytes:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("a", "b")]
    made = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        "two",
        inputs,
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
    )
    content: bytes = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return content


class Surprise:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("pickles-were-read"),)


def other_network(**changes: torch.Tensor | None) -> bytes:
    state = {**network().state_dict(), **changes}
    return safetensors.torch.save({name: tensor for name, tensor in state.items() if tensor is not None})


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("noise.onnx", b"no graph", r"is no ONNX graph that can be opened"),
    ("empty.onnx", b"", r"is no ONNX graph that can be opened"),
    ("weights.onnx", safetensors.torch.save(network().state_dict()), "is no ONNX graph that can be opened"),
    ("two.onnx", two_inputs(), r"the graph's inputs are a .*, b .*; allowed: one of four axes, float or uint8"),
    ("whole.onnx", graph("int64"), r"the graph's inputs are pictures tensor\(int64\)"),
    ("other.onnx", graph("float", side=9), "takes pictures of 9 x 9 with 3 channels, these are 8 x 8 with 3; declare"),
    ("grey.onnx", graph("uint8", c=1), "takes pictures of 8 x 8 with 1 channels, these are 8 x 8 with 3"),
    ("nan.onnx", graph("float", value=float("nan")), r"gives \(1, 3\) of which some are not finite"),
    ("noise.safetensors", b"no tensors at all", "is no safetensors file"),
    ("pickle.safetensors", pickle.dumps({"conv1.weight": Surprise()}), "is no safetensors file"),
    ("other.safetensors", safetensors.torch.save({"weight": torch.zeros(2)}), r"has no conv1\.weight"),
    ("flat.safetensors", other_network(**{"conv1.weight": torch.zeros(4, 27)}), "conv1.weight has 2 axes, not 4"),
    ("part.safetensors", other_network(**{"layer4.1.bn2.bias": None}), r"ResNet-18: layer4\.1\.bn2\.bias …"),
    ("wide.safetensors", other_network(**{"bn1.bias": torch.zeros(5)}), r"ResNet-18: bn1\.bias … are missing or of"),
    ("deep.safetensors", other_network(**{"layer1.2.bn1.bias": torch.zeros(4)}), "larger network: it has layer1.2"),
    ("grey.safetensors", safetensors.torch.save(network(1).state_dict()), "does not take pictures of 8 x 8 with 3"),
    ("nan.safetensors", other_network(**{"bn1.bias": torch.full((4,), torch.nan)}), "some are not finite"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_a_file_that_is_no_encoder_of_these_pictures_is_refused_by_its_name(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"encoder .*{name}: .*{message}"):
        frozen(tmp_path / name, pictures(2, 8, 8))
    assert not (tmp_path / "pickles-were-read").exists()


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder .*none\.onnx: cannot be read: No such file or directory; check"):
        frozen(tmp_path / "none.onnx", pictures(2))


def test_pictures_of_another_size_than_it_was_fitted_to_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(network().state_dict(), tmp_path / "encoder.safetensors")
    encoder = frozen(tmp_path / "encoder.safetensors", pictures(2))
    for act in (lambda X: encoder.embed(X), lambda X: encoder.places(X)):
        with pytest.raises(ValueError, match=r"X has pictures of \(16, 17, 3\), it was fitted to \(16, 16, 3\)"):
            act(pictures(2, 16, 17))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "encoder.pt"}, r"path is 'encoder\.pt'; allowed: a file that ends in \.onnx or \.safetensors"),
        ({"path": 3}, "path is 3; allowed: a file"),
        ({"mean": (0.0, 0.0)}, r"mean is \(0\.0, 0\.0\); allowed: three numbers"),
        ({"mean": (0.0, 0.0, np.inf)}, "mean is .*; allowed: three numbers"),
        ({"deviation": (1.0, 1.0, 0.0)}, "deviation is .*; allowed: numbers above 0"),
        ({"layer": 0}, "layer is 0; allowed: 1, 2, 3, 4"),
        ({"stem": "usual"}, "stem is 'usual'; allowed: auto, full, half"),
    ],
)
def test_options_of_a_frozen_encoder_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frozen(**{"path": "encoder.onnx", **options})
    with pytest.raises(ValueError, match=r"representation_options do not fit 'frozen'.*path"):
        TrainingConfig(representation="frozen")


def test_a_state_whose_file_is_not_bytes_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(network().state_dict(), tmp_path / "encoder.safetensors")
    state = frozen(tmp_path / "encoder.safetensors", pictures(2)).state()
    with pytest.raises(ValueError, match="array 'file' is float32; needed: uint8"):
        Frozen.from_state(State(state.values, {"file": state.arrays["file"].astype(np.float32)}))


@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
def test_a_model_with_a_frozen_encoder_is_read_without_the_encoders_file(
    kind: str, tmp_path: Path, make_pictures: Any
) -> None:
    X, _ = make_pictures(60, n_channels=3, contamination=0.2)
    path = tmp_path / f"encoder.{kind}"
    content = to_onnx(network(), (16, 16, 3), n_stages=4) if kind == "onnx" else None
    path.write_bytes(content or safetensors.torch.save(torchvision_state(network())))
    config = TrainingConfig(
        representation="frozen", representation_options={"path": str(path), "layer": 4}, classifier="gde"
    )
    assert config.closed_form() is config
    trained = train({"image": X}, config, seed=0)
    assert trained.report.n_steps == 0
    model = trained.model
    save(model, tmp_path / "model")
    path.unlink()
    copy = load(tmp_path / "model")
    for mine, theirs in zip(model.score({"image": X}), copy.score({"image": X}), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(model.heat_maps({"image": X}), copy.heat_maps({"image": X}))
    assert model_to_parts(copy) == model_to_parts(model)


def test_frozen_features_are_scored_as_the_classifier_scores_them(tmp_path: Path, make_pictures: Any) -> None:
    X, _ = make_pictures(60)
    safetensors.torch.save_file(network().state_dict(), tmp_path / "encoder.safetensors")
    options = {"path": str(tmp_path / "encoder.safetensors")}
    config = TrainingConfig(representation="frozen", representation_options=options, classifier="gde", refine="none")
    model = train({"image": X}, config, seed=0).model
    Z = frozen(tmp_path / "encoder.safetensors", X, l2_normalise=True).embed(X)
    np.testing.assert_allclose(model.score({"image": X}).score, GDE(shrinkage=1e-2).fit(Z).score(Z), rtol=1e-6)


def test_on_another_device_or_with_other_threads_an_encoder_embeds_alike(tmp_path: Path) -> None:
    X = pictures(9)
    safetensors.torch.save_file(network().state_dict(), tmp_path / "encoder.safetensors")
    options: dict[str, Any] = {"width": 8, "head_width": 8, "batch_rows": 8}
    for encoder in (
        frozen(tmp_path / "encoder.safetensors", X),
        CutPaste(**options).fit(X, np.random.default_rng(0)),
    ):
        other = encoder.on("cpu", n_threads=2)
        assert other is not encoder
        assert_near(other.embed(X), encoder.embed(X))


def test_importing_representations_imports_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, models.training, models.representations; assert not {'torch', 'onnx', 'kornia'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
