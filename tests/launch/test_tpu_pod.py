"""A pod's life, with a gcloud that only remembers what it was told."""

import pytest

QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
VM = ["gcloud", "compute", "tpus", "tpu-vm"]
NODE = ("--name=pod", "--zone=us-east5-a")
RUN = ("--config=configs/imagenet64.py", "--workdir=gs://b/run")
# States and answers are taken from files, a line at a time.
NEXT = """
next() { head -n 1 "$FAKES/$1"; sed -i 1d "$FAKES/$1"; }
case "$*" in
  *describe*value*) next states ;;
  *"tpu_worker.sh status"*) next answers ;;
esac
"""

DRY_CREATE = """\
gcloud compute tpus queued-resources create pod --zone=us-east5-a \
--node-id=pod --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --spot
# until it prints ACTIVE, every 60 s:
gcloud compute tpus queued-resources describe pod --zone=us-east5-a \
'--format=value(state.state)'
"""
DRY_SWEEP = """\
gcloud compute tpus tpu-vm ssh pod --zone=us-east5-a --worker=all \
'--command=cfgd/launch/tpu_worker.sh start experiments.sweep \
--config=configs/sweep_imagenet64.py '\\''--workdir=gs://b/a sweep'\\'' \
--part=cells --shard=1/2'
"""


@pytest.fixture
def pod(fakes):
  fakes.add("gcloud", NEXT)
  return fakes


def says(pod, **lines):
  for name, texts in lines.items():
    (pod.folder / name).write_text("".join(f"{text}\n" for text in texts))


def test_dry_run_of_a_v5p_pod(pod):
  flags = (*NODE, "--type=v5p-128", "--spot", "--dry-run")
  assert pod.run("tpu_pod.sh", "create", *flags) == (0, DRY_CREATE, "")
  sweep = ("--config=configs/sweep_imagenet64.py", "--workdir=gs://b/a sweep")
  flags = (*NODE, *sweep, "--shard=1/2", "--part=cells", "--dry-run")
  assert pod.run("tpu_pod.sh", "sweep", *flags) == (0, DRY_SWEEP, "")
  form = tuple(k.replace("imagenet64.py", "imagenet64.py:fast") for k in flags)
  code, out, _ = pod.run("tpu_pod.sh", "sweep", *form)
  assert code == 0
  assert out == DRY_SWEEP.replace("imagenet64.py", "imagenet64.py:fast")
  assert not pod.calls()


@pytest.mark.parametrize(
  ("kind", "runtime"),
  [
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v6e-64", "v2-alpha-tpuv6e"),
  ],
)
def test_each_type_has_its_runtime(pod, kind, runtime):
  _, out, _ = pod.run(
    "tpu_pod.sh", "create", *NODE, f"--type={kind}", "--dry-run"
  )
  assert f"--runtime-version={runtime}\n" in out


