"""The slider of a report, moved in a real browser."""

import io
import shutil

import numpy as np
from PIL import Image
import pytest

from cfgd.report import blocks
from cfgd.report import explorer
from cfgd.report import page

GREY = {"cfg": (0, 60, 120), "classifier": (180, 240)}


def make_page(folder):
  """Write a page whose samples are of one grey per way and w."""
  ways = {}
  for label, values in GREY.items():
    ways[label] = []
    for w, value in enumerate(values):
      out = io.BytesIO()
      Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(out, "PNG")
      ways[label].append((float(w), f"w={w}", out.getvalue()))
  section = blocks.Section("Samples", [explorer.block(ways)])
  path = folder / "report.html"
  path.write_text(page.document("Greys", [section]))
  return path


def test_without_pictures_there_is_no_slider():
  assert explorer.block({"cfg": []}) is None


@pytest.fixture
def browser():
  paths = shutil.which("chromium"), shutil.which("chromedriver")
  if None in paths:
    pytest.skip("needs Debian's chromium and chromium-driver")
  webdriver = pytest.importorskip("selenium.webdriver")
  options = webdriver.ChromeOptions()
  options.binary_location = paths[0]
  for flag in ("headless=new", "no-sandbox", "disable-gpu"):
    options.add_argument(f"--{flag}")
  service = webdriver.ChromeService(executable_path=paths[1])
  driver = webdriver.Chrome(options=options, service=service)
  yield driver
  driver.quit()


def grey(browser):
  """Return the value of the pixels that are on the screen."""
  picture = browser.find_element("id", "samples").screenshot_as_png
  pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
  middle = pixels[pixels.shape[0] // 4 : -pixels.shape[0] // 4]
  return int(np.median(middle))


@pytest.mark.slow
def test_the_slider_changes_the_pixels_by_keyboard(browser, tmp_path):
  browser.get(make_page(tmp_path).as_uri())
  strength = browser.find_element("id", "strength")
  way = browser.find_element("id", "way")
  shown = browser.find_element("id", "shown")
  assert grey(browser) == 0
  for value in (60, 120, 120):  # the last is the end
    strength.send_keys("\ue014")  # arrow to the right
    assert grey(browser) == value
  assert shown.text == "w=2"
  assert strength.get_attribute("aria-valuetext") == "w=2"
  # The nearest w of the other way: 1.
  way.send_keys("classifier")
  assert (grey(browser), shown.text) == (240, "w=1")
  strength.send_keys("\ue012")  # to the left
  assert (grey(browser), shown.text) == (180, "w=0")
  logged = browser.get_log("browser")
  assert [entry for entry in logged if entry["level"] == "SEVERE"] == []
