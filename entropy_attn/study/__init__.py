"""Many runs → one table and its figures: what is trained (`runs`), how (`execute`), and what came out (`table`)."""

from entropy_attn.study.runs import Run, Study

__all__ = ["Run", "Study"]
