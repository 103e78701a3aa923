import pytest
import torch

from remixer.mixers import AttentionSpec, MixerConfigError, Toeplitz, ToeplitzMixer
from remixer.mixers.recent import Recent
from remixer.testing import assert_close


def mixer_of(config=None, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    options = {"heads": 4, "kv_heads": 4, "head_dim": 8, "value_dim": 6, "scale": 0.35, **changes}
    return ToeplitzMixer(AttentionSpec(**options), config or Toeplitz()).to(dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.5}, r"Toeplitz: decay must lie in \(0, 1\], got 1.5"),
        ({"decay": 0.0}, r"Toeplitz: decay must lie in \(0, 1\], got 0.0"),
        ({"rpe_width": 0}, "Toeplitz: rpe_width must be at least 1, got 0"),
        ({"rpe_layers": -1}, "Toeplitz: rpe_layers can't be negative, got -1"),
        ({"gate": "key"}, "Toeplitz: gate must be one of none, query, value, got 'key'"),
        ({"per": "row"}, "Toeplitz: per must be one of channel, head, got 'row'"),
    ],
)
def test_a_bad_option_is_refused_in_a_sentence(options, message):
    with pytest.raises(MixerConfigError, match=message):
        Toeplitz(**options)


def test_cross_attention_is_refused():
    spec = AttentionSpec(heads=2, kv_heads=2, head_dim=4, value_dim=4, scale=0.5, cross=True)
    reason = ToeplitzMixer.supports(spec, Toeplitz())
    assert str(reason) == "'toeplitz' needs as many queries as keys, this is cross-attention"


def test_any_bias_and_softcap_is_taken_since_scores_are_gone():
    spec = AttentionSpec(heads=2, kv_heads=2, head_dim=4, value_dim=4, scale=0.5, bias="dense", softcap=3.0)
    assert ToeplitzMixer.supports(spec, Toeplitz()) is None


def test_operands_are_only_those_it_reads():
    assert mixer_of().operands == ("value", "padding")
    assert mixer_of(Toeplitz(gate="value")).operands == ("value", "padding")
    assert mixer_of(Toeplitz(gate="query")).operands == ("query", "value", "padding")


@pytest.mark.parametrize("causal", [False, True])
def test_rows_are_distributions(causal):
    mixer = mixer_of(causal=causal)
    ones = torch.ones(2, 4, 33, 6, dtype=torch.float64)
    assert_close(mixer(value=ones).detach(), ones)
    padding = torch.rand(2, 33) > 0.5
    padding[:, 0] = True
    assert_close(mixer(value=ones, padding=padding).detach(), ones, where=(padding[:, None].expand(2, 4, 33)))


@pytest.mark.parametrize("gate", ["query", "value"])
def test_gates_start_harmless(gate):
    gated, plain = mixer_of(Toeplitz(gate=gate)), mixer_of()
    query, value = torch.randn(2, 4, 9, 8).double(), torch.randn(2, 4, 9, 6).double()
    assert torch.equal(gated(query=query, value=value), plain(value=value))
    gated(query=query, value=value).square().sum().backward()
    assert float(gated.gate.weight.grad.abs().sum()) > 0.0


@pytest.mark.parametrize("left_padded", [True, False])
def test_a_padded_sample_equals_the_unpadded_one(left_padded):
    for causal in (False, True):
        mixer = mixer_of(causal=causal)
        value = torch.randn(1, 4, 20, 6, dtype=torch.float64)
        padding = torch.ones(1, 20, dtype=torch.bool)
        real = slice(7, None) if left_padded else slice(None, 13)
        padding[:] = False
        padding[:, real] = True
        padded = mixer(value=value, padding=padding)[:, :, real].detach()
        assert_close(padded, mixer(value=value[:, :, real]).detach())


def test_offset_zero_is_not_decayed_and_decay_survives_bfloat16():
    def coefficients(decay):
        mixer = mixer_of(Toeplitz(decay=decay, normalise=False), torch.bfloat16)
        return mixer.coefficients(300).detach()

    ratio = coefficients(0.999) / coefficients(None)
    expected = 0.999 ** torch.arange(-299, 300).abs().double()
    assert ratio.dtype == torch.float32
    assert_close(ratio[0, 0], expected.float())
    assert float(ratio[0, 0, 299]) == 1.0


def test_published_operator_is_the_encoder_times_decay():
    mixer = mixer_of(Toeplitz(normalise=False, decay=0.9), causal=True)
    delta = torch.zeros(1, 4, 12, 6, dtype=torch.float64)
    delta[:, :, 0] = 1.0
    expected = mixer.encoder(torch.arange(12)).t().view(12, 4, 6) * 0.9 ** torch.arange(12).double()[:, None, None]
    assert_close(mixer(value=delta)[0].detach(), expected.transpose(0, 1).detach())


def test_a_window_hides_what_the_pretrained_attention_hid():
    mixer = mixer_of(window=(2, 1))
    delta = torch.zeros(1, 4, 9, 6, dtype=torch.float64)
    delta[:, :, 4] = 1.0
    seen = mixer(value=delta)[0].detach().abs().amax((0, 2)) > 1e-12
    assert seen.tolist() == [False, False, False, True, True, True, True, False, False]


