"""The plain network and its file: bits, latent weights, thresholds, refusals.

That logits are equal bit for bit, ``test_matrix.py`` checks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx, nn

from bench.errors import InputError
from bench.export import foreign_formats
from bench.export.files import latent_of, read_file, write_file
from bench.export.folding import put_thresholds_
from bench.export.modules import Activation, Thresholds
from bench.export.plain import latent_weights, plain_network
from bench.export.pt2 import write_pt2
from bench.layers.low_precision import strip
from bench.machine.foreign import Grant, granted
from bench.networks import costs
from bench.quantizers.deployed import ActivationMap
from tests.configs import make_config
from tests.export.networks_for_export import NETWORKS, OWN, OWN_MODULE, trained


@pytest.fixture
def user_code(tmp_path):
    (tmp_path / f"{OWN_MODULE}.py").write_text(OWN)
    with granted(Grant((OWN_MODULE,), str(tmp_path))):
        yield


def test_packed_weights_take_their_bits(tmp_path):
    four_levels = {"kind": "syq", "eta": 0.3}  # of "1-bit" weights: +-s above the threshold, +-1 below
    cases = (("dorefa", "1/1", 8), ("ttq", "2/2", 4), ("dorefa", "3/3", 8 / 3), (four_levels, "1/1", 4))
    for kind, bits, a_byte in cases:
        net, _, config = trained(quantizer=kind, bits=bits)
        written = write_file(tmp_path / "x.safetensors", plain_network(net), config, 10, packed=True)
        weights = sum(layer.weight.numel() for _, layer in net.low_precision_layers())
        exact = costs(strip(net)).model_bits / 8
        assert weights / a_byte < written.tensor_bytes < exact + 1000
        assert written.file_bytes - written.tensor_bytes < 6000


def test_latent_weights_on_request(tmp_path):
    net, _, config = trained("sum")
    file = tmp_path / "x.safetensors"
    write_file(file, plain_network(net), config, 10, packed=False, latent=latent_weights(strip(net)))
    stored = latent_of(file)
    assert stored.keys() == {name for name, _ in net.low_precision_layers()}
    assert all(torch.equal(stored[name], layer.weight) for name, layer in net.low_precision_layers())
    write_file(file, plain_network(net), config, 10, packed=False)
    assert latent_of(file) == {}


class TestThresholds:
    """Batch norm and activation as thresholds equal the two for every number, also near a threshold."""

    def test_what_the_batch_norm_holds_stays_where_the_graph_calls_it(self):
        """timm's batch norms hold the activation behind them. Thresholds of 0 with -1 and 1 are the sign."""

        class Held(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm, self.read = nn.BatchNorm2d(2), nn.Identity()
                self.norm.act = nn.Identity()

            def forward(self, y):
                return self.read(self.norm.act(self.norm(y)))

        plain = fx.symbolic_trace(Held())
        made = Thresholds(torch.zeros(2, 1), torch.ones(2), torch.tensor([-1.0, 1.0]))
        put_thresholds_(plain, "norm", ["read"], made)
        y = torch.tensor([-0.5, 0.0, 2.0]).expand(1, 2, 1, 3)
        assert torch.equal(plain(y), torch.tensor([-1.0, 1.0, 1.0]).expand(1, 2, 1, 3))

    @pytest.mark.parametrize(
        "map",
        [
            ActivationMap("sign"),
            ActivationMap("round", bits=1),
            ActivationMap("round", bits=2),
            ActivationMap("round", bits=2, half_up=True),
        ],
    )
    def test_equal(self, map):
        from bench.export.folding import thresholds_of

        generator = torch.Generator().manual_seed(0)
        norm = torch.nn.BatchNorm2d(64).eval()
        with torch.no_grad():
            norm.weight.copy_(torch.randn(64, generator=generator))
            norm.weight[:2] = torch.tensor([0.0, -1.0])  # a constant channel, a falling one
            norm.bias.copy_(torch.randn(64, generator=generator))
            norm.running_mean.copy_(torch.randn(64, generator=generator))
            norm.running_var.copy_(torch.rand(64, generator=generator) * 4 + 0.01)
            made = thresholds_of(norm, map)
            assert isinstance(made, Thresholds)
            x = 3 * torch.randn(16, 64, 9, 9, generator=generator)
            edge = (
                (made.thresholds.clamp(-1e30, 1e30) * made.directions[:, None])
                .T[:, :, None, None]
                .expand(-1, 64, 9, 9)
            )
            for y in (x, x.to(memory_format=torch.channels_last), edge.contiguous(), -edge):
                assert torch.equal(made(y), Activation(map)(norm(y)))

    def test_a_batch_norm_that_a_shortcut_reads_stays(self):
        net, _, _ = trained(network={"kind": "resnet20", "block": "post"}, width=0.25, bits="1/1")
        from bench.export.folding import fold_

        plain = plain_network(net)
        folded = fold_(plain)
        assert folded and all(name.endswith("bn1") for name in folded)  # bn2 and bn0 feed the shortcut


def test_a_quantizer_without_a_deployed_form_is_refused():
    net, _, _ = trained()
    layer = net.low_precision_layers()[0][1]
    layer.quantizer.activation_map = lambda: ActivationMap("sign")
    with pytest.raises(InputError, match=r"conv1: activation_map of the quantizer DoReFa is not what"):
        plain_network(net)


def test_of_a_file_only_the_network_of_its_configuration_is_built(tmp_path, user_code):
    changes = {"quantizer": "dorefa", "bits": "1/1", **NETWORKS["own"]}
    net, _, config = trained(**changes)
    write_file(tmp_path / "x.safetensors", plain_network(net), config, 10, packed=True)
    with granted(Grant()), pytest.raises(InputError, match="--allow-code network_of_a_user"):
        read_file(Path(tmp_path / "x.safetensors"))


def test_make_config_is_the_file_s_configuration(tmp_path):
    net, _, config = trained()
    write_file(tmp_path / "x.safetensors", plain_network(net), config, 10, packed=True)
    assert config == make_config(strategy="plain")
    assert read_file(tmp_path / "x.safetensors").input_size == 40


@pytest.mark.parametrize("form", ["pt2", "onnx", "qonnx"])
def test_what_an_exporter_cannot_write_is_one_message(tmp_path, monkeypatch, form):
    """nn.AdaptiveMaxPool2d, say: PyTorch raises one exception from another, and the first one tells why."""

    def fail(*args, **kwargs):
        try:
            raise ValueError("No ONNX function found for aten.adaptive_max_pool2d")
        except ValueError as error:
            raise RuntimeError("Failed to convert the exported program; many lines") from error

    monkeypatch.setattr(torch.export, "export", fail)
    monkeypatch.setattr(torch.onnx, "export", fail)
    plain = fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))
    plain.input_size = 4
    write = {"pt2": write_pt2, "onnx": foreign_formats.write_onnx, "qonnx": foreign_formats.write_qonnx}[form]
    with pytest.raises(InputError, match=rf"--format {form}: .*\(No ONNX function found for aten\.adaptive"):
        write(tmp_path / "x", plain)
    assert not (tmp_path / "x").exists()
