"""What TensorBoard reads of a run's folder, in so far as tests ask for it."""

import struct

from tensorboardX.proto import event_pb2, plugin_hparams_pb2


def events(folder):
  """The events of each file under tensorboard/, in the order of the files' names."""
  found = []
  for path in sorted((folder / "tensorboard").iterdir()):
    content, at = path.read_bytes(), 0
    while at < len(content):
      (size,) = struct.unpack_from("Q", content, at)  # and its checksum; the event and its own
      found.append(event_pb2.Event.FromString(content[at + 12 : at + 12 + size]))
      at += size + 16
  return found


def shown(folder):
  """{(tag, step): value} of the scalars that TensorBoard shows: a restart purges its step and later ones."""
  values = {}
  for event in events(folder):
    if event.session_log.status == event_pb2.SessionLog.START:
      values = {key: value for key, value in values.items() if key[1] < event.step}
    for value in event.summary.value:
      if value.WhichOneof("value") == "simple_value":
        assert (value.tag, event.step) not in values
        values[value.tag, event.step] = value.simple_value
  return values


def images(folder):
  """{(tag, step): (height, width)}."""
  pairs = [(event.step, value) for event in events(folder) for value in event.summary.value]
  return {(v.tag, step): (v.image.height, v.image.width) for step, v in pairs if v.HasField("image")}


def hparams(folder, which):
  """The session_start_info's or session_end_info's of the table of hyperparameters."""
  values = [value for event in events(folder) for value in event.summary.value if value.tag == f"_hparams_/{which}"]
  contents = [value.metadata.plugin_data.content for value in values]
  return [getattr(plugin_hparams_pb2.HParamsPluginData.FromString(content), which) for content in contents]
