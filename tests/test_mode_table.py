import pytest

from benchmarks import modes

JUNIT = """<testsuites><testsuite>
<testcase name="test_f[vmap | attention[gpu, bfloat16]]"/>
<testcase name="test_f[vmap | attention[tpu]]"><failure/></testcase>
<testcase name="test_f[export[b, t] | attention[gpu]]"><skipped/></testcase>
<testcase name="test_f[export[b, t] | GPT loss]"/>
<testcase name="test_g[vmap of one-gpu]"/>
<testcase name="test_of_no_mode"/>
</testsuite></testsuites>"""


@pytest.fixture
def cells(tmp_path):
  (tmp_path / "modes.xml").write_text(JUNIT)
  return list(modes.found(tmp_path / "modes.xml"))


def test_a_cell_is_a_mode_a_function_and_what_came_of_it(cells):
  assert cells == [
    ("vmap", "attention[gpu, bfloat16]", "passed"),
    ("vmap", "attention[tpu]", "failed"),
    ("export[b, t]", "attention[gpu]", "skipped"),
    ("export[b, t]", "GPT loss", "passed"),
    ("vmap of one", "program[gpu]", "passed"),
  ]


def test_the_table_counts_what_passed_names_what_failed_and_leaves_out_what_makes_no_sense(cells):
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in modes.table(cells).splitlines()]
  assert rows[0] == ["mode", "attention", "GPT loss", "program"]
  assert rows[2:] == [
    ["vmap", "1 of 2 FAIL", "–", "–"],
    ["export[b, t]", "–", "1", "–"],
    ["vmap of one", "–", "–", "1"],
  ]
