"""What a party tells of why it ends.

A code of this short public list is all that goes over the line: no text, number or name, which could tell of a prompt.
"""

import enum

from entropy_attn.errors import UserError


class Ending(enum.Enum):
  """Why a party ends; each but the first follows from what both have said openly."""

  ENDED = "ended"  # it has what it wanted, or a reason that the other is not told: the two look the same
  CERTIFICATE = "certificate"
  VERSION = "version"
  ROLE = "role"
  PROGRAM = "program"
  REQUEST = "request"
  LATE = "late"
  QUOTA = "quota"
  TIME = "time"


MEANING = {
  Ending.ENDED: "it ended the session",
  Ending.CERTIFICATE: "its --tls_peer does not name the certificate of this party",
  Ending.VERSION: "it has other code or another engine: install the same on both sides",
  Ending.ROLE: "it has the same role: one serves, the other generates",
  Ending.PROGRAM: "it would run another program: use the same version of the model, of this package and of jax",
  Ending.REQUEST: "it was asked for what it does not do",
  Ending.LATE: "it waited too long for a word of this party",
  Ending.QUOTA: "it has given this party as many answers in 24 hours as its --quota allows: ask again later",
  Ending.TIME: "the session has taken as long as its --max_session allows: ask for fewer tokens, or a shorter prompt",
}


class Disagreement(UserError):
  """A mistake that the other party may know of.

  Attributes:
    ending: what it is told.
  """

  def __init__(self, text: str, ending: Ending):
    super().__init__(text)
    self.ending = ending
