"""Every formula of the cost model: plain numbers in, a plain number out, SI units, nothing imported but `math`.

The same file runs where there is little more than Python's core (in a reader's browser). What gives the numbers
meaning (architectures, chips, errors) stands in the files above it.
"""

import math

SECONDS_PER_HOUR = 3600.0
HOURS_PER_YEAR = 8766.0  # 365.25 days


# What a token's context holds and costs


def kv_values(kv_heads, head_dim):
    """Numbers that one layer keeps for one token: a key and a value for each key-value head.

    >>> kv_values(8, 128)
    2048
    """
    return 2 * kv_heads * head_dim


def bits_per_value(bits, group_size=0, scale_bits=16, zero_bits=0):
    """Bits that a stored number takes, with its share of what its group of numbers stores once (0: nothing).

    >>> bits_per_value(4, group_size=32)
    4.5
    """
    return bits + ((scale_bits + zero_bits) / group_size if group_size else 0.0)


def pairs_seen(new, held=0, window=None):
    """Pairs of a token that looks and one that is seen: `new` tokens behind `held` ones, each sees itself and all
    before it, or with a window only the last `window` of these.

    >>> pairs_seen(3), pairs_seen(1, held=9), pairs_seen(3, held=9, window=4)
    (6, 10, 12)
    """
    if window is None:
        return new * held + new * (new + 1) // 2
    short = min(max(window - held, 0), new)  # the first tokens, that see fewer than a window
    return short * held + short * (short + 1) // 2 + (new - short) * window


def linear_flops(tokens, weights):
    """A multiplication and an addition for each weight and token.

    >>> linear_flops(1, 7e9)
    14000000000.0
    """
    return 2 * tokens * weights


def attention_flops(pairs, heads, key_dim, value_dim):
    """Scores of all pairs, and the weighted sum of values, in one layer. Softmax is left out (a percent or less).

    >>> attention_flops(10, 32, 128, 128)
    163840
    """
    return 2 * pairs * heads * (key_dim + value_dim)


def experts_touched(n_experts, top_k, tokens):
    """How many of a layer's experts a batch of tokens visits on average, if each token picks `top_k` evenly.

    >>> round(experts_touched(8, 2, 8), 2)
    7.2
    """
    if not n_experts:
        return 0.0
    return n_experts * (1.0 - (1.0 - top_k / n_experts) ** tokens)


# Time


def compute_s(flops, flops_per_s):
    return flops / flops_per_s


def memory_s(n_bytes, bytes_per_s):
    return n_bytes / bytes_per_s


def overlapped_s(a_s, b_s, overlap=1.0):
    """Time of two things that go on beside each other: at overlap 1 the longer of the two, at 0 their sum.

    >>> overlapped_s(3.0, 4.0), overlapped_s(3.0, 4.0, overlap=0.0), overlapped_s(3.0, 4.0, overlap=0.5)
    (4.0, 7.0, 5.5)
    """
    return max(a_s, b_s) + (1.0 - overlap) * min(a_s, b_s)


def ridge_flops_per_byte(flops_per_s, bytes_per_s):
    """Work for each byte above which arithmetic, not memory, sets the pace.

    >>> round(ridge_flops_per_byte(989.4e12, 3.35e12))
    295
    """
    return flops_per_s / bytes_per_s


def critical_batch(flops_per_s, bytes_per_s, weight_bits=16):
    """Tokens in a batch at which a layer's weights take as long to read as to use.

    >>> round(critical_batch(197e12, 820e9)), round(critical_batch(197e12, 820e9, weight_bits=8))
    (240, 120)
    """
    return ridge_flops_per_byte(flops_per_s, bytes_per_s) * weight_bits / 16


def all_reduce_bytes(n_bytes, chips):
    """Bytes that each of `chips` sends when all of them add up a tensor of `n_bytes` around a ring.

    >>> all_reduce_bytes(8.0, 4)
    12.0
    """
    return 2 * (chips - 1) / chips * n_bytes


def tokens_per_s(batch, output_len, prefill_s, step_s):
    """Output tokens per second of a machine that always has `batch` requests in hand: each costs `prefill_s` of its
    own once, and every step of `step_s` brings each one token.

    >>> tokens_per_s(10, 100, 0.5, 0.05)
    100.0
    """
    return batch / (step_s + batch * prefill_s / output_len)


def fixed_batch_tokens_per_s(batch, output_len, prefill_s, step_s):
    """The same where a batch is read in together (`prefill_s`) and all of it ends together.

    >>> fixed_batch_tokens_per_s(10, 100, 5.0, 0.05)
    100.0
    """
    return batch * output_len / (prefill_s + output_len * step_s)


# Money and energy


def usd_per_million_tokens(usd_per_hour, tokens_per_s, utilization=1.0):
    """What a million tokens cost on a machine that makes `tokens_per_s` for this share of the hours that it costs.

    >>> usd_per_million_tokens(3.6, 1000.0)
    1.0
    """
    return usd_per_hour / SECONDS_PER_HOUR / tokens_per_s / utilization * 1e6


def blend(input_usd, output_usd, inputs_per_output=3.0):
    """One price for input and output, mixed as so many input tokens for each output token.

    >>> blend(1.0, 5.0)
    2.0
    """
    return (inputs_per_output * input_usd + output_usd) / (inputs_per_output + 1)


def power_usd_per_hour(watts, usd_per_kwh, pue=1.0):
    """Electricity of an hour, with what the building adds (PUE).

    >>> round(power_usd_per_hour(1000, 0.10, 1.2), 3)
    0.12
    """
    return watts / 1000 * usd_per_kwh * pue


def capital_usd_per_hour(price_usd, lifetime_years, yearly_return=0.0):
    """An hour's share of a purchase: equal instalments over its life, with interest on what is not paid back yet.

    >>> round(capital_usd_per_hour(30_000, 4), 3), round(capital_usd_per_hour(30_000, 4, 0.10), 3)
    (0.856, 1.08)
    """
    if yearly_return == 0:
        return price_usd / lifetime_years / HOURS_PER_YEAR
    paid_back = -math.expm1(-lifetime_years * math.log1p(yearly_return))  # 1 - (1 + r) ** -years, for any small r
    yearly = price_usd * yearly_return / paid_back
    return yearly / HOURS_PER_YEAR


def joules_per_token(watts, tokens_per_s, pue=1.0):
    """Energy of a token.

    >>> joules_per_token(700, 1400, 1.2)
    0.6
    """
    return watts * pue / tokens_per_s


def factor_per_year(factor, years):
    """A change by `factor` within `years`, as a yearly one.

    >>> round(factor_per_year(1000, 3), 3)
    10.0
    """
    return math.exp(math.log(factor) / years)
