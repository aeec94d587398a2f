"""The command line as a person meets it: what its commands print, and their errors."""

import json
import re

import numpy as np
import pytest
from command_line import FIXTURE, PROMPT, ROOT, generate


def test_only_the_text_goes_to_stdout(command):
    done = command(*generate(PROMPT))
    assert done.returncode == 0
    assert done.stdout.decode().endswith("\n")
    assert re.fullmatch(
        r"prompt \d+ tokens, [\d.]+ tok/s; generated 8, [\d.]+ tok/s; first token [\d.]+ s\n",
        done.stderr.decode(),
    )


def test_a_prompt_comes_as_argument_option_or_stdin(command):
    texts = {
        command(*generate(PROMPT)).stdout,
        command(*generate("-p", PROMPT)).stdout,
        command(*generate("-"), stdin=PROMPT.encode()).stdout,
    }
    assert len(texts) == 1


def test_sampling_is_steered_by_options(command):
    plain = json.loads(command(*generate(PROMPT, "--json")).stdout)["token_ids"]
    first = plain[0]
    forbidden = json.loads(command(*generate(PROMPT, "--json", "--logit-bias", f"{first}-inf")).stdout)
    assert first not in forbidden["token_ids"]
    dry = ("--dry-multiplier", "5", "--dry-allowed-length", "1", "--dry-sequence-breaker", "none")
    done = command(
        *generate(PROMPT, "--json", *dry, "--samplers", "dry;temperature", "--presence-penalty", "9")
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["finish_reason"] == "length"


def test_without_a_model_the_demo_writes_and_says_so(command):
    done = command("generate", "Once upon a time", "-n", "12", "--temp", "0")
    assert done.returncode == 0
    assert len(done.stdout.split()) > 4
    assert b"the demo model writes" in done.stderr


def test_json_is_one_object_with_everything(command):
    out = json.loads(command(*generate(PROMPT, "--json")).stdout)
    assert set(out) == {"text", "token_ids", "prompt_token_ids", "finish_reason", "timings"}
    assert set(out["timings"]) == {
        "load_s",
        "compile_s",
        "prompt_s",
        "prompt_tokens_per_s",
        "decode_s",
        "decode_tokens_per_s",
        "first_token_s",
    }
    assert out["finish_reason"] == "length"
    assert len(out["token_ids"]) == 8
    assert out["text"] + "\n" == command(*generate(PROMPT)).stdout.decode()


def test_chat_applies_the_template(command):
    plain = json.loads(command(*generate("Hi", "--json")).stdout)
    chat = json.loads(command(*generate("Hi", "--json", "--chat")).stdout)
    assert len(chat["prompt_token_ids"]) > len(plain["prompt_token_ids"])


def test_verbose_tells_about_the_model(command):
    assert "4 experts, 2 used" in command(*generate(PROMPT, "-v")).stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (generate("x" * 5000), "the context holds 512"),
        (generate(PROMPT, "--ctx", "4"), "the context holds 4"),
        (generate(""), "prompt is empty"),
        (generate(PROMPT, "--device", "cuda:99"), "the GPU cannot be used"),
        (generate(PROMPT, "--seed", str(2**64)), "seed is"),
        (generate(PROMPT, "--samplers", "top_k;magic"), "'magic' is not a sampler"),
        (generate(PROMPT, "--logit-bias", "five"), "'five' must be a token id"),
        (generate(PROMPT, "--logit-bias", "123456789-1"), "logit_bias has 123456789"),
        (generate(PROMPT, "--dry-base", "0"), "dry_base is 0"),
        (generate(PROMPT, "--vram", "12Q"), "'12Q'"),
        (generate(PROMPT, "--device", "cuda"), "the GPU cannot be used"),
        (generate(PROMPT, "--heat", "heat"), "--heat is for a GPU"),
        (("serve", "-m", FIXTURE, "--port", "0", "--api-key", ""), "must not be empty"),
        (("serve", "-m", FIXTURE, "--port", "0", "--host", ""), "must not be empty"),
        (("serve", "-m", FIXTURE, "--port", "0", "--timeout", "nan"), "--timeout is nan"),
        (("logits", "-m", FIXTURE, "-p", "a", "--out", "/dev/full"), "/dev/full cannot be written"),
        (("serve", "-m", "", "--port", "0"), "name of the model's file is empty"),
        (("perplexity", "-m", FIXTURE, "-f", "absent.txt"), "absent.txt cannot be read (No such file"),
        (("perplexity", "-m", FIXTURE, "-f", "/dev/zero"), "more than 64 MiB"),
        (("generate", "-m", "absent.gguf", "x"), "absent.gguf"),
        (("generate", "-m", ROOT, "x"), "directory"),
        (("generate", "-m", ROOT / "pyproject.toml", "x"), "not a GGUF file"),
        (("inspect", ROOT / "LICENSE"), "not a GGUF file"),
        (("detokenize", "-m", FIXTURE, "5", "six"), "'six' is not a token id"),
        (("perplexity", "-m", FIXTURE, "-f", ROOT / "LICENSE", "--ctx", "512"), "at least 1024"),
        (("bench", "-m", FIXTURE, "-d", "500"), "needs a context of 1012 tokens"),
        (("bench", "-m", FIXTURE, "-p", "0", "-n", "0"), "nothing to measure"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_1(command, arguments, message):
    done = command(*arguments)
    error = done.stderr.decode()
    assert done.returncode == 1, error
    assert done.stdout == b""
    assert error.startswith("Error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-m", FIXTURE),
        ("generate", "-m", FIXTURE, "a", "-p", "b"),
        ("generate", "-m", FIXTURE, "a", "--temp", "-1"),
        ("generate", "-m", FIXTURE, "a", "-n", "many"),
        ("bench", "-m", FIXTURE, "-p", "1,x"),
        ("bench", "-m", FIXTURE, "-t", "0"),
        ("logits", "-m", FIXTURE, "-p", "a", "--out", "absent/logits.npy"),
        ("generate", "-m", FIXTURE, "a", "--record-routing", "absent/routing"),
        ("fly",),
    ],
)
def test_wrong_usage_is_exit_code_2(command, arguments):
    done = command(*arguments)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_tokenize_and_back(command):
    ids = json.loads(command("tokenize", "-m", FIXTURE, PROMPT, "--json").stdout)["token_ids"]
    assert json.loads(command("detokenize", "-m", FIXTURE, *ids, "--json").stdout) == {"text": PROMPT}
    assert command("detokenize", "-m", FIXTURE, "-", stdin=str(ids).encode()).stdout.decode() == PROMPT + "\n"
    lines = command("tokenize", "-m", FIXTURE, PROMPT).stdout.decode().splitlines()
    assert [int(line.split()[0]) for line in lines] == ids


