"""Proof that whoever asks for a key to be enrolled holds its private half. Pure.

The key signs this text, as it signs events (P-256: DER ECDSA over SHA-256; Ed25519):

    modelledger.dev/key-possession/v1
    trainer                                  the actor that will sign with it
    4f1c…                                    id of the key that it replaces; an empty line when it replaces none
    9b02…                                    its own id, hex SHA-256 of its DER SubjectPublicKeyInfo

each line ended by a newline. So nobody can have another one's key enrolled, and a proof serves for one rotation
only. It begins unlike what signs an event (`DSSEv1 …`), so it can never be taken for one. OpenSSL makes it too:

    printf 'modelledger.dev/key-possession/v1\\n%s\\n%s\\n%s\\n' trainer OLD NEW | openssl dgst -sha256 -sign new.pem
"""

from __future__ import annotations

import hashlib

from ledger.envelope import Signer, is_signed, load_public_key


def prove(actor: str, replaced: str, signer: Signer) -> bytes:
    """The proof for the signer's key. `replaced`: id of the actor's present key, empty when it has none."""
    return signer.sign(_message(actor, replaced, signer.keyid))


def is_proven(actor: str, replaced: str, public_key_der: bytes, proof: bytes) -> bool:
    """Whether `proof` is by the key, for this actor and this rotation. Raises InvalidInput for what is no key."""
    message = _message(actor, replaced, hashlib.sha256(public_key_der).hexdigest())
    return is_signed(load_public_key(public_key_der), proof, message)


def _message(actor: str, replaced: str, key_id: str) -> bytes:
    return f"modelledger.dev/key-possession/v1\n{actor}\n{replaced}\n{key_id}\n".encode()
