"""docs/models.md: it is about every architecture, and a failed test shows."""

import xml.etree.ElementTree as ET
from pathlib import Path

import models_table
from tiny_table import TINY, arch_of

from gguf_moe.arch import ARCHS

ROOT = Path(__file__).parents[1]


def rows(text):
    """The cells of each row of the first table, without its head."""
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_has_every_architecture_and_all_tests_passed():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert text.startswith(models_table.HEAD)
    assert [row[0] for row in rows(text)] == [f"`{arch_of(name)}`" for name in sorted(TINY)]
    assert {arch_of(name) for name in TINY} == set(ARCHS)
    assert "**no**" not in text
    assert text.endswith(models_table.pre_tokenizers())


def test_cells_follow_from_the_results():
    results = """<suite>
      <testcase name="test_token_ids[llama]"/>
      <testcase name="test_token_ids[glm4moe]"><failure/></testcase>
      <testcase name="test_f32_logits_are_llama_cpps[llama]">
        <properties><property name="nmse" value="1.6e-12"/></properties>
      </testcase>
      <testcase name="test_logits_are_llama_cpps[emulator-llama]"/>
      <testcase name="test_logits_are_llama_cpps[gpu-llama]"><skipped/></testcase>
      <testcase name="test_logits_are_llama_cpps[emulator-deepseek2-old]"/>
      <testcase name="test_logits_are_llama_cpps[gpu-deepseek2-old]"/>
      <testcase name="test_logits_are_llama_cpps[emulator-glm4moe]"/>
      <testcase name="test_logits_are_llama_cpps[gpu-glm4moe]"><failure/></testcase>
      <testcase name="test_token_ids[deepseek2-old]"/>
      <testcase name="test_the_oracle_gives_the_crews_bits[llama-f32_file]"/>
      <testcase name="test_the_oracle_gives_the_crews_bits[llama-quantized_file]"><error/></testcase>
    </suite>"""
    found = rows(models_table.table(models_table.cells(ET.fromstring(results))))
    table = {row[0]: row[2:] for row in found}
    assert table["`llama`"] == ["yes", "2e-12", "**no**", "**no**", "**no**", "**no**", "emulated"]
    assert table["`glm4moe`"][0] == table["`olmoe`"][0] == "**no**"
    assert [row[2] for row in found if row[0] == "`deepseek2`"] == ["**no**", "yes"]
    assert [row[-1] for row in found if row[0] == "`deepseek2`"] == ["**no**", "yes"]
    assert table["`glm4moe`"][-1] == "**no**"