def test_special_tokens_are_read_unless_told_not_to(command):
    def count(*extra):
        done = command("tokenize", "-m", FIXTURE, "<|im_start|>", "--json", *extra)
        return len(json.loads(done.stdout)["token_ids"])

    assert count() == 1
    assert count("--no-special") > 1


def test_inspect_says_what_is_inside_and_that_it_runs(command):
    text = command("inspect", FIXTURE).stdout.decode()
    assert "llama.expert_count  u32  4" in text
    assert re.search(r"^experts +Q4_K +\d+ +\d+\.\d$", text, re.MULTILINE)
    assert text.endswith("runs here\n")
    assert max(map(len, text.replace(str(FIXTURE), "").splitlines())) <= 130
    report = json.loads(command("inspect", FIXTURE, "--json").stdout)
    assert report["runs"] is True
    assert report["keys"]["llama.expert_count"] == {"type": "u32", "value": 4}


def test_logits_are_written_for_every_token(command, tmp_path):
    out = tmp_path / "logits.npy"
    assert command("logits", "-m", FIXTURE, "-p", PROMPT, "--out", out).returncode == 0
    ids = json.loads(command("tokenize", "-m", FIXTURE, PROMPT, "--json").stdout)["token_ids"]
    assert np.load(out).shape == (len(ids), 1000)


