"""Every command and every block of Python in the documentation.

This project's commands are checked against their source: flags and fields of
`python -m experiments.*` and `benchmarks.*`, a dry run of launch/*.sh, targets
of make. Other programs, which a reader has or a cluster, are listed here.
"""

import ast
import pathlib
import re
import shlex
import subprocess

import pytest

from cfgd.paper import verdicts
from configs import base

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Run elsewhere: by a person, against a cloud or a cluster.
ELSEWHERE = {
  *(
    "git",
    "pip",
    "gcloud",
    "docker",
    "kubectl",
    "apt-get",
    "export",
    "service",
  ),
  *(
    "scontrol",
    "squeue",
    "kill",
    "tensorboard",
    "cat",
    ".",
    "python3",
    "mkdir",
  ),
  *("scancel",),
}
OURS = ("python", "make", "pytest")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, *languages):
  found = FENCE.findall(page.read_text())
  return [text for language, text in found if language in languages]


def words_of(page):
  """Yield the commands of a page, each as its words."""
  for text in blocks(page, "", "bash", "sh", "console"):
    text = re.sub(r"<<(\w+)\n.*?^\1$", "", text, flags=re.M | re.S)
    for line in text.replace("\\\n", " ").splitlines():
      line = line.removeprefix("$ ")
      first = line.split(" ")[0]
      known = first in (*ELSEWHERE, *OURS) or first.startswith("launch/")
      if not known:
        continue  # Output, a listing of files.
      lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
      lexer.whitespace_split = True
      command = []
      for word in [*lexer, "&&"]:
        if word in ("|", "&&", ";"):
          yield command
          command = []
        else:
          command.append(word)


COMMANDS = [(page.name, words) for page in PAGES for words in words_of(page)]


def named(kind):
  chosen = [(page, k) for page, k in COMMANDS if k and kind(k)]
  assert chosen
  return {
    "argnames": ("page", "words"),
    "argvalues": chosen,
    "ids": [f"{page}:{' '.join(words)[:60]}" for page, words in chosen],
  }


def flags_of(module):
  """Return the flags that an entry point defines, read from its source."""
  tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
  found = {
    node.args[0].value
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr.startswith("DEFINE_")
  }
  if "define_config" in ast.dump(tree):
    found.add("config")
  if module.startswith("benchmarks.") and module != "benchmarks.machine":
    found |= flags_of("benchmarks.machine")
  return found


def check_field(name, value):
  field = base.get_config()
  for part in name.split("."):
    assert part in field, name
    field = field[part]
  if isinstance(field, bool):
    assert value in ("", "True", "False", "true", "false"), name
  elif isinstance(field, int | float):
    type(field)(value)


def test_there_are_pages_to_read():
  assert len(PAGES) >= 6
  assert len(COMMANDS) > 40


def quoted():
  """Return the commands in the text of the pages, between backquotes."""
  return [
    (page.name, shlex.split(text.replace("[", "").replace("]", "")))
    for page in PAGES
    for text in re.findall(r"`(python -m [^`.]+\.[^`]*)`", page.read_text())
  ]


def test_quoted_commands_know_the_flags():
  commands = quoted()
  assert any("benchmarks.sample" in words for _, words in commands)
  for page, words in commands:
    words = [word for word in words if word not in ("...", "\\")]
    check_flags(page, words)


@pytest.mark.parametrize(**named(lambda k: k[:2] == ["python", "-m"]))
def test_modules_know_the_flags(page, words):
  check_flags(page, words)


def check_flags(page, words):
  module, *flags = words[2:]
  assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
  if not module.startswith(("experiments.", "benchmarks.")):
    return
  known = flags_of(module)
  for flag in flags:
    if flag.startswith("["):
      continue
    name, _, value = flag.removeprefix("--").partition("=")
    if name == "config":
      assert (ROOT / value.partition(":")[0]).exists(), value
    elif name.startswith("config."):
      check_field(name.removeprefix("config."), value)
    else:
      assert known & {name, name.removeprefix("no")}, (page, flag, known)


@pytest.mark.parametrize(**named(lambda k: k[0].startswith("launch/")))
def test_launchers_take_the_options(page, words):
  script, *options = words
  done = subprocess.run(
    [ROOT / script, "--dry-run", *options]
    if "tpu_pod" not in script
    else [ROOT / script, *options, "--dry-run"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "") or "delete" in options
  assert done.returncode == 0
  assert len(done.stdout.splitlines()) >= 1


@pytest.mark.parametrize(**named(lambda k: k[0] == "make"))
def test_make_has_the_target(page, words):
  text = (ROOT / "Makefile").read_text()
  assert re.search(rf"^{words[1]}:", text, re.MULTILINE)


@pytest.mark.parametrize(**named(lambda k: k[0] == "pip"))
def test_extras_exist(page, words):
  for extra in re.findall(r"\[(\w+)\]", words[-1]):
    assert f'"{extra}": [' in (ROOT / "setup.py").read_text()


def test_every_other_command_is_known_to_run_elsewhere():
  for page, words in COMMANDS:
    if words and not words[0].startswith("launch/"):
      assert (
        words[0] in (*ELSEWHERE, *OURS)
        or "=" in words[0]
        or (words[0] in ("cd", "slurmctld", "slurmd", "sinfo", "pip", "launch"))
      ), (page, words)


def anchors(page):
  """Return the anchors of a page's headings, as GitHub makes them."""
  text = FENCE.sub("", page.read_text())
  titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
  return {re.sub(r"[^\w -]", "", k).lower().replace(" ", "-") for k in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
  for link in links:
    if "://" in link:
      assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./-]*)?", link), link
      continue
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target), link


