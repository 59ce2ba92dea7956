"""Quantized layers: every kernel gives what the reference gives, and no weight is lost, doubled or mixed up."""

import copy
import dataclasses
import io
import warnings

import pytest
import torch
import torch.nn.functional as F

from llmflation.errors import BadInputError, UnknownNameError
from llmflation.quant import kernels
from llmflation.quant.integer import quantize
from llmflation.quant.kernels import KERNELS, Reference, form_of, set_kernel_path
from llmflation.quant.linear import QuantizedEmbedding, QuantizedLinear

HALF = torch.bfloat16
# Each kernel with the kind of weight that it takes: how it is quantized, and the bits of activations.
TAKEN = {
    kernels.DynamicInt8: (lambda w: quantize(w, 8), 8),
    kernels.RowwiseInt8: (lambda w: quantize(w, 8), 8),
    kernels.WeightOnlyInt8: (lambda w: quantize(w, 8, scale_dtype=HALF), None),
    kernels.WeightOnlyInt4: (lambda w: quantize(w, 4, 32, scale_dtype=HALF), None),
}
here = [kind for kind in KERNELS if kernels.works(kind)]
needs_int8 = pytest.mark.skipif(kernels.DynamicInt8 not in here, reason="no int8 kernel here")
needs_int4 = pytest.mark.skipif(kernels.WeightOnlyInt4 not in here, reason="no int4 kernel here")


@pytest.fixture(autouse=True)
def auto_again():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this PyTorch has no")  # a machine without kernels passes, too
        yield
    set_kernel_path("auto")


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(a, b):
    """The same QuantizedTensor, to the bit."""
    for part in ("codes", "levels", "scales", "zeros"):
        x, y = getattr(a, part), getattr(b, part)
        assert (x is None) == (y is None)
        assert x is None or (x.dtype == y.dtype and torch.equal(x, y)), part
    assert (a.format, a.shape, a.bits) == (b.format, b.shape, b.bits)


def close(found, wanted, share):
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    assert (found.double() - wanted.double()).abs().max() <= share * wanted.double().abs().max()


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines or not torch.cpu._is_vnni_supported(),
                    reason="another processor")
def test_a_processor_with_these_instructions_has_every_kernel():
    """A kernel that is called wrongly would only be left out, and the tests on it with it."""
    assert here == list(KERNELS)
    assert kernels.dynamic_bits() == 8


