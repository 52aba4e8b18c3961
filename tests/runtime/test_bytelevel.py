import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autovla_rt.runtime.bytelevel import ends_mid_character, token_bytes


@pytest.fixture(scope="module")
def spelled(tokenizer):
    """Spell encoded text in bytes (a function, so that hypothesis prints no tokenizer)."""

    def spell(text):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assume(all(i < 151643 for i in ids))  # the text spells no added token
        normal = tokenizer.normalizer.normalize_str(text)
        return normal.encode(), b"".join(token_bytes(tokenizer, i) for i in ids)

    return spell


@given(text=st.text())
def test_token_bytes_of_encoded_text_are_its_utf8(spelled, text):
    expected, got = spelled(text)
    assert got == expected


def test_every_byte_is_spelled_by_one_token(tokenizer):
    spelled = {token_bytes(tokenizer, i) for i in range(256)}
    assert spelled == {bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize("character", ["é", "日", "🚗"])
def test_only_a_started_character_is_incomplete(character):
    data = b"a" + character.encode()
    assert not ends_mid_character(data)
    for missing in range(1, len(character.encode())):
        assert ends_mid_character(data[:-missing])


@pytest.mark.parametrize("data", [b"", b"a", b"\x80", b"\xff", b"\xf0\x9fa"])
def test_stray_bytes_are_not_the_start_of_a_character(data):
    assert not ends_mid_character(data)
