"""gguf-moe's models in the command line tool `llm`."""

import atexit
import json

import click
import llm

import gguf_moe
from gguf_moe.cli.common import DEMO_MODEL


def models_file():
    """Where the names are kept that `llm gguf-moe add` was given: a JSON object, name -> file."""
    return llm.user_dir() / "gguf-moe.json"


def added_models():
    return json.loads(models_file().read_text()) if models_file().exists() else {}


@llm.hookimpl
def register_models(register):
    register(GGUFMoE("gguf-moe-demo", str(DEMO_MODEL)))
    for name, file in added_models().items():
        register(GGUFMoE(name, file))


@llm.hookimpl
def register_commands(cli):
    @cli.group(name="gguf-moe")
    def group():
        "Models that gguf-moe runs"

    @group.command()
    @click.argument("name")
    @click.argument("file")
    def add(name, file):
        "Let NAME be the model in FILE, or as hf:REPO:QUANT"
        gguf_moe.load_tokenizer(file)  # a file that is none is better refused now
        models_file().parent.mkdir(parents=True, exist_ok=True)
        models_file().write_text(json.dumps(added_models() | {name: file}, indent=1))


class GGUFMoE(llm.Model):
    can_stream = True

    class Options(llm.Options):
        max_tokens: int | None = None
        temperature: float | None = None
        top_p: float | None = None
        seed: int | None = None

    def __init__(self, name, file):
        self.model_id = name
        self._file = file
        self._model = None

    def execute(self, prompt, stream, response, conversation):
        model = self._loaded()
        options = {name: value for name, value in prompt.options if value is not None}
        if model.chat_template:
            chunks = model.create_chat_completion(messages_of(prompt, conversation), stream=True, **options)
            yield from (chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        else:
            chunks = model.create_completion(prompt.prompt, stream=True, **options)
            yield from (chunk["choices"][0]["text"] for chunk in chunks)

    def _loaded(self):
        if self._model is None:
            try:
                self._model = gguf_moe.load(self._file)
            except gguf_moe.GGUFMoeError as e:
                raise llm.ModelError(str(e)) from None
            atexit.register(self._model.close)
        return self._model


def messages_of(prompt, conversation):
    """The conversation so far and the new prompt, as OpenAI's messages."""
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for earlier in conversation.responses if conversation else ():
        messages.append({"role": "user", "content": earlier.prompt.prompt})
        messages.append({"role": "assistant", "content": earlier.text_or_raise()})
    return [*messages, {"role": "user", "content": prompt.prompt}]