def sections(page):
  """Return the sections of a page; a report says once what made it all."""
  text = page.read_text()
  whole = page.name.startswith("results")
  return [text] if whole else re.split(r"^##? ", text, flags=re.MULTILINE)


# Tables of numbers that nobody measured: definitions, exit codes, choices.
GIVEN = ("exit code", "`sampler`", "you want", "p_uncond | T | w (")


def measured():
  """Return the header of each table of numbers, and its section."""
  return [
    pytest.param(header, section, id=f"{page.name}:{section.splitlines()[0]}")
    for page in PAGES
    for section in sections(page)
    for header in re.findall(
      r"^ *\|(.*)\|\n *\|.*-: ?\|.*\n", section, re.MULTILINE
    )
    if not header.strip().startswith(GIVEN)
  ]


@pytest.mark.parametrize(("header", "section"), measured())
def test_measured_numbers_name_their_command_and_commit(header, section):
  commits = re.findall(r"\b(?=\w*\d)[0-9a-f]{7}\b", section)
  assert commits, header
  command = r"python -m|make \w+|(configs|tests)/|benchmarks\.|experiments\."
  assert re.search(command, section), header
  known = subprocess.run(
    ["git", "rev-parse", "--is-shallow-repository"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  if known.stdout.strip() == "false":
    for commit in commits:
      found = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
      assert not subprocess.run(found, cwd=ROOT).returncode, commit


def literals():
  """Return a pattern for each text that the code can print, and its length."""
  patterns = []
  for path in [*(ROOT / "cfgd").rglob("*.py"), *(ROOT / "launch").glob("*.sh")]:
    text = path.read_text()
    if path.suffix == ".sh":
      quoted = re.findall(r'(?:die|printf) ["\'](.*?)["\']$', text, re.M)
      quoted += re.findall(r"printf '(.*?)'", text)
      holes = r"\$\(\w+\)|\$\{.*?\}|\$\w+|%s|\\n"
      quoted = [words.removeprefix("error: ") for words in quoted]
      parts = [re.split(holes, words) for words in quoted]
    else:
      parts = [pieces(node) for node in ast.walk(ast.parse(text))]
    patterns += [
      ".*".join(map(re.escape, k)).removeprefix("error:\\ ")
      for k in parts
      if len("".join(k)) > 9
    ]
  return patterns


def pieces(node):
  """Return the fixed parts of a text, between what is filled in."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    left, right = pieces(node.left), pieces(node.right)
    return [*left[:-1], left[-1] + right[0], *right[1:]]
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return [node.value]
  if isinstance(node, ast.JoinedStr):
    text = "".join(
      k.value if isinstance(k, ast.Constant) else "\0" for k in node.values
    )
    return text.split("\0")
  return ["", ""]


def messages():
  rows = (ROOT / "docs" / "troubleshooting.md").read_text().splitlines()
  return [k[1] for k in (re.match(r"\| `(.*?)` \|", row) for row in rows) if k]


def test_troubleshooting_quotes_what_the_code_says():
  # More than the name of a field.
  patterns = [re.compile(k) for k in literals() if " " in k.replace(".*", "")]
  quoted = messages()
  assert len(quoted) > 15
  for message in quoted:
    # What a config's rule says follows its field and value.
    field = re.match(r"[\w.]+=.*?: ", message)
    starts = [0, *([field.end()] if field else [])]
    assert any(
      pattern.match(message, start) for pattern in patterns for start in starts
    ), message


def test_the_readme_says_what_the_results_say():
  page = (ROOT / "docs/results.md").read_text()
  (found,) = re.findall(r"\*\*(Of the paper's .*? resolved\.)\*\*", page)
  assert found in " ".join((ROOT / "README.md").read_text().split())


def test_the_results_have_a_spread_with_every_verdict():
  """What is decided follows from the interval beside it, and from p."""
  text = (ROOT / "docs/results.md").read_text().replace("\\", "")
  section = text.split("## Claims in numbers")[1].split("## Cells")[0]
  rows = []
  for lines in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
    header, _, *table = (k.strip("| ").split(" | ") for k in lines.splitlines())
    rows += [dict(zip(header, row, strict=True)) for row in table]
  assert len(rows) > 15
  for row in rows:
    assert len(row["each seed"].split(", ")) >= 3
    number = r"-?[\d.]+(?:e[-+]\d+)?"
    _, low, high = map(float, re.findall(number, row["mean and interval"]))
    wanted = row["statistic, and where it has to be"].split("; ")[-1]
    bounds = re.findall(r"(?:above|from|to) (-?[\d.]+)", wanted)
    least, most = (*map(float, bounds), float("inf"))[:2]
    if row["verdict"] == verdicts.HOLDS:
      assert least < low
      assert high < most
    elif row["verdict"] == verdicts.FAILS:
      assert high <= least or most <= low
    p = row.get("p (Holm)", row.get("p"))
    if p is not None:
      decided = row["verdict"] != verdicts.OPEN
      assert decided == (float(p) <= 0.05), row
