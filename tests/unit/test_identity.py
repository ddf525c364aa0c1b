import base64
import hashlib
import stat

import pytest

from mrmill.plan.identity import IdentityError, Pseudonyms, load_key, new_key

KEY = bytes(range(32))


def hmac_by_hand(key, message):
    """Oracle: RFC 2104, written out for keys shorter than a block."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + message).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).digest()


def test_a_study_uid_is_ten_base32_characters_of_the_keyed_hash():
    expected = base64.b32encode(hmac_by_hand(KEY, b"study\x001.2.3"))[:10].decode()
    assert Pseudonyms(KEY).study_uid("1.2.3") == expected


def test_a_series_key_has_eight_characters():
    expected = base64.b32encode(hmac_by_hand(KEY, b"series\x001.2.3"))[:8].decode()
    assert Pseudonyms(KEY).series_key("1.2.3") == expected


def test_the_same_text_has_unrelated_names_as_patient_study_and_series():
    names = Pseudonyms(KEY)
    uids = [
        names.patient_uid("", "1.2"),
        names.patient_uid("1", ".2"),
        names.lone_patient_uid("1.2"),
        names.study_uid("1.2"),
        names.series_key("1.2"),
    ]
    assert len({uid[:8] for uid in uids}) == len(uids)


def test_a_patient_id_of_two_issuers_is_two_patients():
    names = Pseudonyms(KEY)
    assert names.patient_uid("A", "1") != names.patient_uid("B", "1")


def test_another_key_gives_other_names_and_another_fingerprint():
    one, other = Pseudonyms(KEY), Pseudonyms(KEY[::-1])
    assert one.study_uid("1.2.3") != other.study_uid("1.2.3")
    assert one.fingerprint != other.fingerprint
    assert KEY.hex()[:8] not in one.fingerprint


@pytest.mark.parametrize("max_days", [1, 30, 3650])
def test_dates_move_one_to_max_days_into_the_past_and_reach_both_ends(max_days):
    names = Pseudonyms(KEY)
    shifts = {names.date_shift_days(f"P{i}", max_days) for i in range(60 * max_days)}
    assert min(shifts) == -max_days
    assert max(shifts) == -1


def test_splits_have_the_asked_proportions_and_never_change():
    names = Pseudonyms(KEY)
    patients = [f"P{i}" for i in range(20_000)]
    splits = [names.split(patient, 0.1, 0.2) for patient in patients]
    # three standard deviations of a binomial share at n = 20,000 are below 0.009
    assert splits.count("val") / len(splits) == pytest.approx(0.1, abs=0.009)
    assert splits.count("test") / len(splits) == pytest.approx(0.2, abs=0.009)
    assert splits == [Pseudonyms(KEY).split(patient, 0.1, 0.2) for patient in patients]


def test_a_split_of_fraction_zero_stays_empty():
    assert {Pseudonyms(KEY).split(f"P{i}", 0, 0) for i in range(1000)} == {"train"}


def test_a_new_key_is_32_secret_bytes_that_only_the_owner_can_read(tmp_path):
    path, other = tmp_path / "keys" / "a.key", tmp_path / "b.key"
    new_key(path)
    new_key(other)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(load_key(path)) == 32
    assert load_key(path) != load_key(other)


def test_a_key_is_never_overwritten(tmp_path):
    path = tmp_path / "pseudonym.key"
    new_key(path)
    before = path.read_bytes()
    with pytest.raises(IdentityError, match="stays as it is"):
        new_key(path)
    assert path.read_bytes() == before


def test_a_missing_key_says_how_to_make_one(tmp_path):
    with pytest.raises(IdentityError, match="mrmill plan --new-key"):
        load_key(tmp_path / "none.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "pseudonym.key"
    new_key(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_key(path)


@pytest.mark.parametrize("content", ["", "xyz", "ab" * 31, "ab" * 33])
def test_a_file_that_is_no_key_is_refused_without_showing_it(tmp_path, content):
    path = tmp_path / "pseudonym.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="holds no key") as error:
        load_key(path)
    assert not content or content not in str(error.value)