# --- kernel and reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("shape", [(64, 64), (80, 96), (192, 256), (16, 32)])
@pytest.mark.parametrize("kind", here)
def test_a_kernel_gives_what_the_reference_gives(kind, shape, dtype):
    """Rounding alone: float32's where activations are whole numbers, else bfloat16's."""
    make, bits = TAKEN[kind]
    q = make(normal(*shape))
    form = kind(q)
    share = 2**-7 if bits is None or dtype == HALF else 1e-5
    for rows in (1, 2, 9, 33, 300):
        x = normal(rows, shape[1], seed=rows, dtype=dtype)
        found, wanted = form.product(x), Reference(q, bits).product(x)
        if kind is kernels.DynamicInt8:  # a value halfway between two codes: few, and off by one step of one weight
            few = (found - wanted).abs().amax(1) > share * wanted.abs().max()
            assert few.sum() <= max(1, rows // 50)
            assert (found - wanted).abs().max() <= 2 * x.abs().max() / 127 * q.dequantize().abs().max()
            found, wanted = found[~few], wanted[~few]
        close(found, wanted, share) if len(found) else None


@pytest.mark.parametrize("kind", [k for k in here if TAKEN[k][1]])
def test_whole_numbers_come_in_any_shape(kind):
    make, bits = TAKEN[kind]
    for shape in ((1, 2), (33, 65), (7, 130)):
        q = make(normal(*shape))
        assert kind.takes(q, bits)
        same(kind(q).tensor(), q)
        x = normal(5, shape[1], seed=1)
        close(kind(q).product(x), Reference(q, bits).product(x), 1e-5)


@pytest.mark.parametrize("kind", here)
def test_widening_for_many_vectors_gives_the_same(kind, monkeypatch):
    if not hasattr(kind, "dense"):
        pytest.skip("whole numbers all the way: nothing to widen")
    q = TAKEN[kind][0](normal(80, 96))
    form, x, taken = kind(q), normal(kernels.MANY, 96, seed=1), []
    monkeypatch.setattr(kind, "dense", lambda self, dense=kind.dense: taken.append(1) or dense(self))
    for pays in (True, False):
        monkeypatch.setattr(kernels, "_widening_pays", lambda kind, pays=pays: pays)
        close(form.product(x), Reference(q).product(x), 2**-7)
        form.product(x[1:])
    assert len(taken) == 1  # once for MANY vectors, where it pays


@pytest.mark.parametrize("kind", here)
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("rows", [16, 48, 64, 80, 128, 144, 208])
def test_the_weight_comes_back_to_the_bit_and_row_by_row(kind, rows, asymmetric):
    w = normal(rows, 128) + 0.5
    w[3] = 0
    w[5] *= 1e-30
    make = TAKEN[kind][0]
    if asymmetric:
        if kind is not kernels.WeightOnlyInt4:
            pytest.skip("symmetric weights only")
        def make(w):
            return quantize(w, 4, 64, symmetric=False, scale_dtype=HALF)
    q = make(w)
    assert kind.takes(q, TAKEN[kind][1])
    form = kind(q)
    same(form.tensor(), q)
    if kind.by_row:
        ids = torch.tensor([rows - 1, 0, 3, 15, rows - 1, 7])
        torch.testing.assert_close(form.rows(ids, torch.float32), q.dequantize(rows=ids), rtol=0,
                                   atol=float(q.scales.float().max()) / 64 if asymmetric else 0)


@pytest.mark.parametrize("kind", [k for k in here if k is not kernels.WeightOnlyInt4])
def test_one_scale_for_the_whole_tensor(kind):
    dtype = HALF if TAKEN[kind][1] is None else torch.float32
    q = quantize(normal(48, 64), 8, per_tensor=True, scale_dtype=dtype)
    same(kind(q).tensor(), q)
    close(kind(q).product(normal(3, 64)), Reference(q, TAKEN[kind][1]).product(normal(3, 64)), 2**-7)


def zeroed(q):
    return dataclasses.replace(q, zeros=torch.ones_like(q.scales, dtype=torch.uint8))


WHATEVER = {
    "int3": lambda w: quantize(w, 3, 32, scale_dtype=HALF), "float32 scales": lambda w: quantize(w, 4, 32),
    "groups of 16": lambda w: quantize(w, 4, 16, scale_dtype=HALF), "a whole row": lambda w: quantize(w, 4),
    "int8 in groups": lambda w: quantize(w, 8, 32), "asymmetric int8": lambda w: quantize(w, 8, symmetric=False),
    "int8, float32 scales": lambda w: quantize(w, 8), "one scale": lambda w: quantize(w, 4, per_tensor=True),
    "40 rows": lambda w: quantize(w[:40], 4, 32, scale_dtype=HALF),
    "int8 with zeros": lambda w: zeroed(quantize(w, 8, scale_dtype=HALF)),
    "int8, 40 rows": lambda w: quantize(w[:40], 8, scale_dtype=HALF),
    "int8, 90 columns": lambda w: quantize(w[:, :90], 8, scale_dtype=HALF),
}


@pytest.mark.parametrize("what", WHATEVER)
def test_what_no_kernel_is_for_is_dequantized_and_nothing_said(what):
    q = WHATEVER[what](normal(64, 96))
    assert isinstance(form_of(q), Reference)
    layer, x = QuantizedLinear.of(q), normal(2, 3, q.shape[1])
    torch.testing.assert_close(layer(x), F.linear(x, q.dequantize()))
    same(layer.tensor(), q)


def test_activations_in_other_bits_are_rounded_by_the_reference():
    w, x = normal(64, 96), normal(50, 96)
    errors = []
    for bits in (4, 6, 12):
        layer = QuantizedLinear.of(quantize(w, 8), bits)
        assert isinstance(layer.form, Reference)
        errors.append(float((layer(x) - x @ layer.tensor().dequantize().T).square().mean()))
    assert errors[0] > 10 * errors[1] > 100 * errors[2] > 0


# --- whole numbers times whole numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["auto", "reference"])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_vector_does_not_depend_on_the_others_in_its_batch(path, by_row):
    set_kernel_path(path)
    layer = QuantizedLinear.of(quantize(normal(64, 96), 8), 8, by_row=by_row)
    x = normal(5, 96, seed=1) * torch.tensor([1, 1e-3, 1e4, 0, 1])[:, None]
    alone = torch.cat([layer(row[None]) for row in x])
    for found, wanted in zip((*layer(x), *layer(x[[2, 1]])), (*alone, *alone[[2, 1]]), strict=True):
        close(found, wanted, 1e-6)


@pytest.mark.parametrize("path", ["auto", "reference"])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_vector_that_is_broken_spoils_itself_alone(path, by_row):
    set_kernel_path(path)
    layer = QuantizedLinear.of(quantize(normal(64, 96), 8), 8, by_row=by_row)
    x = normal(6, 96, seed=1)
    whole = layer(x)
    x[1, 7], x[2, 0], x[4, -1], x[4, 0] = torch.nan, torch.inf, torch.nan, torch.nan
    found = layer(x)
    for row in (1, 2, 4):
        assert not torch.isfinite(found[row]).any()
    torch.testing.assert_close(found[[0, 3, 5]], whole[[0, 3, 5]], rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", ["auto", "reference"])
def test_large_and_small_activations_keep_their_size(path):
    set_kernel_path(path)
    layer = QuantizedLinear.of(quantize(normal(64, 96), 8), 8)
    x = normal(1, 96)
    for size in (1e-20, 1e20):
        close(layer(x * size), layer(x) * size, 1e-2)
    assert (layer(torch.zeros(2, 96)) == 0).all()


@pytest.mark.parametrize("kind", [kernels.DynamicInt8, kernels.RowwiseInt8])
def test_seven_bits_agree_with_seven_bits(kind):
    """Where sums of two products do not fit in 16 bits, activations have 7 bits, in the kernel as in the reference."""
    if kind not in here:
        pytest.skip("no such kernel here")
    q, x = kernels._example(kind, 80, 96), kernels._vectors()
    for some in (x, x[2:]):  # several vectors, and one
        close(kind(q).in_bits(some, 7), kernels.rounded_product(some, q, 7), 1e-5)
    assert not torch.equal(kernels.rounded_product(x, q, 7), kernels.rounded_product(x, q, 8))


@pytest.mark.parametrize("kind", [k for k in here if TAKEN[k][1]])
def test_what_is_no_number_stays_none(kind):
    x = normal(1, 96)
    x[0, 5] = float("nan")
    assert kind(quantize(normal(64, 96), 8)).product(x).isnan().all()


# --- a kernel that is missing or wrong -----------------------------------------------------------------------


@pytest.fixture
def anew():
    """The processor is looked at again, and afterwards once more."""
    cached = (kernels.works, kernels.dynamic_bits, kernels._say_once, kernels._widening_pays)
    for made in cached:
        made.cache_clear()
    yield
    for made in cached:
        made.cache_clear()


def saturating(x, bits):
    """Sums of two products as 16 bits hold them, which is what processors without VNNI compute."""
    q = kernels._example(kernels.DynamicInt8, 80, 96)
    scale = (2 ** (bits - 1) - 1) / kernels.largest(x)
    codes = (x * scale).round() + 2 ** (bits - 1)  # without a sign
    pairs = (codes[:, None] * kernels._signed(q).float()).view(len(x), 80, -1, 2).sum(-1).clamp(-(2**15), 2**15 - 1)
    sums = pairs.sum(-1) - 2 ** (bits - 1) * kernels._signed(q).float().sum(1)
    return sums * q.scales.flatten() / scale


def test_a_processor_whose_sums_saturate_is_found_and_gets_seven_bits(anew, monkeypatch):
    monkeypatch.setattr(kernels.DynamicInt8, "in_bits", lambda self, x, bits: saturating(x, bits))
    monkeypatch.setattr(kernels.DynamicInt8, "__init__", lambda self, q: None)
    assert kernels.dynamic_bits() == 7
    q, x = quantize(normal(64, 96), 8), normal(3, 96)
    assert torch.equal(Reference(q, 8).product(x), kernels.rounded_product(x, q, 7))


def test_eight_bits_where_there_is_no_kernel_or_a_right_one(anew, monkeypatch):
    if here:
        assert kernels.dynamic_bits() == 8 or not torch.cpu._is_vnni_supported()
        kernels.dynamic_bits.cache_clear()

    def missing(self, x, bits):
        raise RuntimeError("not built for this processor")
    for kind in (kernels.DynamicInt8, kernels.RowwiseInt8):
        monkeypatch.setattr(kind, "in_bits", missing)
    assert kernels.dynamic_bits() == 8


@pytest.mark.parametrize("how", [AttributeError("no such operator"), RuntimeError("not built"), "wrong"])
@pytest.mark.parametrize("kind", [kernels.WeightOnlyInt8, kernels.WeightOnlyInt4])
def test_a_kernel_that_is_missing_or_wrong_is_not_taken_and_that_is_said_once(anew, monkeypatch, kind, how):
    def kernel(self, x):
        if how == "wrong":
            return 1.1 * x @ self.dense().T
        raise how
    monkeypatch.setattr(kind, "kernel", kernel)
    q, x = TAKEN[kind][0](normal(64, 96)), normal(2, 96)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        layers = [QuantizedLinear.of(q) for _ in range(3)]
    assert [type(layer.form) for layer in layers] == [Reference] * 3
    assert [str(w.message) for w in said] == [
        f"this PyTorch has no {kind.__name__} kernel that works on this processor; such weights are dequantized for "
        "each product, which is slow."]
    torch.testing.assert_close(layers[0](x), F.linear(x, q.dequantize()))


@needs_int8
def test_of_two_kernels_the_second_steps_in(anew, monkeypatch):
    def missing(self, x, bits):
        raise RuntimeError("not built")
    monkeypatch.setattr(kernels.DynamicInt8, "in_bits", missing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(form_of(quantize(normal(64, 96), 8), 8), kernels.RowwiseInt8)


@needs_int4
@pytest.mark.parametrize("ways, pays", [((2.0, 1.0), True), ((1.0, 2.0), False), ((1.05, 1.0), False)])
def test_widening_is_taken_where_it_is_clearly_faster(anew, monkeypatch, ways, pays):
    now = [0.0]

    def taking(seconds):
        def way(form, x):
            now[0] += seconds
        return way
    monkeypatch.setattr(kernels.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(kernels.WeightOnlyInt4, "kernel", taking(ways[0]))
    monkeypatch.setattr(kernels, "_widened", taking(ways[1]))
    assert kernels._widening_pays(kernels.WeightOnlyInt4) is pays


# --- a layer's state -----------------------------------------------------------------------------------------

LAYERS = {
    "int8": lambda: QuantizedLinear.of(quantize(normal(64, 96), 8), 8),
    "int8 by row": lambda: QuantizedLinear.of(quantize(normal(64, 96), 8), 8, by_row=True),
    "int8 weight-only": lambda: QuantizedLinear.of(TAKEN[kernels.WeightOnlyInt8][0](normal(64, 96))),
    "int4": lambda: QuantizedLinear.of(TAKEN[kernels.WeightOnlyInt4][0](normal(80, 96))),
    "int3": lambda: QuantizedLinear.of(quantize(normal(64, 96), 3, 32, symmetric=False)),
}
SHARE = {"int8": 1e-5, "int8 by row": 1e-5}  # else bfloat16's


@pytest.mark.parametrize("name", LAYERS)
def test_the_path_is_taken_at_the_next_call_and_loses_nothing(name):
    layer = LAYERS[name]()
    q, kind, x = layer.tensor(), type(layer.form), normal(3, 96)
    first = layer(x)
    set_kernel_path("reference")
    second = layer(x)
    assert type(layer.form) is Reference and layer.nbytes == q.nbytes
    set_kernel_path("auto")
    assert torch.equal(layer(x), first)
    assert type(layer.form) is kind
    close(first, second, SHARE.get(name, 2**-7))
    same(layer.tensor(), q)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda layer: torch.load(saved(layer), weights_only=False)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_has_the_same_weight(name, how):
    layer, x = LAYERS[name](), normal(3, 96)
    twin = how(layer)
    assert torch.equal(twin(x), layer(x))
    assert type(twin.form) is type(layer.form) and twin.form is not layer.form
    same(twin.tensor(), layer.tensor())
    assert twin.nbytes == layer.nbytes


def saved(what):
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_dict_holds_the_weight(name):
    layer = LAYERS[name]()
    other = QuantizedLinear.of(quantize(normal(*layer.tensor().shape, seed=9), 5), layer.activation_bits)
    other.load_state_dict(torch.load(saved(layer.state_dict()), weights_only=True))
    same(other.tensor(), layer.tensor())
    assert other.format == layer.format
    close(other(normal(3, 96)), layer(normal(3, 96)), SHARE.get(name, 2**-7))
    before = QuantizedLinear.of(quantize(normal(5, 96), 4))
    q = before.tensor()
    with pytest.raises(BadInputError, match=r"a weight of \(\d+, 96\) does not fit a layer of \(5, 96\)"):
        before.load_state_dict(layer.state_dict())
    same(before.tensor(), q)


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_in_it_is_trained_or_cast(name):
    layer, x = LAYERS[name](), normal(3, 96)
    assert not list(layer.parameters()) and not list(layer.buffers())
    q, y = layer.tensor(), layer(x)
    layer.to(torch.bfloat16)
    same(layer.tensor(), q)
    assert torch.equal(layer(x), y)
    assert layer(x.to(HALF)).dtype == HALF
    x.requires_grad_(True)
    with pytest.raises(BadInputError, match="has no gradient; call it under torch.inference_mode"):
        layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), y)


@pytest.mark.parametrize("path", ["auto", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_any_shape_and_layout_of_input(name, path):
    set_kernel_path(path)
    layer = LAYERS[name]()
    n, x = layer.out_features, normal(4, 2, 96)
    rows = layer(x.reshape(8, 96))
    assert torch.equal(layer(x), rows.view(4, 2, n))
    assert torch.equal(layer(x.transpose(0, 1)), rows.view(4, 2, n).transpose(0, 1))
    wide = torch.zeros(8, 192)
    wide[:, ::2] = x.reshape(8, 96)
    assert torch.equal(layer(wide[:, ::2]), rows)
    assert layer(x[0, 0]).shape == (n,)
    assert layer(x[:0]).shape == (0, 2, n)
    with pytest.raises(BadInputError, match="last dimension is 95; allowed: 96"):
        layer(x[..., :95])
    with torch.inference_mode():
        assert torch.equal(layer(x), rows.view(4, 2, n))


def test_it_says_what_it_is():
    set_kernel_path("reference")
    assert repr(LAYERS["int8"]()) == (
        "QuantizedLinear(96 -> 64, int8, activations in 8 bits, 6,400 bytes as Reference)")


@pytest.mark.parametrize("kind", here)
def test_what_is_held_is_what_is_counted(kind):
    form = kind(TAKEN[kind][0](normal(192, 256)))
    tensors = [t for t in vars(form).values() if isinstance(t, torch.Tensor) and t.numel() > 256]
    if kind is kernels.DynamicInt8:  # inside of the operator's own object
        assert 192 * 256 < form.nbytes <= 192 * (256 + 12) and not tensors
    else:
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in vars(form).values()
                if isinstance(t, torch.Tensor) and t.numel() != 16}  # the levels are the format's
        assert form.nbytes == sum(held.values())


def test_an_unknown_path_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="unknown kernel path 'refrence'; nearest: 'reference'"):
        set_kernel_path("refrence")


# --- the embedding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "int8"])
def test_an_embedding_reads_its_head_s_rows(name):
    head = LAYERS[name]()
    embedding = QuantizedEmbedding(head, torch.float32)
    ids = torch.tensor([[0, 63, 5], [5, 17, 40]])
    torch.testing.assert_close(embedding(ids), head.tensor().dequantize()[ids], rtol=0, atol=1e-6)
    assert embedding.weight.dtype == torch.float32
    embedding.to(HALF)
    assert embedding(ids).dtype == embedding.weight.dtype == HALF
    assert not list(embedding.parameters()) and not embedding.state_dict()
    set_kernel_path("reference")
    torch.testing.assert_close(embedding(ids), head.tensor().dequantize(HALF)[ids], rtol=0, atol=0)


def test_the_engine_that_pytorch_packs_for_is_set_back():
    before = torch.backends.quantized.engine
    QuantizedLinear.of(quantize(normal(64, 96), 8), 8)
    assert torch.backends.quantized.engine == before
    with pytest.raises(RuntimeError), kernels._engine("no such engine"):
        pass
    assert torch.backends.quantized.engine == before


def test_a_single_column_is_left_to_the_reference():
    """It has no room for both ends of the codes, and torch._int_mm gives something else for it."""
    layer = QuantizedLinear.of(quantize(normal(64, 1), 8), 8)
    torch.testing.assert_close(layer(torch.full((3, 1), -0.7)), -0.7 * layer.tensor().dequantize().T.expand(3, 64))
