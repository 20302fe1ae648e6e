"""What a manifest notices."""

import pytest

from cfgd.runtime import manifest


@pytest.fixture
def folder(tmp_path):
  for name in ("state/d/one", "state/d/two", "ema/one"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode() * 100)
  (tmp_path / "beside").write_text("may change")
  manifest.write(tmp_path, ("state", "ema"))
  return tmp_path


def test_nothing_is_wrong_with_what_was_written(folder):
  (folder / "beside").write_text("changed")
  assert manifest.fault(folder) is None
  assert manifest.size(folder) == 100 * (
    2 * len("state/d/one") + len("ema/one")
  )


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (lambda p: p.write_bytes(p.read_bytes()[:-1]), "has 1099 bytes of 1100"),
    (lambda p: p.unlink(), "cannot be read"),
    (lambda p: p.write_bytes(b"S" + p.read_bytes()[1:]), "has changed"),
    (
      lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x64"),
      "state/d/two has changed",
    ),
  ],
)
def test_damage_is_found_where_it_is(folder, damage, words):
  damage(folder / "state/d/two")
  assert words in manifest.fault(folder)
  assert words in manifest.fault(folder, ("state",))
  assert manifest.fault(folder, ("ema",)) is None


@pytest.mark.parametrize("text", ["", "{", "{}", '{"files": 3}', '["files"]'])
def test_a_damaged_manifest_is_damage(folder, text):
  (folder / manifest.NAME).write_text(text)
  assert "manifest.json cannot be read" in manifest.fault(folder)
