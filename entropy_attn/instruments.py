"""What a run is looked at with: its parameters as a table, a trace of its steps; the only file that imports clu."""

import contextlib
import pathlib

from clu import parameter_overview, profiler
import jax

from entropy_attn.progress import say


def parameters(params, mesh=None) -> str:
  """A table: name, shape, dtype and number of each parameter, all layers of a kind in one row, and their total.

  Args:
    params: nested dicts of arrays, or of shapes and dtypes.
    mesh: where it has several devices, how each parameter lies on them is a column too.
  """
  several = mesh is not None and mesh.size > 1
  return parameter_overview.get_parameter_overview(params, include_stats="sharding" if several else False)


class Trace:
  """Traces the steps from first to last, on the first process: `with Trace(…) as trace`, and in it each step.

  It ends where the steps do, whatever ends them.

  Args:
    steps: (first, last), both traced; None: nothing is. A run that goes on within them traces the rest.
    folder: where TensorBoard reads the run; the trace lies in plugins/profile/ below it.
  """

  def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path):
    self._steps = steps if jax.process_index() == 0 else None
    self._folder, self._since = folder, None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._stop("the run's end")

  @contextlib.contextmanager
  def step(self, number: int):
    """What is done within is training step `number`."""
    if self._steps is None or not self._steps[0] <= number <= self._steps[1]:
      yield
      return
    if self._since is None:
      _wait()  # for the steps before, which are not to be in it
      self._folder.mkdir(parents=True, exist_ok=True)
      profiler.start(str(self._folder))
      self._since = number
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      yield
    if number == self._steps[1]:
      self._stop(str(number))

  def _stop(self, end: str) -> None:
    if self._since is None:
      return
    since, self._since, self._steps = self._since, None, None
    with contextlib.suppress(RuntimeError):  # what the devices failed at is told where its result is read
      _wait()
    try:
      profiler.stop()
    except (RuntimeError, OSError) as error:  # such as a full disk: no reason to lose the run
      say(f"the trace of step {since} to {end} could not be written: {error}")
      return
    say(f"traced step {since} to {end} into {self._folder}/plugins/profile: TensorBoard with the plugin xprof shows it")


def _wait() -> None:
  """Until the devices have done all that was asked of them: steps are dispatched ahead."""
  jax.block_until_ready([array for array in jax.live_arrays() if not array.is_deleted()])
