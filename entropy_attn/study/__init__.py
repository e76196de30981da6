"""Many runs → one table and one figure: what is trained (`runs`), how (`execute`), and what came out (`table`)."""

from entropy_attn.study.runs import Run

__all__ = ["Run"]