def test_autocast_keeps_the_dtype_and_the_precision():
    mixer = mixer_of(Toeplitz(gate="value"), torch.float32)
    value = torch.randn(1, 4, 40, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mixer(value=value)
    assert out.dtype == torch.float32
    assert_close(out.detach().bfloat16(), mixer(value=value).detach())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("config", [Toeplitz(normalise=False), Toeplitz(), Toeplitz(learn_decay=True, per="head")])
def test_offsets_that_were_never_seen_have_the_coefficients_of_a_longer_sequence(config, causal):
    mixer = mixer_of(config, causal=causal)
    short, long = mixer.coefficients(40).detach(), mixer.coefficients(1000).detach()
    own = slice(0, 40) if causal else slice(960, 1039)
    if config.normalise:  # they are given up to a factor
        short, long = short / short.sum(-1, keepdim=True), long / long[..., own].sum(-1, keepdim=True)
    assert_close(short, long[..., own])


@pytest.mark.parametrize("causal", [False, True])
def test_shifted_values_give_shifted_results(causal):
    mixer = mixer_of(Toeplitz(normalise=False), causal=causal)
    value = torch.randn(1, 4, 30, 6, dtype=torch.float64)
    value[:, :, 20:] = 0.0
    out, later = (mixer(value=each).detach() for each in (value, torch.roll(value, 7, 2)))
    assert_close(later[:, :, 7:], out[:, :, :-7])


@pytest.mark.parametrize("normalise", [False, True])
def test_an_encoder_that_gives_a_constant_makes_a_moving_average(normalise):
    mixer = mixer_of(Toeplitz(decay=0.9, normalise=normalise), causal=True)
    torch.nn.init.zeros_(mixer.encoder.last.weight)
    torch.nn.init.ones_(mixer.encoder.last.bias)
    value = torch.randn(1, 4, 25, 6, dtype=torch.float64)
    total, weight, expected = torch.zeros(1, 4, 6, dtype=torch.float64), 0.0, []
    for t in range(25):
        total, weight = 0.9 * total + value[:, :, t], 0.9 * weight + 1.0
        expected.append(total / weight if normalise else total)
    assert_close(mixer(value=value).detach(), torch.stack(expected, 2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_short_sequences_with_a_matrix_per_head_and_long_ones_meet(causal, normalise):
    mixer = mixer_of(Toeplitz(per="head", normalise=normalise), torch.float32, causal=causal, kv_heads=2).eval()
    for T in (1, 127, 128, 129):
        value, padding = torch.randn(3, 2, T, 6), torch.arange(T) >= torch.tensor([[0], [1], [T // 2]])
        padding = padding | (T == 1)
        with torch.no_grad():
            for mask in (None, padding):
                assert_close(mixer(value=value, padding=mask), mixer.reference(value=value, padding=mask))
            assert (mixer._kernel(value).form == "matrix") == (T <= 128)
            with torch.autocast("cpu", dtype=torch.bfloat16):  # which would round a product of matrices
                assert mixer._kernel(value).form != "matrix"


class TestWhatIsKeptBetweenCalls:
    value = torch.randn(1, 4, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def kept(self, mixer):
        return len(mixer._kernels._values)

    def test_only_in_plain_inference(self):
        mixer = mixer_of()
        mixer(value=self.value)
        mixer.eval()(value=self.value)
        with torch.no_grad():
            mixer.train()(value=self.value)
            assert self.kept(mixer) == 0
            mixer.eval()(value=self.value)
        assert self.kept(mixer) == 1

    def test_only_the_most_recent_length(self):
        mixer = mixer_of().eval()
        with torch.no_grad():
            for T in (3, 12, 5):
                mixer(value=self.value[:, :, :T])
        assert self.kept(mixer) == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda mixer: mixer.encoder.last.bias.add_(1.0 * torch.arange(24)[:, None].double()[:, 0].sin()),
            lambda mixer: mixer.encoder.last.weight.data.mul_(-2.0),
            lambda mixer: mixer.load_state_dict({k: v * 0.5 for k, v in mixer.state_dict().items()}),
            lambda mixer: mixer.to(torch.bfloat16).to(torch.float64),
        ],
        ids=["in place", "through data", "loaded", "rounded"],
    )
    def test_never_longer_than_its_parameters(self, change):
        mixer = mixer_of().eval()
        with torch.no_grad():
            mixer(value=self.value)
            change(mixer)
            assert_close(mixer(value=self.value), mixer.reference(value=self.value))

    def test_a_hit_computes_nothing(self):
        recent, parameter = Recent(), torch.ones(3)
        assert recent.get(1, [parameter], lambda: "a") == "a"
        assert recent.get(1, [parameter], lambda: "b") == "a"
        assert recent.get(2, [parameter], lambda: "c") == "c"
        parameter.add_(1.0)
        assert recent.get(2, [parameter], lambda: "d") == "d"


@pytest.mark.parametrize("window", [(-1, None), (None, -1)])
def test_a_query_that_does_not_see_itself_is_refused(window):
    spec = AttentionSpec(heads=2, kv_heads=2, head_dim=4, value_dim=4, scale=0.5, window=window)
    assert "needs every query to see itself" in str(ToeplitzMixer.supports(spec, Toeplitz()))
