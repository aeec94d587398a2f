"""examples/llm-gguf-moe in the `llm` tool."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "fixture-bpe.Q4_K_M.gguf"
# llm loads its plugins when its command line is imported.
SCRIPT = """
import sys
from click.testing import CliRunner
sys.path.insert(0, sys.argv[1])
import llm, llm.plugins, llm_gguf_moe
llm.plugins.pm.register(llm_gguf_moe)
from llm.cli import cli

def run(*arguments):
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    return done.output

assert "gguf-moe-demo" in run("models")
print(run("-m", "gguf-moe-demo", "Once upon a time", "-o", "max_tokens", "8", "-o", "seed", "1"))
run("gguf-moe", "add", "small", sys.argv[2])
assert CliRunner().invoke(cli, ["gguf-moe", "add", "none", sys.argv[1]]).exit_code

conversation = llm.get_model("small").conversation()
first = conversation.prompt("Hi", system="Be brief.", max_tokens=4, temperature=0).text()
second = conversation.prompt("More", system="Be brief.", max_tokens=4, temperature=0)
second.text()
roles = [message["role"] for message in llm_gguf_moe.messages_of(second.prompt, conversation)]
print(roles[:4])
"""


def test_the_plugin_answers_prompts_and_conversations(run_python, kernel_cache, tmp_path):
    cache = tmp_path / ".cache" / "gguf-moe"
    cache.mkdir(parents=True)
    (cache / "kernels").symlink_to(kernel_cache)
    plugin = ROOT / "examples" / "llm-gguf-moe"
    environment = {"HOME": str(tmp_path), "LLM_USER_PATH": str(tmp_path / "llm"), "LLM_LOAD_PLUGINS": ""}
    story, roles = run_python(SCRIPT, plugin, FIXTURE, timeout=120, **environment).strip().split("\n\n")
    assert len(story.split()) >= 4
    assert roles == "['system', 'user', 'assistant', 'user']"