def test_perplexity_of_a_file(command):
    done = command("perplexity", "-m", FIXTURE, "-f", ROOT / "LICENSE", "--ctx", "64", "--json")
    result = json.loads(done.stdout)
    assert result["scored_tokens"] == 31 * result["chunks"]
    assert result["perplexity"] > 100  # random weights


def test_warmup_leaves_nothing_to_compile(command, few_kernels_file, tmp_path):
    warmup = ("warmup", "-m", few_kernels_file, "--cache-dir", tmp_path / "kernels")
    cold, warm = (command(*warmup).stderr.decode() for _ in range(2))
    assert int(cold.split()[1]) > 10
    assert warm.startswith("compiled 0 kernels")


def test_bench_prints_rows_that_fit_into_80_columns(command):
    done = command("bench", "-m", FIXTURE, "-p", "32", "-n", "4", "-d", "0,16", "-t", "1,2", "-r", "1")
    head, *lines = done.stdout.decode().splitlines()
    assert head.split() == ["model", "size", "params", "threads", "test", "t/s"]
    assert len(lines) == 12
    assert max(map(len, [head, *lines])) <= 80
    assert all("of weights a token" in line for line in lines[2::3])
    tests = [match[0] for line in lines if (match := re.search(r"(pp|tg)\d+( @ d\d+)?", line))]
    assert tests == ["pp32", "tg4", "pp32 @ d16", "tg4 @ d16"] * 2
    assert done.stderr == b""


def test_bench_of_the_demo_says_so_and_gives_one_json_object(command):
    done = command("bench", "-p", "8", "-n", "4", "-t", "1", "-r", "2", "--json")
    assert b"the demo model is measured" in done.stderr
    pp, tg = json.loads(done.stdout)["rows"]
    assert (pp["test"], tg["test"]) == ("pp8", "tg4")
    assert len(tg["samples_ts"]) == 2
    assert set(tg["read_bandwidth"]) == {"before", "after"}
    assert tg["weights_bytes_per_s"] == pytest.approx(tg["avg_ts"] * tg["weights_bytes_per_token"])
    assert "weights_bytes_per_token" not in pp


def test_a_read_only_cache_directory_is_no_obstacle(command, few_kernels_file, tmp_path):
    obstacle = tmp_path / "file"
    obstacle.write_text("")
    options = ("-m", few_kernels_file, "--cache-dir", obstacle / "kernels", "-n", "4")
    done = command("generate", "Hi", *options)
    assert done.returncode == 0
    assert b"cannot keep compiled kernels" in done.stderr


def test_warmup_fails_where_nothing_is_kept(command, few_kernels_file):
    done = command("warmup", "-m", few_kernels_file, "--cache-dir", "/dev/null")
    assert done.returncode == 1
    assert b"\nError: no cache directory keeps the kernels" in done.stderr


def test_an_empty_cache_directory_is_not_the_current_one(command, tmp_path):
    done = command(*generate(PROMPT, "--cache-dir", ""), cwd=tmp_path)
    assert done.returncode == 2
    assert b"'--cache-dir': the name is empty" in done.stderr
    assert not list(tmp_path.iterdir())


def test_every_help_page_fits_and_works(command):
    listed = command("--help").stdout.decode().split("Commands:\n")[1]
    assert not [line for line in listed.splitlines() if line.endswith("...")]  # click shortens so
    names = re.findall(r"^  (\w+) ", listed, re.MULTILINE)
    assert {
        "generate",
        "chat",
        "plan",
        "pull",
        "tokenize",
        "detokenize",
        "inspect",
        "perplexity",
        "logits",
        "bench",
        "serve",
        "warmup",
    } == set(names)
    for name in names:
        assert command(name, "--help").returncode == 0
