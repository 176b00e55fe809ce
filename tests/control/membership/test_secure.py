"""Keys, labels, and what is refused for want of them."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from support.membership import stock

from control.membership.keys import KEYS_MAX
from control.membership.secure import Envelope, Keyring
from control.membership.stream import StreamReader
from control.membership.wire import PushPull
from overlay.errors import MembershipError, WireError

OLD, NEW = bytes(range(32)), bytes(range(32, 64))


def envelope(*keys: bytes, label: str = "") -> Envelope:
    return Envelope(Keyring(keys), label, nonce=os.urandom)


def opened(by: Envelope, data: bytes) -> bytes:
    return by.open_untrusted(by.strip_label_untrusted(data))


@given(
    st.binary(max_size=200),
    st.sampled_from([(), (OLD,), (bytes(16),), (bytes(24),)]),
    st.sampled_from(["", "pool"]),
)
def test_what_is_sealed_is_opened(plain: bytes, keys: tuple[bytes, ...], label: str) -> None:
    ours = envelope(*keys, label=label)
    plain = b"\x00" + plain  # no message has the type of a label
    sealed = ours.seal(plain)
    assert len(sealed) == len(plain) + ours.extra
    assert opened(envelope(*keys, label=label), sealed) == plain


def test_any_installed_key_opens_and_the_first_seals() -> None:
    rotating = envelope(OLD, NEW)
    assert opened(rotating, envelope(NEW).seal(b"x")) == b"x"
    assert opened(rotating, envelope(OLD).seal(b"x")) == b"x"
    rotating.keyring.use(NEW)
    assert opened(envelope(NEW), rotating.seal(b"x")) == b"x"
    with pytest.raises(WireError):
        opened(envelope(OLD), rotating.seal(b"x"))


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [
        (envelope(OLD), envelope(NEW)),
        (envelope(), envelope(OLD)),
        (envelope(label="a"), envelope(label="b")),
        (envelope(), envelope(label="b")),
        (envelope(label="a"), envelope()),
        (envelope(OLD, label="a"), envelope(OLD, label="b")),
    ],
    ids=["other key", "plain", "other label", "no label", "unexpected label", "key and other label"],
)
def test_packets_of_other_pools_are_refused(sender: Envelope, receiver: Envelope) -> None:
    with pytest.raises(WireError):
        opened(receiver, sender.seal(b"\x00 a packet long enough to be sealed"))


def test_the_label_is_authenticated() -> None:
    # Stripped of one label and given another, the ciphertext no longer opens.
    sealed = envelope(OLD, label="a").seal(b"x")
    with pytest.raises(WireError):
        opened(envelope(OLD, label="b"), b"\xf4\x01b" + sealed[3:])


@given(st.binary(max_size=100))
def test_any_octets_are_opened_or_a_wire_error(data: bytes) -> None:
    for ours in (envelope(OLD), envelope(OLD, label="pool"), envelope()):
        with suppress(WireError):
            opened(ours, data)


def test_every_flipped_bit_is_noticed() -> None:
    ours = envelope(OLD)
    sealed = ours.seal(b"hello")
    for index in range(len(sealed)):
        with pytest.raises(WireError):
            opened(ours, sealed[:index] + bytes((sealed[index] ^ 2,)) + sealed[index + 1 :])


def test_the_older_padded_version_is_read() -> None:
    nonce, plain = bytes(12), b"hello"
    padded = plain + bytes((11,)) * 11
    assert opened(envelope(OLD), b"\x00" + nonce + AESGCM(OLD).encrypt(nonce, padded, b"")) == plain
    for wrong in (b"hello", bytes(16), b"x" * 15 + b"\x11"):
        with pytest.raises(WireError, match="PKCS"):
            opened(envelope(OLD), b"\x00" + nonce + AESGCM(OLD).encrypt(nonce, wrong, b""))


def test_a_stock_agents_encrypted_stream_is_opened() -> None:
    (data,) = stock("push-pull-encrypted")
    assert isinstance(StreamReader(envelope(OLD)).receive_untrusted(data), PushPull)
    with pytest.raises(WireError):
        StreamReader(envelope(NEW)).receive_untrusted(data)


# The keyring.


def test_the_primary_key_is_never_removed() -> None:
    keyring = Keyring([OLD])
    with pytest.raises(MembershipError, match="primary"):
        keyring.remove(OLD)
    keyring.install(NEW)
    keyring.install(NEW)
    assert list(keyring.keys) == [OLD, NEW]
    keyring.use(NEW)
    keyring.remove(OLD)
    keyring.remove(OLD)
    assert list(keyring.keys) == [NEW]


def test_a_key_is_used_only_once_installed() -> None:
    with pytest.raises(MembershipError, match="not in the keyring"):
        Keyring([OLD]).use(NEW)


def test_keys_have_a_length_and_a_number() -> None:
    with pytest.raises(MembershipError, match="octets"):
        Keyring([bytes(31)])
    with pytest.raises(MembershipError, match="at most"):
        Keyring(bytes((number,)) * 32 for number in range(KEYS_MAX + 1))


def test_a_label_has_a_length() -> None:
    with pytest.raises(MembershipError, match="label"):
        envelope(label="x" * 256)
