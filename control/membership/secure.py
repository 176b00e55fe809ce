"""What stands in front of every packet: the pool's label, and the pool's key.

    packet   [244][length][label] [version 1][nonce 12][AES-GCM ciphertext][tag 16]
    stream   [244][length][label] [10][length BE32] [version 1][nonce 12][ciphertext][tag 16]

The label is authenticated with it, in a stream after those five octets.

Version 0 pads the plaintext to 16 octets (PKCS #7) first; we read it and write version 1.  The keyring's
first key encrypts; all are tried on what arrives, so that a pool may rotate: install everywhere, use
everywhere, remove the old.  What the key proves is membership of the pool, not who of the pool is speaking;
and a packet recorded may be replayed.  Both are memberlist's, and nothing built on it may assume more.

A pool with keys takes nothing that is not encrypted, a labelled one nothing without its label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from control.membership.keys import KEY_OCTETS, KEYS_MAX
from control.membership.wire import ENCRYPT, LABEL
from overlay.errors import MalformedError, MembershipError, TruncatedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# From memberlist
NONCE_OCTETS = 12
TAG_OCTETS = 16
BLOCK_OCTETS = 16
PADDED, UNPADDED = 0, 1
LABEL_OCTETS = 255
SEALED_EXTRA = 1 + NONCE_OCTETS + TAG_OCTETS
STREAM_HEAD = 5


class Keyring:
    """The keys of a pool; the first encrypts.  Changed by Serf's key queries, read with every packet."""

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        self._ciphers: dict[bytes, AESGCM] = {}
        for key in keys:
            self.install(key)

    def __bool__(self) -> bool:
        return bool(self._ciphers)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All keys, the encrypting one first."""
        return tuple(self._ciphers)

    @property
    def ciphers(self) -> Iterable[AESGCM]:
        """The keys as ciphers, the encrypting one first."""
        return self._ciphers.values()

    def install(self, key: bytes) -> None:
        """Accept this key from now on; installing it twice is installing it once.

        Raises:
            MembershipError: Not the length of an AES key, or there are too many.
        """
        if len(key) not in KEY_OCTETS:
            raise MembershipError(f"key: expected 16, 24 or 32 octets, found {len(key)}")
        if key not in self._ciphers:
            if len(self._ciphers) >= KEYS_MAX:
                raise MembershipError(f"keyring: expected at most {KEYS_MAX} keys, found one more")
            self._ciphers[key] = AESGCM(key)

    def use(self, key: bytes) -> None:
        """Encrypt with this key from now on.

        Raises:
            MembershipError: It was never installed.
        """
        if key not in self._ciphers:
            raise MembershipError("requested key is not in the keyring")
        chosen = self._ciphers.pop(key)
        self._ciphers = {key: chosen, **self._ciphers}

    def remove(self, key: bytes) -> None:
        """Accept this key no longer; removing an absent key is nothing.

        Raises:
            MembershipError: It is the one that encrypts.
        """
        if self._ciphers and key == self.keys[0]:
            raise MembershipError("removing the primary key is not allowed")
        self._ciphers.pop(key, None)


class Envelope:
    """Puts label and encryption around packets, and takes them off.

    Args:
        label: The pool's label, at most 255 octets; empty: none.
        keyring: Its keys; empty: none.
        nonce: Draws that many unpredictable octets (`os.urandom`; simulations bring their own).

    Raises:
        MembershipError: The label is too long.
    """

    def __init__(self, keyring: Keyring, label: str = "", *, nonce: Callable[[int], bytes]) -> None:
        self.keyring = keyring
        self._label = label.encode()
        self._nonce = nonce
        if len(self._label) > LABEL_OCTETS:
            raise MembershipError(f"label: expected at most {LABEL_OCTETS} octets, found {len(self._label)}")
        self._prefix = bytes((LABEL, len(self._label))) + self._label if label else b""

    @property
    def extra(self) -> int:
        """Octets added to a packet."""
        return len(self._prefix) + (SEALED_EXTRA if self.keyring else 0)

    def seal(self, packet: bytes) -> bytes:
        """The packet as it goes onto the network."""
        if not self.keyring:
            return self._prefix + packet
        return self._prefix + self._encrypt(packet, self._label)

    def open_untrusted(self, data: bytes) -> bytes:
        """The packet in a datagram whose label is off; as it is, in a pool without keys.

        Raises:
            WireError: None of our keys opens it.
        """
        return self._decrypt_untrusted(data, self._label) if self.keyring else data

    def seal_stream(self, message: bytes) -> bytes:
        """The message as it goes into a stream."""
        if not self.keyring:
            return self._prefix + message
        length = len(message) + SEALED_EXTRA
        head = bytes((ENCRYPT,)) + length.to_bytes(4, "big")
        return self._prefix + head + self._encrypt(message, head + self._label)

    def open_stream_untrusted(self, data: bytes) -> bytes:
        """The message in a whole encrypted stream record, its label already off."""
        return self._decrypt_untrusted(data[STREAM_HEAD:], data[:STREAM_HEAD] + self._label)

    def strip_label_untrusted(self, data: bytes) -> bytes:
        """What follows our label.

        Raises:
            MalformedError: It has another label, one too many, or none.
        """
        if self._prefix:
            if not data.startswith(self._prefix):
                raise MalformedError(f"label: expected {self._label!r}, found {data[2:18]!r}")
            return data[len(self._prefix) :]
        if data[:1] == bytes((LABEL,)):
            raise MalformedError(f"label: expected none, found {data[2:18]!r}")
        return data

    @property
    def label_octets(self) -> int:
        """Octets the label takes in front of a packet."""
        return len(self._prefix)

    def _encrypt(self, plain: bytes, aad: bytes) -> bytes:
        nonce = self._nonce(NONCE_OCTETS)
        cipher = next(iter(self.keyring.ciphers))
        return bytes((UNPADDED,)) + nonce + cipher.encrypt(nonce, plain, aad)

    def _decrypt_untrusted(self, data: bytes, aad: bytes) -> bytes:
        if len(data) < SEALED_EXTRA:
            raise TruncatedError("encrypted packet", expected=SEALED_EXTRA, found=len(data))
        if data[0] not in (PADDED, UNPADDED):
            raise UnsupportedError(f"encryption: expected version {PADDED} or {UNPADDED}, found {data[0]}")
        nonce, sealed = data[1 : 1 + NONCE_OCTETS], data[1 + NONCE_OCTETS :]
        for cipher in self.keyring.ciphers:
            try:
                plain = cipher.decrypt(nonce, sealed, aad)
            except InvalidTag:
                continue
            return _unpad_untrusted(plain) if data[0] == PADDED else plain
        raise MalformedError(
            f"encryption: expected one of our {len(self.keyring.keys)} keys, found another or none"
        )


def _unpad_untrusted(plain: bytes) -> bytes:
    padding = plain[-1] if plain else 0
    if not 1 <= padding <= BLOCK_OCTETS or len(plain) % BLOCK_OCTETS:
        raise MalformedError(f"PKCS #7: expected 1 to {BLOCK_OCTETS} octets of padding, found {padding}")
    return plain[:-padding]
