"""Token ids → text while they come: whole characters alone, up to a stop string."""

from collections.abc import Callable, Sequence

UNDECODED = "\ufffd"  # what decoders write for a character that is not whole
_CONTEXT = 8  # tokens of the prompt that the first new one is decoded with: some tokens drop a space at the start


class TextStream:
  """The text of tokens that come one by one.

  Attributes:
    text: all of it so far, without a stop string and what follows it.
    stopped: whether a stop string has come.
  """

  def __init__(self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int], stops: Sequence[str] = ()):
    """
    Args:
      decode: ids → text, of a `Tokenizer`.
      prompt_ids: what the tokens go on from.
      stops: strings, none empty, of which the first to be complete ends the text.
    """
    self.text, self.stopped = "", False
    self._decode, self._stops = decode, stops
    self._ids = list(prompt_ids[-_CONTEXT:])  # the last ones, with which the next is decoded
    self._done = len(self._ids)  # of them, those whose text has come
    self._held = ""  # what may be the beginning of a stop string

  def push(self, token: int) -> str:
    """What a token adds to the text: "" within a character, or within what may become a stop string."""
    self._ids.append(token)
    return self._add(self._new(whole=True))

  def close(self) -> str:
    """What was held back, after the last token."""
    added = self._add(self._new(whole=False))
    if not self.stopped:
      self.text, added, self._held = self.text + self._held, added + self._held, ""
    return added

  def _new(self, *, whole: bool) -> str:
    """The text of the tokens that have none yet; "" if that must be whole characters and is not."""
    before, text = self._decode(self._ids[: self._done]), self._decode(self._ids)
    if whole and text.endswith(UNDECODED):
      return ""
    new = text[len(before.rstrip(UNDECODED)) :]
    if not before.endswith(UNDECODED):  # else what is new begins within a character
      self._ids = self._ids[self._done :]
    self._done = len(self._ids)
    return new

  def _add(self, new: str) -> str:
    """Of new text what is sure to stay; up to the first stop string that it completes."""
    if self.stopped:
      return ""
    text = self._held + new
    found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
    self.stopped = bool(found)
    cut = min(found) if found else len(text) - self._begun(text)
    self.text, self._held = self.text + text[:cut], "" if found else text[cut:]
    return text[:cut]

  def _begun(self, text: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    sizes = (n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(sizes, default=0)
