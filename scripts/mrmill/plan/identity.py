"""Keyed pseudonyms: who a patient or study is, nobody can tell without the key.

Every value is a function of the key and of the identity alone, so adding patients never
changes one, and whoever lacks the key can neither compute nor reverse it.
"""

import base64
import hmac
import math
import os
import secrets
import stat
from pathlib import Path

from mrmill.errors import UserError

KEY_BYTES = 32

#: Characters of base32 (5 bits each). 50 bits: among 100,000 studies two meet with a chance of
#: 4e-6 (and planning stops if they do); 40 bits suffice to tell the series of one study apart.
UID_CHARACTERS = 10
SERIES_CHARACTERS = 8


class IdentityError(UserError):
    """The secret key is missing, unsafe or not a key."""


def new_key(path: Path) -> None:
    """Make a secret key file that only its owner can read.

    Raises
    ------
    IdentityError
        If the file exists: another key would give every study another uid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise IdentityError(
            f"key file {path} exists and stays as it is: a new key would give every patient "
            "and study another uid. For a separate dataset, set identity.key_file to a new path"
        ) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(KEY_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())


def load_key(path: Path) -> bytes:
    """Read a key file.

    Returns
    -------
    key : bytes
        32 secret bytes.

    Raises
    ------
    IdentityError
        If the file is missing, open to others than its owner, or holds no key.
    """
    if not path.is_file():
        raise IdentityError(
            f"key file {path} is missing. First plan of a dataset: make one with "
            "`mrmill plan --new-key`. Otherwise restore it or correct identity.key_file: "
            "another key would give every study another uid"
        )
    if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise IdentityError(
            f"key file {path} can be read by others: with it everyone can trace patients. "
            f"Close it with `chmod 600 {path}`"
        )
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise IdentityError(
            f"key file {path} holds no key: expected {2 * KEY_BYTES} hexadecimal digits. "
            "Restore it from a backup"
        )
    return key


class Pseudonyms:
    """Public names and choices that depend on a secret key.

    Parameters
    ----------
    key : bytes
        As read by `load_key`.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def patient_uid(self, issuer: str, patient_id: str) -> str:
        """Return the public name of a patient; a PatientID is unique within its issuer."""
        return _base32(self._mac("patient", issuer, patient_id), UID_CHARACTERS)

    def lone_patient_uid(self, study: str) -> str:
        """Return the public name of a patient of whom nothing is known but one study."""
        return _base32(self._mac("patient of study", study), UID_CHARACTERS)

    def study_uid(self, study: str) -> str:
        """Return the public name of a study; `study` is its StudyInstanceUID."""
        return _base32(self._mac("study", study), UID_CHARACTERS)

    def series_key(self, series: str) -> str:
        """Return the name of a series within its study; `series` is its SeriesInstanceUID."""
        return _base32(self._mac("series", series), SERIES_CHARACTERS)

    def date_shift_days(self, patient_uid: str, max_days: int) -> int:
        """Return how far all dates of a patient move, -1 to -`max_days`."""
        return -1 - int.from_bytes(self._mac("date", patient_uid), "big") % max_days

    def split(self, patient_uid: str, val_fraction: float, test_fraction: float) -> str:
        """Return `train`, `val` or `test`, by chance but always the same for a patient."""
        draw = int.from_bytes(self._mac("split", patient_uid)[:8], "big") / 2**64
        if draw < val_fraction:
            return "val"
        return "test" if draw < val_fraction + test_fraction else "train"

    @property
    def fingerprint(self) -> str:
        """Tells two keys apart and says nothing else about them."""
        return self._mac("fingerprint").hex()[:16]

    def _mac(self, domain: str, *values: str) -> bytes:
        """HMAC-SHA256 of values that no other domain can produce."""
        message = "\0".join([domain, *values]).encode(errors="surrogateescape")
        return hmac.digest(self._key, message, "sha256")


def _base32(mac: bytes, characters: int) -> str:
    fives = math.ceil(characters / 8)  # of 5 bytes each; to encode all 32 takes longer
    return base64.b32encode(mac[: 5 * fives])[:characters].decode()
