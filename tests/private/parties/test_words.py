"""What is shown of the other party's words."""

from hypothesis import given
from hypothesis import strategies as st

from entropy_attn.errors import printable
from entropy_attn.private.parties.words import MEANING, Ending


@given(text=st.text())
def test_no_text_moves_a_cursor_and_plain_ones_stay(text):
  shown = printable(text)
  assert shown.isprintable()
  assert shown == text or not text.isprintable()
  assert printable(text, keep="\n\t").replace("\n", "").replace("\t", "").isprintable()
  assert len(printable(text, 5)) <= 5 * 10 + 2


def test_an_escape_sequence_is_seen():
  assert printable("a\x1b[2J\nb\u202e é") == "a\\x1b[2J\\nb\\u202e é"
  assert printable("a\x1b\nb", keep="\n") == "a\\x1b\nb"


def test_every_ending_has_a_meaning():
  assert set(MEANING) == set(Ending)