def test_create_waits_until_the_slice_is_there(pod):
  says(pod, states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
  flags = (*NODE, "--project=p", "--type=v5p-128", "--every=0")
  code, _, err = pod.run("tpu_pod.sh", "create", *flags)
  assert (code, err) == (0, "pod: WAITING_FOR_RESOURCES\npod: PROVISIONING\n")
  create, *looks = pod.calls()
  assert create == [
    *(*QUEUED, "create", "pod", "--zone=us-east5-a", "--project=p"),
    *("--node-id=pod", "--accelerator-type=v5p-128"),
    "--runtime-version=v2-alpha-tpuv5",
  ]
  assert [look[4] for look in looks] == ["describe"] * 3


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_slice_that_does_not_come_is_an_error(pod, state):
  says(pod, states=[state])
  flags = (*NODE, "--type=v5p-128", "--every=0")
  code, _, err = pod.run("tpu_pod.sh", "create", *flags)
  assert (code, err.count("\n")) == (2, 1)
  assert f"pod is {state}" in err


def test_a_refused_request_ends_there_with_gclouds_code(pod):
  pod.add("gcloud", "echo 'no quota' >&2; exit 7")
  code, _, err = pod.run("tpu_pod.sh", "create", *NODE, "--type=v5p-128")
  assert (code, err) == (7, "no quota\n")
  assert len(pod.calls()) == 1


def test_sync_copies_installs_and_brings_the_data(pod):
  code, _, err = pod.run("tpu_pod.sh", "sync", *NODE, "--data=gs://b/my data")
  assert code == 0, err
  copy, *others = pod.calls()
  assert copy[:5] == [*VM, "scp"]
  assert copy[6:] == ["pod:", "--zone=us-east5-a", "--worker=all"]
  assert copy[5].endswith("/cfgd.tar.gz")
  unpack, *installs, data = (call[-1] for call in others)
  assert "tar -xzf cfgd.tar.gz -C cfgd" in unpack
  assert "./cfgd[tpu]" in installs[-1]
  assert data.endswith("'gs://b/my data' tensorflow_datasets")
  assert all(call[-2] == "--worker=all" for call in others)


def test_a_step_of_sync_that_fails_is_the_last(pod):
  pod.add("gcloud", 'case "$*" in *scp*) exit 3 ;; esac')
  assert pod.run("tpu_pod.sh", "sync", *NODE, "--data=gs://b/d")[0] == 3
  assert len(pod.calls()) == 1


def test_a_preempted_run_is_taken_up_on_a_new_slice(pod):
  says(
    pod,
    states=[
      "ACTIVE",
      "SUSPENDED",
      "PROVISIONING",
      "ACTIVE",
      "UNKNOWN",
      "ACTIVE",
    ],
    answers=["w-0: running | step 5", "", "w-0: ended with 0 | step 9"],
  )
  flags = (*NODE, *RUN, "--type=v5p-128", "--spot", "--watch", "--every=0")
  code, _, err = pod.run("tpu_pod.sh", "train", *flags)
  assert code == 0, err
  assert "pod: SUSPENDED; making it anew\n" in err
  calls = [
    f"{call[4]} {call[-1].split(' ')[1] if 'tpu_worker' in call[-1] else ''}"
    for call in pod.calls()
  ]
  again = calls[calls.index("delete ") :]
  assert calls[: -len(again)] == [
    *("ssh start", "describe ", "ssh status", "describe "),
  ]
  assert again[:5] == ["delete ", "create ", "describe ", "describe ", "scp "]
  assert again.count("ssh start") == 1
  assert again[-1] == "ssh status"
  (delete,) = (call for call in pod.calls() if call[4] == "delete")
  assert delete[5:] == ["pod", "--zone=us-east5-a", "--force", "--quiet"]


@pytest.mark.parametrize(
  ("answer", "words"),
  [
    ("w-0: ended with 2 | error: bad", "the run failed"),
    (
      "w-0: ended with 75 | saved",
      "stopped; run the same command again to resume",
    ),
  ],
)
def test_a_run_that_ended_otherwise_is_not_started_again(pod, answer, words):
  says(pod, states=["ACTIVE"], answers=[answer])
  flags = (*NODE, *RUN, "--type=v5p-128", "--watch", "--every=0")
  code, _, err = pod.run("tpu_pod.sh", "train", *flags)
  assert (code, words in err) == (2, True)
  assert sum("start" in call[-1] for call in pod.calls()) == 1


def test_gcloud_out_of_reach_deletes_nothing(pod):
  pod.add(
    "gcloud",
    'case "$*" in *describe*) echo "ERROR: timeout" >&2; exit 1 ;;\n'
    '*status*) echo "w-0: ended with 0" ;; esac',
  )
  flags = (*NODE, *RUN, "--type=v5p-128", "--watch", "--every=0")
  code, _, err = pod.run("tpu_pod.sh", "train", *flags)
  assert (code, "timeout" in err) == (0, True)
  assert not [call for call in pod.calls() if call[4] == "delete"]


@pytest.mark.parametrize(
  ("typed", "deleted"), [("pod\n", 1), ("y\n", 0), ("", 0)]
)
def test_delete_asks_for_the_name(pod, typed, deleted):
  code, _, err = pod.run("tpu_pod.sh", "delete", *NODE, text=typed)
  assert "This deletes the queued resource pod in us-east5-a" in err
  assert (code == 0) == bool(deleted)
  assert len(pod.calls()) == deleted
  assert "Buckets stay." in err


def test_delete_with_yes_deletes_what_is_named(pod):
  assert pod.run("tpu_pod.sh", "delete", *NODE, "--yes")[0] == 0
  assert pod.calls() == [
    [*QUEUED, "delete", "pod", "--zone=us-east5-a", "--force", "--quiet"]
  ]


def test_status_logs_and_stop(pod):
  says(pod, answers=["w-0: running"])
  for action in ("status", "logs", "stop"):
    assert pod.run("tpu_pod.sh", action, *NODE, "--worker=3")[0] == 0
  state, each, logs, stop = pod.calls()
  assert state[:5] == [*QUEUED, "describe"]
  assert each[-2:] == [
    *("--worker=all", "--command=cfgd/launch/tpu_worker.sh status"),
  ]
  assert logs[-2:] == [
    *("--worker=3", "--command=tail -n 50 -F cfgd-run/log"),
  ]
  assert stop[-1] == "--command=cfgd/launch/tpu_worker.sh stop"
